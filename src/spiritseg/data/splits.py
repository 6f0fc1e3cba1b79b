"""Which images train, validate and test: subsets by rule, fractions by seed, no image in two."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

from spiritseg.config import Target
from spiritseg.data import layouts
from spiritseg.data.layouts import FilePair
from spiritseg.errors import ConfigError, DataError, listed
from spiritseg.randomness import derive_seed

__all__ = ["SPLITS", "check_disjoint", "choose", "draw", "split_files"]

SPLITS = ("train", "val", "test")
_HELD_OUT = 0.1  # of the training images that the subset leaves
_FOLDER_FRACTION = 0.1
# Benchmarks without public test labels: how to list them, their names of train and val.
_TEST_WITHHELD: dict[str, tuple[Callable[[Path, str], list[FilePair]], str, str]] = {
    "cityscapes": (layouts.cityscapes, "train", "val"),
    "ade20k": (layouts.ade20k, "training", "validation"),
}


class Named(Protocol):
    """Anything with the path of its image below the data set's root."""

    @property
    def name(self) -> str:
        """The path, with forward slashes."""


T = TypeVar("T", bound=Named)


def choose(items: Sequence[T], subset: str, field: str, base: Path | None = None) -> list[T]:
    """Choose the images that are used.

    Args:
        items: all of them, sorted by name.
        subset: all, first:N, even:N (evenly spaced) or list:FILE (one name a line, with or
            without suffix; a trailing part of the path will do where it is unique).
        field: the config field, for the error message.
        base: folder that a relative list file may also be found in.

    Returns:
        The chosen items, sorted as they came.

    Raises:
        ConfigError: where the rule is unknown or asks for more images than there are.
        DataError: where a listed name is not among the images.
    """
    rule, _, value = subset.partition(":")
    if subset == "all":
        return list(items)
    if rule == "list" and value:
        return _listed(items, _find_list(value, base, field), field)
    if rule not in ("first", "even") or not value.isdecimal() or int(value) < 1:
        raise ConfigError(
            f"{field}: expected all, first:N, even:N (N from 1) or list:FILE, got {subset!r}"
        )
    count = int(value)
    if count > len(items):
        raise ConfigError(
            f"{field}: {subset} asks for {count} images, there are {len(items)}. "
            f"Use all, or {rule}:{len(items)} at the most."
        )
    if rule == "first":
        return list(items[:count])
    return [items[i * len(items) // count] for i in range(count)]


def draw(items: Sequence[T], fraction: float, seed: int, what: str) -> list[T]:
    """Draw a fraction of images by a seed, at least one.

    Each image has a rank of its own, a hash of (seed, name): adding an image leaves the order
    of the others alone.

    Args:
        items: what to draw from.
        fraction: share, above 0 and below 1.
        seed: which draw.
        what: enters the hash, so that val and test are drawn apart.

    Returns:
        The drawn items, sorted as they came.
    """
    ranked = sorted(items, key=lambda item: derive_seed(seed, what, item.name))
    drawn = {item.name for item in ranked[: max(1, round(fraction * len(items)))]}
    return [item for item in items if item.name in drawn]


def split_files(
    target: Target, root: Path, layout: str, wanted: Sequence[str]
) -> dict[str, list[FilePair]]:
    """List the images of the wanted splits.

    CamVid: as published. Cityscapes and ADE20K: the test labels are withheld, so test is the
    official validation images (500 and 2000); val is a tenth of the training images that are not
    in the subset, drawn by split_seed (where the subset is all, a tenth is taken out of
    training). Folders: see `config.Target`; val and test are taken out first, the subset counts
    what is left. Where images/ and masks/ are divided into train/ and val/ or test/, that is the
    split, as it is with train/images/ and val/images/.

    Args:
        target: subset, val, test and split_seed.
        root: the data set's folder.
        layout: camvid, cityscapes, ade20k or folder.
        wanted: of train, val, test.

    Returns:
        The image and mask files by split.

    Raises:
        ConfigError: where a rule cannot be followed.
        DataError: where files are missing or do not pair up.
    """
    if layout == "folder":
        splits = _folder(target, root)
        return {split: splits[split] for split in wanted}
    for field, value in (("val", target.val), ("test", target.test)):
        if value != "auto":
            raise ConfigError(
                f"target.{field}: {value!r} is for folder data sets; {layout} has its own "
                f"splits. Leave target.{field} out."
            )
    if layout == "camvid":
        found = {split: layouts.camvid(root, split) for split in wanted}
        if "train" in found:
            found["train"] = choose(found["train"], target.subset, "target.subset", root)
        return found
    return _test_withheld(target, root, layout, wanted)


def check_disjoint(splits: Mapping[str, Sequence[FilePair]]) -> None:
    """Refuse an image that is in two splits, by its path or by its content.

    Contents are compared by SHA-256, and only of files of one size.

    Args:
        splits: files by the name of their split.

    Raises:
        DataError: with up to ten of the images, and where each was met.
    """
    met: dict[tuple[int, str], tuple[str, FilePair]] = {}
    sized: dict[int, list[tuple[str, FilePair]]] = {}
    for split, pairs in splits.items():
        for pair in pairs:
            size = pair.image.stat().st_size
            if size:  # an empty file is a bad image; that is told elsewhere
                sized.setdefault(size, []).append((split, pair))
    twice = []
    for size, members in sized.items():
        if len({split for split, _ in members}) < 2:
            continue
        for split, pair in members:
            key = (size, _sha256(pair.image))
            first, other = met.setdefault(key, (split, pair))
            if first != split:
                twice.append(f"{pair.name} ({split}) is {other.name} ({first})")
    if twice:
        raise DataError(
            f"{len(twice)} images are in two splits, so that scores would be of images that were "
            f"trained on:\n{listed(twice)}\nKeep each image in one split."
        )


def _test_withheld(
    target: Target, root: Path, layout: str, wanted: Sequence[str]
) -> dict[str, list[FilePair]]:
    """Split a benchmark that keeps its test labels to itself."""
    find, training, validation = _TEST_WITHHELD[layout]
    splits: dict[str, list[FilePair]] = {}
    if "test" in wanted:
        splits["test"] = find(root, validation)
    if {"train", "val"} & set(wanted):
        images = find(root, training)
        train = choose(images, target.subset, "target.subset", root)
        rest = _without(images, train)
        if not rest and target.subset != "all":
            raise ConfigError(
                f"target.subset: {target.subset} leaves no training image of {len(images)} for "
                "validation. Use all (a tenth is then held out), or fewer images."
            )
        splits["val"] = draw(rest or images, _HELD_OUT, target.split_seed, "val")
        splits["train"] = _not_empty(_without(train, splits["val"]), root)
    return {split: splits[split] for split in wanted}


def _folder(target: Target, root: Path) -> dict[str, list[FilePair]]:
    base = root if layouts.has_pairs(root) else root / "train"
    pairs = layouts.folder_pairs(root, base, "target")
    inside = _inside(pairs, root)
    pool = inside.get("train", pairs)
    total = len(pool)
    splits: dict[str, list[FilePair]] = {}
    fractions: dict[str, float] = {}
    for split, rule in (("test", target.test), ("val", target.val)):
        field = f"target.{split}"
        kind, _, value = rule.partition(":")
        if rule == "auto":
            own = split in inside or (root / split).is_dir()
            kind, value = ("folder", split) if own else ("fraction", str(_FOLDER_FRACTION))
        if kind == "folder" and value in inside:
            splits[split] = inside[value]
        elif kind == "folder" and value:
            path = Path(value).expanduser()
            splits[split] = layouts.folder_pairs(root, root / path, field)
        elif kind == "list" and value:
            splits[split] = _listed(pairs, _find_list(value, root, field), field)
        elif kind == "fraction":
            fractions[split] = _fraction(value, field)
        else:
            raise ConfigError(
                f"{field}: expected auto, folder:DIR, list:FILE or fraction:F, got {rule!r}"
            )
    for pairs in splits.values():
        pool = _without(pool, pairs)
    for split, fraction in fractions.items():
        count = min(len(pool), max(1, round(fraction * total)))
        splits[split] = draw(pool, count / max(1, len(pool)), target.split_seed, split)
        pool = _without(pool, splits[split])
    splits["train"] = choose(_not_empty(pool, root), target.subset, "target.subset", root)
    return splits


def _inside(pairs: Sequence[FilePair], root: Path) -> dict[str, list[FilePair]]:
    """Group images/train/**, images/val/** and images/test/**; nothing where there is no split."""
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


def _fraction(value: str, field: str) -> float:
    try:
        fraction = float(value)
    except ValueError:
        fraction = -1.0
    if not 0 < fraction < 1:
        raise ConfigError(f"{field}: expected fraction:F with F between 0 and 1, got {value!r}")
    return fraction


def _without(items: Sequence[T], taken: Sequence[T]) -> list[T]:
    names = {item.name for item in taken}
    return [item for item in items if item.name not in names]


def _not_empty(pairs: list[FilePair], root: Path) -> list[FilePair]:
    if pairs:
        return pairs
    raise DataError(
        f"{root}: no images are left to train on once validation and test images are taken out. "
        "Add images, or give target.val and target.test folders of their own."
    )


def _find_list(value: str, base: Path | None, field: str) -> list[str]:
    path = Path(value).expanduser()
    places = [path] if base is None or path.is_absolute() else [path, base / path]
    for place in places:
        if place.is_file():
            lines = (line.strip() for line in place.read_text("utf-8").splitlines())
            names = [line for line in lines if line and not line.startswith("#")]
            if not names:
                raise ConfigError(f"{field}: the list {place} names no image")
            return names
    raise ConfigError(f"{field}: no list file {' or '.join(map(str, places))}")


def _listed(items: Sequence[T], names: Sequence[str], field: str) -> list[T]:
    """Find items by their name, by its end, with or without suffix."""
    by_end: dict[str, list[str]] = {}
    for item in items:
        parts = PurePosixPath(item.name).parts
        for i in range(len(parts)):
            end = PurePosixPath(*parts[i:])
            for key in {end.as_posix(), end.with_suffix("").as_posix()}:
                by_end.setdefault(key, []).append(item.name)
    hits = {name: by_end.get(PurePosixPath(name).as_posix(), []) for name in names}
    bad = [
        f"{name}: {f'{len(found)} images end so' if found else 'not found'}"
        for name, found in hits.items()
        if len(found) != 1
    ]
    if bad:
        example = items[0].name if items else "none, there are no images"
        raise DataError(
            f"{field}: each listed name must be one image's; an image is called, for example, "
            f"{example}:\n{listed(bad)}"
        )
    wanted = {found[0] for found in hits.values()}
    return [item for item in items if item.name in wanted]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
