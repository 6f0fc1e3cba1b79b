"""The layout of a plain folder with images/ and masks/, and the rules of its val and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from spiritseg.config import Target
from spiritseg.data.class_map import ClassMap, binary, load_class_map
from spiritseg.data.items import FilePair, pair_up
from spiritseg.data.layout_kinds import Layout, not_empty
from spiritseg.data.subsets import SPLITS, choose, draw, from_list, without
from spiritseg.errors import ConfigError, DataError, listed

__all__ = ["FolderLayout"]

_FOLDER_FRACTION = 0.1


class FolderLayout(Layout):
    """Any folder with images/ and masks/; val and test by config.Target's rules.

    ::

        ROOT/images/**            ROOT/masks/**.png
        ROOT/train/images/**      ROOT/train/masks/**.png    (val, test likewise)
        ROOT/images/train/**      ROOT/masks/train/**.png    (val, test likewise)
    """

    help = "images/ and masks/, train/images/ and train/masks/, or images/train/ and masks/train/"
    no_road = (
        "Masks hold 0 background, 1 road, 255 ignored. Where 255 means road, put a classes.yaml "
        "into target.root: names: [background, road], ids: {0: 0, 255: 1}."
    )

    def detect(self, root: Path) -> bool:
        """Whether there are images/ and masks/, in the root or in train/."""
        return _has_pairs(root) or _has_pairs(root / "train")

    def items(
        self, target: Target, root: Path | None, wanted: Sequence[str]
    ) -> dict[str, list[FilePair]]:
        """List the images of splits: val and test first, the subset counts what is left."""
        assert root is not None, "the layout needs a root"
        base = root if _has_pairs(root) else root / "train"
        pairs = _pairs(root, base, "target")
        inside = _inside(pairs, root)
        rest = inside.get("train", pairs)
        total = len(rest)
        splits: dict[str, list[FilePair]] = {}
        fractions: dict[str, float] = {}
        for split, rule in (("test", target.test), ("val", target.val)):
            if rule == "auto":
                own = split in inside or (root / split).is_dir()
                rule = f"folder:{split}" if own else f"fraction:{_FOLDER_FRACTION}"
            found = _by_rule(rule, root, pairs, inside, f"target.{split}")
            if isinstance(found, float):
                fractions[split] = found
            else:
                splits[split] = found
        for taken in splits.values():
            rest = without(rest, taken)
        for split, fraction in fractions.items():
            count = min(len(rest), max(1, round(fraction * total)))
            splits[split] = draw(rest, count / max(1, len(rest)), target.split_seed, split)
            rest = without(rest, splits[split])
        if "train" in wanted:  # val and test do not depend on the subset
            splits["train"] = choose(not_empty(rest, root), target.subset, "target.subset", root)
        return {split: splits[split] for split in wanted}

    def class_map(self, root: Path | None, classes: str) -> ClassMap:
        """Return the map in classes.yaml; without one, 0 background, 1 road, 255 ignored."""
        own = root / "classes.yaml" if root is not None else None
        if own is not None and own.is_file():
            whole = load_class_map(own)
            return whole.road() if classes == "road" else whole
        if classes == "road":
            return binary()
        raise ConfigError(
            "target.classes=all: a folder data set must define its classes. Put a classes.yaml "
            f"with names (and ids) into {root}, or give target.classes=FILE.yaml."
        )


def _has_pairs(base: Path) -> bool:
    return (base / "images").is_dir() and (base / "masks").is_dir()


def _pairs(root: Path, base: Path, what: str) -> list[FilePair]:
    return pair_up(root, base / "images", base / "masks", what)


def _inside(pairs: Sequence[FilePair], root: Path) -> dict[str, list[FilePair]]:
    """Group images/train/**, images/val/** and images/test/**; empty if there is no split."""
    groups: dict[str, list[FilePair]] = {}
    for pair in pairs:
        groups.setdefault(PurePosixPath(pair.name).parts[1], []).append(pair)
    if "train" not in groups or not groups.keys() & {"val", "test"}:
        return {}
    others = [pair.name for name in groups.keys() - set(SPLITS) for pair in groups[name]]
    if others:
        raise DataError(
            f"{root}: images/ is split into {', '.join(s for s in SPLITS if s in groups)}, but "
            f"{len(others)} images are in none of them:\n{listed(sorted(others))}\nMove these and "
            "their masks into one of the three, or out of images/ and masks/."
        )
    return groups


def _by_rule(
    rule: str,
    root: Path,
    pairs: list[FilePair],
    inside: Mapping[str, list[FilePair]],
    field: str,
) -> list[FilePair] | float:
    """Return the images that a rule of target.val or target.test names, or the fraction."""
    kind, _, value = rule.partition(":")
    if kind == "folder" and value:
        if value in inside:
            return inside[value]
        return _pairs(root, root / Path(value).expanduser(), field)
    if kind == "list" and value:
        return from_list(pairs, value, field, root)
    if kind == "fraction":
        try:
            fraction = float(value)
        except ValueError:
            fraction = -1.0
        if 0 < fraction < 1:
            return fraction
        raise ConfigError(f"{field}: expected fraction:F with F between 0 and 1, got {value!r}")
    raise ConfigError(f"{field}: expected auto, folder:DIR, list:FILE or fraction:F, got {rule!r}")
