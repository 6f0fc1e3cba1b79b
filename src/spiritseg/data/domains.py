"""The images of an experiment: the target's splits, and the proximity domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spiritseg.config import Experiment, Input, Proximity, Stage, Target
from spiritseg.data.cache import Budget
from spiritseg.data.class_map import NAMED, ClassMap, load_class_map, named
from spiritseg.data.datasets import EvalData, LabelledImages, UnlabelledImages
from spiritseg.data.items import Item, need_folder
from spiritseg.data.layouts import LAYOUTS, detect, needs_root
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


@dataclass(frozen=True)
class TargetImages:
    """The labelled images by split.

    Args:
        train: images to train on.
        val: images that choices are made on.
        test: images that results are reported on.
        classes: classes of all three.
        pixels: pixels by split and class; empty for embedded scenes.
    """

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages
    classes: ClassMap
    pixels: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Domains:
    """All images of an experiment.

    Args:
        target: labelled images.
        proximity: unlabelled images to train on, and those held out; both may be empty.
        input: preprocessing.
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

    def train(self, stage: Stage) -> tuple[LabelledImages | None, UnlabelledImages | None]:
        """Return the target and proximity images that a stage trains on; None where unused."""
        target = None if stage.images == "proximity" else self.target.train
        return target, None if stage.images == "target" else self._proximity("trains on")

    def styles(self, stage: Stage) -> UnlabelledImages | None:
        """Return the proximity images whose amplitudes a stage's target images take, or None."""
        return self._proximity("takes the light (fourier) of") if stage.fda_prob else None

    def held_out(self) -> dict[str, EvalData]:
        """Return the images by domain that no stage trains on, for explained variance."""
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
        """Return what tells these images from others: classes, counts, hashes, pixels."""
        train, held_out = self.proximity
        found: dict[str, Any] = {"classes": ", ".join(self.classes.names)}
        for name in SPLITS:
            pixels = self.target.pixels.get(name, {})
            found[name] = {**self._split(name).record(), "pixels": pixels}
        return {**found, "proximity": train.record(), "held out": held_out.record()}

    def warnings(self) -> list[str]:
        """Name the classes without a pixel in a split."""
        return [
            f"no pixel of the {name} images is {label}"
            for name, counts in self.target.pixels.items()
            for label, count in counts.items()
            if count == 0 and label != "ignored"
        ]

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
    """Open and check all images of an experiment, which share the memory of input.cache_mib.

    Args:
        experiment: its target, proximity and input.
        target_only: leave the proximity images out.

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
            "proximity": [*unlabelled[0].items, *unlabelled[1].items],
            "val or test": [*target.val.items, *target.test.items],
        }
    )
    return Domains(target, unlabelled, experiment.input)


def open_target_all(target: Target, input: Input, budget: Budget | None = None) -> TargetImages:
    """Open the three splits of the labelled images; see `open_target`.

    Raises:
        DataError: if an image is in two splits, or no training pixel has a label.
    """
    dataset, splits, classes = _open(target, input, SPLITS, budget)
    check_disjoint({name: images.items for name, images in splits.items()})
    pixels: dict[str, dict[str, int]] = {}
    if needs_root(dataset):  # embedded images are rendered when they are read
        pixels = {name: images.pixels() for name, images in splits.items()}
        _refuse_unlabelled(pixels["train"], target, dataset)
    return TargetImages(splits["train"], splits["val"], splits["test"], classes, pixels)


def open_target(target: Target, input: Input, split: Split) -> LabelledImages:
    """Open one split of the labelled images; `target.subset` is applied to train alone.

    Every file is decoded once, so that a bad one is reported before anything is trained.

    Args:
        target: the data set.
        input: crop, memory and what happens to unreadable files.
        split: train, val or test.

    Returns:
        The images with their labels; `skipped` lists what input.skip_bad left out.

    Raises:
        ConfigError: if a field cannot be followed, or the crop is larger than an image.
        BadImageError: for an unreadable image.
        DataError: for missing files, masks that do not fit their images, or foreign values.
    """
    if split not in SPLITS:
        raise ConfigError(unknown("split", split, SPLITS))
    return _open(target, input, (split,), None)[1][split]


def open_proximity(
    proximity: Proximity, input: Input, budget: Budget | None = None
) -> tuple[UnlabelledImages, UnlabelledImages]:
    """Open the unlabelled images of a similar domain.

    Headers are read here; pictures are decoded when they are read (at once with input.skip_bad,
    which must know them all).

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
    if proximity.dataset != "auto" or proximity.root:
        layout = LAYOUTS["folder" if proximity.dataset == "auto" else proximity.dataset]
        if layout.needs_root and not proximity.root:
            raise ConfigError("proximity.root: expected a folder of images, got nothing")
        items = choose(layout.unlabelled(proximity), proximity.subset, "proximity.subset")
    return UnlabelledImages(items, input.crop, budget or Budget(input.cache_mib))


def hold_out(images: UnlabelledImages, share: float) -> tuple[UnlabelledImages, UnlabelledImages]:
    """Return the images to train on, and a share held out, evenly spaced by name.

    At least one image is held out, unless that leaves none to train on.
    """
    count = min(max(1, round(share * len(images))), len(images) - 1) if share else 0
    rows = set(evenly(max(0, count), len(images), centred=True))
    train = images.part([item for row, item in enumerate(images.items) if row not in rows])
    return train, images.part([images.items[row] for row in sorted(rows)])


def resolve_classes(target: Target, dataset: str, root: Path | None = None) -> ClassMap:
    """Find a data set's class map: of its layout (road, all), of the library, or of a YAML file."""
    if target.classes in ("road", "all"):
        return LAYOUTS[dataset].class_map(root, target.classes)
    if target.classes in NAMED:
        return named(target.classes)
    path = Path(target.classes).expanduser()
    for place in [path, *([root / path] if root else [])]:
        if place.is_file():
            return load_class_map(place)
    hint = "Or the path of a class-map YAML; there is no such file."
    names = ("road", "all", *NAMED)
    raise ConfigError(f"target.classes: {unknown('classes', target.classes, names, hint)}")


def list_target(
    target: Target, input: Input, wanted: Sequence[str], budget: Budget | None = None
) -> tuple[str, dict[str, LabelledImages], ClassMap]:
    """List the labelled images of splits without opening any.

    Returns:
        The name of the layout, the images by split, and the classes.

    Raises:
        ConfigError: if a field cannot be followed.
        DataError: for missing folders or files.
    """
    budget = budget or Budget(input.cache_mib)
    dataset, root = target.dataset, None
    if needs_root(dataset):
        if not target.root:
            raise ConfigError(
                "target.root: expected the folder of the labelled images, got nothing; pass "
                "--target.root DIR, or --target.dataset scenes for the embedded scenes"
            )
        root = need_folder(Path(target.root).expanduser(), "target.root")
        dataset = detect(root) if dataset == "auto" else dataset
    items = LAYOUTS[dataset].items(target, root, wanted)
    classes = resolve_classes(target, dataset, root)
    splits = {split: LabelledImages(found, classes, budget) for split, found in items.items()}
    return dataset, splits, classes


def _open(
    target: Target, input: Input, wanted: Sequence[str], budget: Budget | None
) -> tuple[str, dict[str, LabelledImages], ClassMap]:
    """Open splits and check their files."""
    dataset, splits, classes = list_target(target, input, wanted, budget)
    for images in splits.values():
        images.check_readable(input.skip_bad)
    if "train" in splits:
        splits["train"].check_crop(input.crop)
    return dataset, splits, classes


def _refuse_unlabelled(train: Mapping[str, int], target: Target, dataset: str) -> None:
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
