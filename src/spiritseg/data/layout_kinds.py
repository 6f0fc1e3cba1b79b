"""Kinds of data set layouts: the interface, one folder per split, and any folder of pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from spiritseg.config import Proximity, Target
from spiritseg.data.class_map import ClassMap, binary, load_class_map, named
from spiritseg.data.items import FilePair, Item, ReadLabels, need_folder, pair_up
from spiritseg.data.subsets import SPLITS, choose, draw, from_list, without
from spiritseg.errors import ConfigError, DataError, listed
from spiritseg.images import IMAGE_SUFFIXES, files_below, read_mask

__all__ = ["FolderLayout", "Layout", "SplitLayout"]

_HELD_OUT = 0.1  # of the training images
_NAME = "{split}"  # in a path: the data set's own name of a split


class Layout(ABC):
    """What spiritseg knows of a kind of data set.

    Args:
        help: its folders in a few words.
        needs_root: whether the images lie in a folder, target.root.
        no_road: what to do if no training pixel is road under target.classes=road; empty if that
            is worth a warning only.
    """

    help: str
    needs_root: bool = True
    no_road: str = ""

    @abstractmethod
    def detect(self, root: Path) -> bool:
        """Whether a folder has this layout."""

    @abstractmethod
    def items(
        self, target: Target, root: Path | None, wanted: Sequence[str]
    ) -> Mapping[str, Sequence[Item]]:
        """List the images of splits by name; target.subset is applied to train alone.

        Args:
            target: its subset, val, test and split_seed.
            root: folder of the data set; None if the layout needs none.
            wanted: of train, val and test.

        Raises:
            ConfigError: if a rule of the target cannot be followed.
            DataError: if files are missing or do not pair up.
        """

    @abstractmethod
    def class_map(self, root: Path | None, classes: str) -> ClassMap:
        """Return the class map for target.classes: all, or road (road against background)."""

    def unlabelled(self, proximity: Proximity) -> Sequence[Item]:
        """List images without their labels: all files below one or several proximity.root."""
        given = proximity.root or []
        roots = [Path(root).expanduser() for root in ([given] if isinstance(given, str) else given)]
        found: dict[Path, FilePair] = {}
        alone = len({root.name for root in roots}) == len(roots)
        for root in roots:
            images = files_below(need_folder(root, "proximity.root"))
            if not images:
                raise DataError(
                    f"proximity.root: no images in {root}, at any depth. Expected files with one "
                    f"of the suffixes {', '.join(IMAGE_SUFFIXES)}."
                )
            prefix = "" if len(roots) == 1 else f"{root.name if alone else root.as_posix()}/"
            for path in images:  # a file that is met again counts once
                name = prefix + path.relative_to(root).as_posix()
                found.setdefault(path.resolve(), FilePair(name, path))
        return list(found.values())


@dataclass(frozen=True, kw_only=True)
class SplitLayout(Layout):
    """A data set whose images and masks lie in one folder each per split, at any depth.

    An image and its mask have the same path but for the folder, the ending and the suffix.
    ``{split}`` in a path stands for the data set's own name of a split.

    Args:
        images: folder of a split's images below the root, such as ``leftImg8bit/{split}``.
        masks: folder of its masks, such as ``gtFine/{split}``.
        splits: the data set's names of train, test and, if it has one, val. Otherwise val is a
            tenth of the training images, drawn by target.split_seed from those that target.subset
            leaves out (with subset all, from all).
        classes: its class map, or the name of one that comes with spiritseg.
        image_end: ending of every image's name before the suffix; other files are left out.
        mask_end: ending of every mask's name.
        read_labels: label format: from a mask file to (H, W) raw values of the class map; by
            default a picture of class numbers.

    Raises:
        ConfigError: if train or test has no name, or a path does not name the split.
    """

    images: str
    masks: str
    splits: Mapping[str, str]
    classes: ClassMap | str
    image_end: str = ""
    mask_end: str = ""
    read_labels: ReadLabels = read_mask

    def __post_init__(self) -> None:
        if not {"train", "test"} <= self.splits.keys() <= set(SPLITS):
            raise ConfigError(
                "a layout's splits: expected the data set's own names of train, test and perhaps "
                f"val, got {dict(self.splits)}"
            )
        for path in (self.images, self.masks):
            if _NAME not in path:
                raise ConfigError(f"a layout's folder: expected {_NAME} in it, got {path!r}")

    @property
    def help(self) -> str:  # type: ignore[override]  # computed here, plain elsewhere
        """The folders of its training images."""
        folders = self._folders(Path(), self.splits["train"])
        return " and ".join(f"{folder.as_posix()}/" for folder in folders)

    def detect(self, root: Path) -> bool:
        """Whether the folders of any split are there."""
        names = self.splits.values()
        return any(all(f.is_dir() for f in self._folders(root, name)) for name in names)

    def items(
        self, target: Target, root: Path | None, wanted: Sequence[str]
    ) -> dict[str, list[FilePair]]:
        """List the images of splits; see `SplitLayout` for where val comes from."""
        assert root is not None, "the layout needs a root"
        for field, value in (("val", target.val), ("test", target.test)):
            if value != "auto":
                raise ConfigError(
                    f"target.{field}: {value!r} is for a folder with images/ and masks/; the data "
                    f"set with {self.help} has its own splits. Leave target.{field} out."
                )
        found = {split: self._pairs(root, split) for split in wanted if split in self.splits}
        if "val" not in self.splits and "val" in wanted:
            found.setdefault("train", self._pairs(root, "train"))
        if "train" in found:
            images = found["train"]
            train = choose(images, target.subset, "target.subset", root)
            if "val" not in self.splits:
                train, found["val"] = _hold_out(images, train, target, root)
            found["train"] = train
        return {split: found[split] for split in wanted}

    def class_map(self, root: Path | None, classes: str) -> ClassMap:
        """Return the data set's class map, or road against background."""
        whole = named(self.classes) if isinstance(self.classes, str) else self.classes
        return whole.road() if classes == "road" else whole

    def _pairs(self, root: Path, split: str) -> list[FilePair]:
        name = self.splits[split]
        images, masks = self._folders(root, name)
        ends = (self.image_end, self.mask_end)
        return pair_up(root, images, masks, name, ends, self.read_labels)

    def _folders(self, root: Path, name: str) -> tuple[Path, Path]:
        images, masks = (path.replace(_NAME, name) for path in (self.images, self.masks))
        return root / images, root / masks


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
        pairs = pair_up(root, base / "images", base / "masks", "target")
        inside = _inside(pairs, root)
        rest = inside.get("train", pairs)
        total = len(rest)
        splits: dict[str, list[FilePair]] = {}
        fractions: dict[str, float] = {}
        for split, rule in (("test", target.test), ("val", target.val)):
            if rule == "auto":
                own = split in inside or (root / split).is_dir()
                rule = f"folder:{split}" if own else f"fraction:{_HELD_OUT}"
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
            splits["train"] = choose(_not_empty(rest, root), target.subset, "target.subset", root)
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


def _not_empty(pairs: list[FilePair], root: Path) -> list[FilePair]:
    """Return the training images, or raise a DataError if none is left."""
    if pairs:
        return pairs
    raise DataError(
        f"{root}: no images are left to train on once validation and test images are taken out. "
        "Add images, or give target.val and target.test folders of their own."
    )


def _hold_out(
    images: list[FilePair], train: list[FilePair], target: Target, root: Path
) -> tuple[list[FilePair], list[FilePair]]:
    """Draw validation images that are not in the subset; out of it if it is all of them."""
    rest = without(images, train)
    if not rest and target.subset != "all":
        raise ConfigError(
            f"target.subset: {target.subset} leaves no training image of {len(images)} for "
            "validation. Use all (a tenth is then held out), or fewer images."
        )
    val = draw(rest or images, _HELD_OUT, target.split_seed, "val")
    return _not_empty(without(train, val), root), val


def _has_pairs(base: Path) -> bool:
    return (base / "images").is_dir() and (base / "masks").is_dir()


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
            "their masks into one of the three."
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
        base = root / Path(value).expanduser()
        return pair_up(root, base / "images", base / "masks", field)
    if kind == "list" and value:
        return from_list(pairs, value, field, root)
    if kind == "fraction":
        with suppress(ValueError):
            if 0 < (fraction := float(value)) < 1:
                return fraction
    raise ConfigError(
        f"{field}: expected auto, folder:DIR, list:FILE or fraction:F with F between 0 and 1, "
        f"got {rule!r}"
    )
