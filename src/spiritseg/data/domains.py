"""The images of an experiment: the target's splits, and the proximity domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spiritseg.config import Experiment, Input, Proximity, Stage, Target
from spiritseg.data import class_map as class_maps
from spiritseg.data.cache import Budget
from spiritseg.data.class_map import ClassMap
from spiritseg.data.datasets import EvalData, LabelledImages, UnlabelledImages
from spiritseg.data.items import FilePair, Item, need_folder
from spiritseg.data.layout_kinds import unlabelled_files
from spiritseg.data.layouts import LAYOUTS, detect, needs_root, split_files
from spiritseg.data.subsets import SPLITS, check_disjoint, choose, evenly
from spiritseg.errors import ConfigError, DataError, unknown

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

Split = Literal["train", "val", "test"]
TrainingImages = tuple[LabelledImages | None, UnlabelledImages | None]


@dataclass(frozen=True)
class TargetImages:
    """The labelled images by split.

    Args:
        train: images to train on.
        val: images that choices are made on.
        test: images that results are reported on.
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
        proximity: the unlabelled ones to train on, and those held out; both may be empty.
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
            ConfigError: if the stage takes proximity images and there are none.
        """
        target = None if stage.images == "proximity" else self.target.train
        return target, None if stage.images == "target" else self._proximity("trains on")

    def styles(self, stage: Stage) -> UnlabelledImages | None:
        """Return the proximity images whose amplitudes a stage's target images take, or None.

        Raises:
            ConfigError: if the stage takes them and there are none.
        """
        return self._proximity("takes the light (fourier) of") if stage.fourier else None

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
        """Return what tells these images from others of the same names.

        Returns:
            The classes; and by set how many images there are, a hash of their names and file
            sizes, and of the labelled ones the pixels of each class.
        """
        train, held_out = self.proximity
        pixels = self.target.report["pixels"]
        found: dict[str, Any] = {"classes": ", ".join(self.classes.names)}
        for name in SPLITS:
            found[name] = {**self._split(name).record(), "pixels": pixels.get(name, {})}
        return {**found, "proximity": train.record(), "held out": held_out.record()}

    def warnings(self) -> list[str]:
        """Return what is odd about the labels, such as a class without a pixel."""
        return list(self.target.report["warnings"])

    def _proximity(self, use: str) -> UnlabelledImages:
        if len(self.proximity[0]) == 0:
            raise ConfigError(
                f"proximity.root: a stage {use} proximity images, got none. Give their folder."
            )
        return self.proximity[0]

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
        ConfigError: if a field cannot be followed.
        DataError: if files are missing, unreadable or inconsistent, or a proximity image is also
            a val or test image.
    """
    budget = Budget(experiment.input.cache_mib)
    target = open_target_all(experiment.target, experiment.input, budget)
    proximity = Proximity() if target_only else experiment.proximity
    unlabelled = open_proximity(proximity, experiment.input, budget)
    check_disjoint(
        {
            "proximity": _files([*unlabelled[0].items, *unlabelled[1].items]),
            "val or test": _files([*target.val.items, *target.test.items]),
        }
    )
    return Domains(target, unlabelled, experiment.input)


def open_target_all(target: Target, input: Input, budget: Budget | None = None) -> TargetImages:
    """Open the three splits of the labelled images, with a report; see `open_target`.

    Raises:
        DataError: if an image is in two splits, or no training pixel has a label.
    """
    dataset, splits, classes = _open(target, input, SPLITS, budget)
    check_disjoint({name: _files(images.items) for name, images in splits.items()})
    pixels: dict[str, dict[str, int]] = {}
    if needs_root(dataset):  # embedded images are rendered when they are read
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

    Every file of it is decoded once, so that a bad one is reported before anything is trained;
    what fits stays in memory. `target.subset` chooses among the training images only.

    Args:
        target: the data set.
        input: crop, memory and what happens to unreadable files.
        split: train, val or test.
        budget: memory to share; by default input.cache_mib.

    Returns:
        The images with their labels; `skipped` lists what input.skip_bad left out.

    Raises:
        ConfigError: if a field cannot be followed, or the crop is larger than an image.
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

    Headers are read here; pictures are decoded when they are read (at once with input.skip_bad,
    which must know them all).

    Args:
        proximity: where they are.
        input: crop, memory and what happens to unreadable files.
        budget: memory to share; by default input.cache_mib.

    Returns:
        The images to train on, and those held out; both empty if no root is given.

    Raises:
        ConfigError: if a field cannot be followed.
        BadImageError: for an unreadable image.
        DataError: for a missing folder, or one without images.
    """
    whole = list_proximity(proximity, input, budget)
    whole.check_readable(input.skip_bad, decode=input.skip_bad)
    return hold_out(whole, proximity.held_out)


def list_proximity(
    proximity: Proximity, input: Input, budget: Budget | None = None
) -> UnlabelledImages:
    """List the unlabelled images of a similar domain without opening any; see `open_proximity`."""
    items: Sequence[Item] = []
    if proximity.dataset != "auto":
        if needs_root(proximity.dataset) and not proximity.root:
            raise ConfigError("proximity.root: expected a folder of images, got nothing")
        items = LAYOUTS[proximity.dataset].unlabelled(proximity)
    elif proximity.root:
        items = unlabelled_files(proximity)
    if items:
        items = choose(items, proximity.subset, "proximity.subset")
    return UnlabelledImages(items, input.crop, budget or Budget(input.cache_mib))


def hold_out(images: UnlabelledImages, share: float) -> tuple[UnlabelledImages, UnlabelledImages]:
    """Return the images to train on, and a share held out, evenly spaced by name.

    At least one image is held out, unless that leaves none to train on.

    Raises:
        ConfigError: if the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"proximity.held_out: expected 0 to below 1, got {share}")
    count = min(max(1, round(share * len(images))), len(images) - 1) if share else 0
    rows = set(evenly(max(0, count), len(images), centred=True))
    train = images.part([item for row, item in enumerate(images.items) if row not in rows])
    return train, images.part([images.items[row] for row in sorted(rows)])


def resolve_classes(target: Target, dataset: str, root: Path | None = None) -> ClassMap:
    """Find the class map of a data set.

    Args:
        target: its classes field: road, all, a map of the library, or a YAML file.
        dataset: name of the layout.
        root: the folder that the layout's classes or the given file may be in.

    Returns:
        From raw mask values to train ids.

    Raises:
        ConfigError: if there is no such map.
    """
    if target.classes in ("road", "all"):
        return LAYOUTS[dataset].class_map(root, target.classes)
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
    """List the labelled images of splits without opening any.

    Args:
        target: the data set.
        input: its cache_mib is read.
        wanted: of train, val and test.
        budget: memory to share; by default input.cache_mib.

    Returns:
        The name of the layout, the images by split, and the classes.

    Raises:
        ConfigError: if a field cannot be followed.
        DataError: for missing folders or files.
    """
    budget = budget or Budget(input.cache_mib)
    dataset, root = target.dataset, None
    if needs_root(dataset):
        root = _root(target)
        dataset = detect(root) if dataset == "auto" else dataset
    items = split_files(target, root, dataset, wanted)
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
    return need_folder(Path(target.root).expanduser(), "target.root")


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
    hint = LAYOUTS[dataset].no_road
    if hint and target.classes == "road" and "road" not in labelled:
        raise DataError(
            f"no pixel of the training images is road; {train['ignored']} are ignored. {hint}"
        )
