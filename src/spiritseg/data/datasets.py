"""Opening the images of an experiment: the target's splits, and the proximity domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spiritseg.config import Experiment, Input, Proximity, Scenes, Stage, Target
from spiritseg.data import classes as class_maps
from spiritseg.data import layouts
from spiritseg.data.classes import ClassMap
from spiritseg.data.image_sets import EvalData, Item, LabelledImages, ScenePair, UnlabelledImages
from spiritseg.data.images import Budget
from spiritseg.data.layouts import FilePair
from spiritseg.data.scenes import STYLES
from spiritseg.data.splits import SPLITS, check_disjoint, choose, split_files
from spiritseg.errors import ConfigError, DataError, unknown
from spiritseg.randomness import derive_seed

__all__ = [
    "Domains",
    "Split",
    "TargetImages",
    "hold_out",
    "list_proximity",
    "list_target",
    "open_domains",
    "open_proximity",
    "open_target",
    "open_target_all",
    "resolve_classes",
]

_DEFAULT_SUBSET = int(Target.subset.removeprefix("first:"))

Split = Literal["train", "val", "test"]
TrainingImages = tuple[LabelledImages | None, UnlabelledImages | None]


@dataclass(frozen=True)
class TargetImages:
    """The labelled images by split.

    Args:
        train: what is trained on.
        val: what choices are made on.
        test: what results are reported on.
        classes: of all three.
        report: plain values for a run's record: data set, counts, pixels by class, skipped
            files, warnings.
    """

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages
    classes: ClassMap
    report: dict[str, Any]


@dataclass(frozen=True)
class Domains:
    """All images of an experiment.

    Args:
        target: the labelled images.
        proximity: the unlabelled ones that are trained on, and those held out; both empty
            where there are none.
        input: from decoded images to what a network sees.
    """

    target: TargetImages
    proximity: tuple[UnlabelledImages, UnlabelledImages]
    input: Input

    @property
    def classes(self) -> ClassMap:
        """The classes that the networks learn."""
        return self.target.classes

    @property
    def test(self) -> LabelledImages:
        """The decoded test images with their labels."""
        return self.target.test

    def train(self, stage: Stage) -> TrainingImages:
        """Return the (target, proximity) images that a stage trains on; None for neither.

        Raises:
            ConfigError: where the stage wants proximity images and there are none.
        """
        target = None if stage.images == "proximity" else self.target.train
        proximity = None if stage.images == "target" else self.proximity[0]
        if proximity is not None and len(proximity) == 0:
            raise ConfigError(
                "proximity.root: a stage trains on proximity images, got none. Give their folder."
            )
        return target, proximity

    def styles(self, stage: Stage) -> UnlabelledImages | None:
        """Return the proximity images whose light a stage's target images take; None for none.

        Raises:
            ConfigError: where the stage wants them and there are none.
        """
        if not stage.fourier:
            return None
        if len(self.proximity[0]) == 0:
            raise ConfigError(
                "proximity.root: a stage takes the light of proximity images (fourier), got none. "
                "Give their folder."
            )
        return self.proximity[0]

    def held_out(self) -> dict[str, EvalData]:
        """Return prepared images by domain that no stage trains on, for explained variance."""
        found = {"target": EvalData(self.target.val, self.input)}
        if len(self.proximity[1]):
            found["proximity"] = EvalData(self.proximity[1], self.input)
        return found

    def evaluation(self, split: str) -> EvalData:
        """Return a split's whole images, prepared for a network, with their labels."""
        return EvalData(self._split(split), self.input)

    def names(self, split: str) -> list[str]:
        """Return the names of a split's images, in their order."""
        return self._split(split).names

    def skipped(self) -> list[str]:
        """Return the unreadable files that were left out."""
        target = self.target
        sets = (target.train, target.val, target.test, *self.proximity)
        return sorted({path for images in sets for path in images.skipped})

    def record(self) -> dict[str, Any]:
        """Say what tells these images from others under the same names.

        Returns:
            The classes; and by set how many images there are, a hash of their names and file
            sizes, and of the labelled ones the pixels of each class.
        """
        train, held_out = self.proximity
        sets = {split: self._split(split) for split in SPLITS}
        pixels = self.target.report["pixels"]
        found: dict[str, Any] = {"classes": ", ".join(self.classes.names)}
        for name, labelled in sets.items():
            found[name] = {**labelled.record(), "pixels": pixels.get(name, {})}
        return {**found, "proximity": train.record(), "held out": held_out.record()}

    def warnings(self) -> list[str]:
        """Return what is odd about the labels, such as a class without a pixel."""
        return list(self.target.report["warnings"])

    def _split(self, split: str) -> LabelledImages:
        if split not in SPLITS:
            raise ConfigError(unknown("split", split, SPLITS))
        images: LabelledImages = getattr(self.target, split)
        return images


def open_domains(experiment: Experiment, target_only: bool = False) -> Domains:
    """Open and check all images of an experiment.

    Args:
        experiment: its target, proximity and input are read.
        target_only: leave the proximity images out.

    Returns:
        The images; they share the memory of input.cache_mib.

    Raises:
        ConfigError: where a field cannot be followed.
        DataError: where files are missing, unreadable or inconsistent, or where a proximity
            image is also a val or test image.
    """
    budget = Budget(experiment.input.cache_mib)
    target = open_target_all(experiment.target, experiment.input, budget)
    proximity = Proximity() if target_only else experiment.proximity
    unlabelled = open_proximity(proximity, experiment.input, budget)
    measured = {"val": target.val, "test": target.test}
    check_disjoint(
        {
            "proximity": _files([*unlabelled[0].items, *unlabelled[1].items]),
            "val or test": [pair for images in measured.values() for pair in _files(images.items)],
        }
    )
    return Domains(target, unlabelled, experiment.input)


def open_target_all(target: Target, input: Input, budget: Budget | None = None) -> TargetImages:
    """Open the three splits of the labelled images; see `open_target`.

    Args:
        target: the data set.
        input: crop, memory and what happens to unreadable files.
        budget: memory to share; by default input.cache_mib is used.

    Returns:
        The splits, with a report.

    Raises:
        ConfigError: where a field cannot be followed.
        DataError: as `open_target`; or where an image is in two splits.
    """
    dataset, splits, classes = _open(target, input, SPLITS, budget)
    check_disjoint({name: _files(images.items) for name, images in splits.items()})
    pixels: dict[str, dict[str, int]] = {}
    if dataset != "scenes":  # scenes are rendered when they are wanted
        pixels = {name: images.pixels() for name, images in splits.items()}
        _refuse_unlabelled(pixels["train"], target, dataset)
    report = {
        "dataset": dataset,
        "root": target.root,
        "classes": list(classes.names),
        "subset": target.subset,
        "images": {name: len(images) for name, images in splits.items()},
        "pixels": pixels,
        "skipped": [path for images in splits.values() for path in images.skipped],
        "warnings": [
            f"no pixel of the {name} images is {label}"
            for name, counts in pixels.items()
            for label, count in counts.items()
            if count == 0 and label != "ignored"
        ],
    }
    return TargetImages(splits["train"], splits["val"], splits["test"], classes, report)


def open_target(
    target: Target, input: Input, split: Split, budget: Budget | None = None
) -> LabelledImages:
    """Open one split of the labelled images.

    Every file of it is decoded once, so that a bad one is told before anything is trained; what
    fits stays in memory. `target.subset` chooses among the training images only. See `split_files`
    for where val and test come from.

    Args:
        target: the data set.
        input: crop, memory and what happens to unreadable files.
        split: train, val or test.
        budget: memory to share; by default input.cache_mib is used.

    Returns:
        The images with their labels; `skipped` lists what input.skip_bad left out.

    Raises:
        ConfigError: where a field cannot be followed, or the crop is larger than an image.
        BadImageError: for an unreadable image.
        DataError: for missing folders or files, masks that do not fit their images, or values
            that are not in the class map.
    """
    if split not in SPLITS:
        raise ConfigError(unknown("split", split, SPLITS))
    return _open(target, input, (split,), budget)[1][split]


def open_proximity(
    proximity: Proximity, input: Input, budget: Budget | None = None
) -> tuple[UnlabelledImages, UnlabelledImages]:
    """Open the unlabelled images of a similar domain.

    Headers are read here; pictures are decoded when they are wanted (at once with
    input.skip_bad, which must know them all).

    Args:
        proximity: where they are.
        input: crop, memory and what happens to unreadable files.
        budget: memory to share; by default input.cache_mib is used.

    Returns:
        The images to train on, and those held out; see `hold_out`.

    Raises:
        ConfigError: where a field cannot be followed.
        BadImageError: for an unreadable image.
        DataError: for a missing folder, or one without images.
    """
    whole = list_proximity(proximity, input, budget)
    whole.check_readable(input.skip_bad, decode=input.skip_bad)
    return hold_out(whole, proximity.held_out)


def list_proximity(
    proximity: Proximity, input: Input, budget: Budget | None = None
) -> UnlabelledImages:
    """List the unlabelled images of a similar domain; none of them is opened.

    Args: see `open_proximity`.

    Returns:
        The images; none where no root is given.

    Raises:
        ConfigError: where a field cannot be followed.
        DataError: for a missing folder, or one without images.
    """
    budget = budget or Budget(input.cache_mib)
    items: Sequence[Item] = []
    if proximity.dataset == "scenes":
        items = _scenes(proximity.scenes, "proximity")
    elif proximity.root:
        roots = [proximity.root] if isinstance(proximity.root, str) else proximity.root
        items = _unlabelled_files([Path(root).expanduser() for root in roots])
    elif proximity.dataset == "folder":
        raise ConfigError("proximity.root: expected a folder of images, got nothing")
    if items:
        items = choose(items, proximity.subset, "proximity.subset")
    return UnlabelledImages(items, input.crop, budget)


def hold_out(images: UnlabelledImages, share: float) -> tuple[UnlabelledImages, UnlabelledImages]:
    """Return the images to train on, and a share held out, evenly spaced by name."""
    kept_out = _spaced(images.items, share)
    names = {item.name for item in kept_out}
    train = images.part([item for item in images.items if item.name not in names])
    return train, images.part(kept_out)


def resolve_classes(target: Target, dataset: str, root: Path | None = None) -> ClassMap:
    """Find the class map of a data set.

    Args:
        target: its classes field: road, all, a map of the library, or a YAML file.
        dataset: camvid, cityscapes, ade20k, folder or scenes (CamVid's classes). A folder says
            its classes in a classes.yaml; without one its masks hold 0 background, 1 road, 255
            ignored.
        root: the folder that classes.yaml or the given file may be in.

    Returns:
        From raw mask values to train ids.

    Raises:
        ConfigError: where there is no such map.
    """
    own = root / "classes.yaml" if root is not None and dataset == "folder" else None
    if target.classes in ("road", "all"):
        if dataset != "folder":
            whole = class_maps.named("camvid" if dataset == "scenes" else dataset)
        elif own is not None and own.is_file():
            whole = class_maps.load_class_map(own)
        elif target.classes == "road":
            return class_maps.binary()
        else:
            raise ConfigError(
                "target.classes=all: a folder data set must say its classes. Put a classes.yaml "
                f"with names (and ids) into {root}, or give target.classes=FILE.yaml."
            )
        return whole.road() if target.classes == "road" else whole
    if target.classes in class_maps.NAMED:
        return class_maps.named(target.classes)
    path = Path(target.classes).expanduser()
    if not path.is_file() and root is not None and (root / path).is_file():
        path = root / path
    if not path.is_file():
        names = ("road", "all", *class_maps.NAMED)
        hint = "Or the path of a class-map YAML; there is no such file."
        raise ConfigError(f"target.classes: {unknown('classes', target.classes, names, hint)}")
    return class_maps.load_class_map(path)


def list_target(
    target: Target, input: Input, wanted: Sequence[str], budget: Budget | None = None
) -> tuple[str, dict[str, LabelledImages], ClassMap]:
    """List the labelled images of splits; none of them is opened.

    Args:
        target: the data set.
        input: its cache_mib is read.
        wanted: the splits, of train, val and test.
        budget: memory to share; by default input.cache_mib is used.

    Returns:
        The layout, the images by split, and the classes.

    Raises:
        ConfigError: where a field cannot be followed.
        DataError: for missing folders or files.
    """
    budget = budget or Budget(input.cache_mib)
    if target.dataset == "scenes":
        dataset, root = "scenes", None
        items: dict[str, list[Item]] = {
            split: list(_scenes(target.scenes, split)) for split in wanted
        }
        # The default subset is meant for files: it must not refuse a smaller embedded set.
        if "train" in items and not (
            target.subset == Target.subset and target.scenes.train < _DEFAULT_SUBSET
        ):
            items["train"] = choose(items["train"], target.subset, "target.subset")
    else:
        root = _root(target)
        dataset = layouts.detect(root) if target.dataset == "auto" else target.dataset
        if dataset == "folder" and "train" not in wanted:
            target = replace(target, subset="all")  # a folder's val and test do not depend on it
        pairs = split_files(target, root, dataset, wanted)
        items = {split: list(found) for split, found in pairs.items()}
    classes = resolve_classes(target, dataset, root)
    splits = {split: LabelledImages(found, classes, budget) for split, found in items.items()}
    return dataset, splits, classes


def _open(
    target: Target, input: Input, wanted: Sequence[str], budget: Budget | None
) -> tuple[str, dict[str, LabelledImages], ClassMap]:
    """Open splits and check their files."""
    dataset, splits, classes = list_target(target, input, wanted, budget)
    if "train" in splits:
        splits["train"].check_crop(input.crop)
    for images in splits.values():
        images.check_readable(input.skip_bad)
    return dataset, splits, classes


def _root(target: Target) -> Path:
    if not target.root:
        raise ConfigError(
            "target.root: expected the folder of the labelled images, got nothing; pass "
            "--target.root DIR, or --target.dataset scenes for the embedded scenes"
        )
    return layouts.need_folder(Path(target.root).expanduser(), "target.root")


def _scenes(scenes: Scenes, part: str) -> list[ScenePair]:
    """List the scenes of train, val, test or proximity; each part is a world of its own."""
    counts = {"train": scenes.train, "val": scenes.val, "test": scenes.test}
    count = counts.get(part, scenes.train)
    if count < 1:
        raise ConfigError(f"scenes.{part}: expected 1 or more scenes, got {count}")
    style = STYLES[{"train": "target", "proximity": "proximity"}.get(part, "test")]
    shadows = scenes.train_shadows if part in ("train", "proximity") else scenes.test_shadows
    style = type(style)(shadows, style.camera, style.palette)
    seed = derive_seed("scenes", scenes.seed, part)
    return [
        ScenePair(f"{part}/{index:05d}", seed, index, scenes.size, style) for index in range(count)
    ]


def _unlabelled_files(roots: Sequence[Path]) -> list[FilePair]:
    """List the images of one or several folders; a file that is met again counts once."""
    found: dict[Path, FilePair] = {}
    alone = len({root.name for root in roots}) == len(roots)
    for root in roots:
        images = layouts.find_images(layouts.need_folder(root, "proximity.root"))
        if not images:
            raise DataError(
                f"proximity.root: no images in {root}, at any depth. Expected files with one of "
                f"the suffixes {', '.join(layouts.IMAGE_SUFFIXES)}."
            )
        prefix = "" if len(roots) == 1 else f"{root.name if alone else root.as_posix()}/"
        for path in images:
            name = prefix + path.relative_to(root).as_posix()
            found.setdefault(path.resolve(), FilePair(name, path))
    return list(found.values())


def _spaced(items: Sequence[Item], share: float) -> list[Item]:
    """Take a share of items, evenly spaced; one at least, unless that leaves none to train."""
    if not 0 <= share < 1:
        raise ConfigError(f"proximity.held_out: expected 0 to below 1, got {share}")
    count = min(max(1, round(share * len(items))), len(items) - 1) if share else 0
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _files(items: Sequence[Item]) -> list[FilePair]:
    return [item for item in items if isinstance(item, FilePair)]


def _refuse_unlabelled(train: dict[str, int], target: Target, dataset: str) -> None:
    """Refuse training labels from which nothing can be learnt."""
    labelled = [name for name, count in train.items() if count and name != "ignored"]
    if not labelled:
        raise DataError(
            "all pixels of the training images are ignored (255). Check the class map "
            f"(target.classes={target.classes})."
        )
    if dataset == "folder" and target.classes == "road" and "road" not in labelled:
        raise DataError(
            "no pixel of the training images is road. Masks hold 0 background, 1 road, 255 "
            f"ignored; {train['ignored']} pixels are ignored. Where 255 means road, put a "
            "classes.yaml into target.root: names: [background, road], ids: {0: 0, 255: 1}."
        )
