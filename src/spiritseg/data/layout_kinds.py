"""Kinds of data set layouts: the interface, and images and masks in one folder each a split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spiritseg.config import Proximity, Target
from spiritseg.data.class_map import ClassMap, named
from spiritseg.data.items import FilePair, Item, ReadLabels, need_folder, pair_up
from spiritseg.data.subsets import SPLITS, choose, draw, without
from spiritseg.errors import ConfigError, DataError
from spiritseg.images import IMAGE_SUFFIXES, find_images, read_mask

__all__ = ["Layout", "SplitLayout", "not_empty", "unlabelled_files"]

_HELD_OUT = 0.1  # of the training images that the subset leaves
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
        """List the images of splits.

        Args:
            target: its subset, val, test and split_seed are read.
            root: folder of the data set; None if the layout needs none.
            wanted: of train, val and test.

        Returns:
            The images by split, sorted by name; target.subset is applied to train alone.

        Raises:
            ConfigError: if a rule of the target cannot be followed.
            DataError: if files are missing or do not pair up.
        """

    @abstractmethod
    def class_map(self, root: Path | None, classes: str) -> ClassMap:
        """Return the class map for target.classes: all, or road (road against background)."""

    def unlabelled(self, proximity: Proximity) -> Sequence[Item]:
        """List images without their labels: all files below proximity.root."""
        return unlabelled_files(proximity)


@dataclass(frozen=True, kw_only=True)
class SplitLayout(Layout):
    """A data set whose images and masks lie in one folder each a split, at any depth.

    An image and its mask have the same path but for the folder, the ending and the suffix.
    ``{split}`` in a path stands for the data set's own name of a split.

    Args:
        images: folder of a split's images below the root, such as ``leftImg8bit/{split}``.
        masks: folder of its masks, such as ``gtFine/{split}``.
        splits: the data set's names of train, test and, if it has one, val. Without val, a tenth
            of the training images that target.subset leaves is held out, drawn by
            target.split_seed; with subset all, that tenth is taken out of training. So the
            official validation images of a benchmark with withheld test labels can be the test.
        classes: its class map, or the name of one that comes with spiritseg.
        image_end: last part of every image's name before the suffix; other files are left out.
        mask_end: the same of every mask.
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
        """Check the fields."""
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
        """Its folders in a few words."""
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


def not_empty(pairs: list[FilePair], root: Path) -> list[FilePair]:
    """Return the training images, or raise a DataError if none is left."""
    if pairs:
        return pairs
    raise DataError(
        f"{root}: no images are left to train on once validation and test images are taken out. "
        "Add images, or give target.val and target.test folders of their own."
    )


def unlabelled_files(proximity: Proximity) -> list[FilePair]:
    """List the images of one or several folders; a file that is met again counts once.

    Raises:
        DataError: if a folder is missing or has no image.
    """
    given = proximity.root or []
    roots = [Path(root).expanduser() for root in ([given] if isinstance(given, str) else given)]
    found: dict[Path, FilePair] = {}
    alone = len({root.name for root in roots}) == len(roots)
    for root in roots:
        images = find_images(need_folder(root, "proximity.root"))
        if not images:
            raise DataError(
                f"proximity.root: no images in {root}, at any depth. Expected files with one of "
                f"the suffixes {', '.join(IMAGE_SUFFIXES)}."
            )
        prefix = "" if len(roots) == 1 else f"{root.name if alone else root.as_posix()}/"
        for path in images:
            name = prefix + path.relative_to(root).as_posix()
            found.setdefault(path.resolve(), FilePair(name, path))
    return list(found.values())


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
    return not_empty(without(train, val), root), val
