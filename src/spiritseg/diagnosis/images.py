"""Images and labels: every file, which classes they show, whether crops fit."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from spiritseg.config import Experiment, Proximity
from spiritseg.cores import usable_cores
from spiritseg.data.augment import fit, prepare
from spiritseg.data.cache import Budget, Cache
from spiritseg.data.class_map import IGNORED, ClassMap
from spiritseg.data.datasets import LabelledImages, UnlabelledImages
from spiritseg.data.domains import (
    Domains,
    TargetImages,
    hold_out,
    list_proximity,
    open_target,
    resolve_classes,
)
from spiritseg.data.items import FilePair, Item, ScenePair, need_folder
from spiritseg.data.layouts import detect, needs_root, split_files
from spiritseg.data.sampling import stage_input
from spiritseg.data.subsets import SPLITS, check_disjoint, evenly
from spiritseg.diagnosis.findings import Section
from spiritseg.errors import BadImageError, SpiritsegError, listed

__all__ = ["Images", "examine_images"]

_SAMPLES = 8  # training images that networks are looked at with
_FEW = 20  # images of a split: below, one is more than 5 points of HP-Acc
_DECODED = 512  # unlabelled images that are decoded, of however many
_SCENES = 24  # scenes of a split that are rendered: the others are like them
_NO_CLASSES = 2  # assumed where the class map cannot be read
_ENLARGED = 1.5


@dataclass
class Images:
    """What is known of an experiment's images.

    Args:
        section: the findings.
        num_classes: K, the background included.
        classes: their names; empty where the class map cannot be read.
        samples: prepared training images (1, 3, h, w) in [0, 1]; empty where none is readable.
        size: (H, W) of an image as a network sees it in evaluation.
        domains: the opened images; None where something is wrong with them.
        nbytes: of all images, decoded.
        pixels: pixels of each class by split.
    """

    section: Section
    num_classes: int = _NO_CLASSES
    classes: tuple[str, ...] = ()
    samples: list[Tensor] = field(default_factory=list)
    size: tuple[int, int] = (128, 128)
    domains: Domains | None = None
    nbytes: int = 0
    pixels: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class _Looked:
    """What a look at each image of a split gave: pixels and images by class."""

    pixels: Tensor  # (256,)
    shown: list[Tensor]  # (256,) an image
    names: list[str]
    total: int


def examine_images(experiment: Experiment) -> Images:
    """Open and decode all images; note everything that is wrong with them, not only the first.

    Args:
        experiment: its target, proximity, input and stages are read.
    """
    found = Images(Section("Images and labels"))
    budget = Budget(experiment.input.cache_mib)
    splits = _open_splits(experiment, found, budget)
    proximity = _open_proximity(experiment, found.section, budget)
    looked = {name: _look(name, images, experiment, found) for name, images in splits.items()}
    classes = next((images.classes for images in splits.values()), None)
    if classes is not None:
        _classes(found, classes, looked)
    _few(found.section, splits)
    _overlap(found.section, splits, proximity)
    if "train" in splits and len(splits["train"]):
        train = splits["train"]
        _crops(found.section, experiment, train, proximity)
        found.samples = _samples(train, experiment)
        test = splits.get("test", train)
        found.size = _whole_size(test, experiment.input.pool) if len(test) else found.size
    if proximity is not None:
        found.nbytes += sum(_proximity_bytes(one, experiment.input.crop) for one in proximity)
    whole = all(finding.level != "problem" for finding in found.section.findings)
    if whole and classes is not None and len(splits) == len(SPLITS):
        target = TargetImages(splits["train"], splits["val"], splits["test"], classes, {})
        empty = UnlabelledImages([])
        found.domains = Domains(target, proximity or (empty, empty), experiment.input)
    return found


def _few(section: Section, splits: dict[str, LabelledImages]) -> None:
    """Warn of figures that a single image decides."""
    for name in ("val", "test"):
        if 0 < (count := len(splits.get(name, ()))) < _FEW:
            section.warn(
                f"{name}: {count} images; one image is {100 / count:.0f} points of HP-Acc. Give "
                f"more by target.{name}, such as folder:DIR or fraction:0.3"
            )


def _open_splits(
    experiment: Experiment, found: Images, budget: Budget
) -> dict[str, LabelledImages]:
    """List the images of each split, decoding none of them; a split that fails is left out."""
    target = experiment.target
    if needs_root(target.dataset) and not target.root:
        return {}  # the recipe's section says so
    root: Path | None = None
    dataset: str = target.dataset
    splits: dict[str, LabelledImages] = {}
    try:
        if needs_root(dataset):
            root = need_folder(Path(target.root or "").expanduser(), "target.root")
            dataset = detect(root) if dataset == "auto" else dataset
        classes = resolve_classes(target, dataset, root)
        found.num_classes, found.classes = len(classes), classes.names
    except SpiritsegError as error:
        found.section.problem(str(error))
        return {}
    said: set[str] = set()
    for split in SPLITS:
        try:
            if root is None:
                small = replace(experiment.input, crop=1)
                splits[split] = open_target(target, small, split, budget)  # type: ignore[arg-type]
            else:
                pairs = split_files(target, root, dataset, [split])[split]
                splits[split] = LabelledImages(pairs, classes, budget)
        except SpiritsegError as error:
            if str(error) not in said:  # one fault may stop all splits
                found.section.problem(str(error))
            said.add(str(error))
    return splits


def _open_proximity(
    experiment: Experiment, section: Section, budget: Budget
) -> tuple[UnlabelledImages, UnlabelledImages] | None:
    given: Proximity = experiment.proximity
    if needs_root(given.dataset) and not given.root:
        return None
    tolerant = replace(experiment.input, skip_bad=True)
    try:
        whole = list_proximity(given, tolerant, budget)
        whole.check_readable(True, decode=False)
        train, held_out = hold_out(whole, given.held_out)
    except SpiritsegError as error:
        section.problem(str(error))
        return None
    bad, count = _decode_some(train)
    if skipped := sorted({*train.skipped, *bad}):
        _bad_images(section, "proximity", skipped, experiment.input.skip_bad)
    section.ok(
        f"proximity: {len(train)} for training, {len(held_out)} held out; headers of all read, "
        f"{count} decoded"
    )
    return train, held_out


def _decode_some(images: UnlabelledImages) -> tuple[list[str], int]:
    """Decode evenly spaced images and keep none; return those that cannot be, and the number."""
    count = min(len(images), _DECODED)
    unkept = images.part([images.items[i] for i in evenly(count, len(images))])
    unkept.cache = Cache(Budget(0))
    bad: list[str] = []

    def look(index: int) -> None:
        try:
            unkept[index]
        except BadImageError as error:
            bad.append(str(error.path))

    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        list(pool.map(look, range(count)))
    return bad, count


def _bad_images(section: Section, what: str, lines: Sequence[str], skip_bad: bool) -> None:
    said = f"{what}: {len(lines)} unreadable images\n{listed(list(lines))}"
    if skip_bad:
        section.warn(f"{said}\nThey are left out (input.skip_bad).")
    else:
        section.problem(said, "replace the files, or leave such files out with --skip-bad")


def _look(name: str, images: LabelledImages, experiment: Experiment, found: Images) -> _Looked:
    """Decode a split; bad images leave it, and are noted with bad masks."""
    count = total = len(images)
    if any(isinstance(item, ScenePair) for item in images.items):
        count = min(count, _SCENES)
    shown: dict[int, Tensor] = {}
    bad: dict[int, BadImageError] = {}
    wrong: dict[int, str] = {}
    sizes: dict[int, int] = {}

    def look(index: int) -> None:
        try:
            image, labels = images[index]
        except BadImageError as error:
            bad[index] = error
        except SpiritsegError as error:
            wrong[index] = str(error)
        else:
            shown[index] = torch.bincount(labels.flatten(), minlength=256)
            sizes[index] = image.nbytes + labels.nbytes

    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        list(pool.map(look, range(count)))
    if wrong:
        lines = [wrong[i] for i in sorted(wrong)]
        found.section.problem(f"{name}: {len(wrong)} masks do not fit\n{listed(lines)}")
    if bad:
        lines = [f"{bad[i].path}: {bad[i].reason}" for i in sorted(bad)]
        _bad_images(found.section, name, lines, experiment.input.skip_bad)
    good = sorted(shown)
    names = [images.names[i] for i in good]
    mean = sum(sizes.values()) / max(1, len(sizes))
    found.nbytes += round(mean * (len(images) - len(bad) - len(wrong)))
    images.items = [item for i, item in enumerate(images.items) if i not in bad and i not in wrong]
    if total and not images.items:
        found.section.problem(f"{name}: no image is left")
    pixels = torch.stack([shown[i] for i in good]).sum(0) if good else torch.zeros(256).long()
    return _Looked(pixels, [shown[i] for i in good], names, total)


def _classes(found: Images, classes: ClassMap, looked: dict[str, _Looked]) -> None:
    """Say which classes each split shows, and where that is too little."""
    section = found.section
    for name, one in looked.items():
        count = f"{len(one.names)} of {one.total} images looked at"
        section.ok(f"{name}: {count}, {len(classes)} classes")
        found.pixels[name] = {
            **{label: int(one.pixels[i]) for i, label in enumerate(classes.names)},
            "ignored": int(one.pixels[IGNORED]),
        }
    section.tables["pixels of each class in % (images that show it)"] = _table(classes, looked)
    train = looked.get("train")
    if train is None or not train.names:
        return
    total = int(train.pixels.sum())
    if int(train.pixels[IGNORED]) == total:
        section.problem(
            "all pixels of the training images are ignored (255)",
            "check the class map (target.classes)",
        )
        return
    for index, label in enumerate(classes.names):
        if int(train.pixels[index]):
            continue
        others = [n for n, one in looked.items() if n != "train" and int(one.pixels[index])]
        if others:
            section.warn(
                f"no training image shows {label}, {' and '.join(others)} do: it cannot be learnt",
                "choose other images (target.subset, such as even:64), or merge the class",
            )
        else:
            section.warn(f"no image shows {label}", "check the class map (target.classes)")
    _without_road(section, classes, looked)
    if int(train.pixels[IGNORED]) > total // 2:
        share = 100 * int(train.pixels[IGNORED]) / total
        section.warn(
            f"{share:.0f} % of the training pixels are ignored",
            "check that target.classes names all values of the masks",
        )


def _without_road(section: Section, classes: ClassMap, looked: dict[str, _Looked]) -> None:
    roads = [i for i, label in enumerate(classes.names) if label.lower() == "road"]
    for name, one in looked.items():
        for road in roads:
            pairs = zip(one.names, one.shown, strict=True)
            without = [image for image, shown in pairs if not int(shown[road])]
            if without and len(without) == len(one.names):
                section.problem(
                    f"no {name} image shows any road",
                    "masks of a folder hold 0 background, 1 road, 255 ignored; otherwise name "
                    "their values in a classes.yaml",
                )
            elif without:
                section.warn(
                    f"{len(without)} of {len(one.names)} {name} images show no road:\n"
                    f"{listed(without, 5)}"
                )


def _table(classes: ClassMap, looked: dict[str, _Looked]) -> list[list[str]]:
    rows = [["class", *looked]]
    for index, label in [*enumerate(classes.names), (IGNORED, "(ignored)")]:
        row = [label]
        for one in looked.values():
            total = max(1, int(one.pixels.sum()))
            images = sum(bool(shown[index]) for shown in one.shown)
            row.append(f"{100 * int(one.pixels[index]) / total:.2f} ({images})")
        rows.append(row)
    return rows


def _overlap(
    section: Section,
    splits: dict[str, LabelledImages],
    proximity: tuple[UnlabelledImages, UnlabelledImages] | None,
) -> None:
    sets = {name: _files(images.items) for name, images in splits.items()}
    pairs = [sets]
    if proximity is not None:
        measured = [*sets.get("val", []), *sets.get("test", [])]
        unlabelled = _files([*proximity[0].items, *proximity[1].items])
        pairs.append({"proximity": unlabelled, "val or test": measured})
    for one in pairs:
        try:
            check_disjoint(one)
        except SpiritsegError as error:
            section.problem(str(error))


def _files(items: Sequence[Item]) -> list[FilePair]:
    return [item for item in items if isinstance(item, FilePair)]


def _crops(
    section: Section,
    experiment: Experiment,
    train: LabelledImages,
    proximity: tuple[UnlabelledImages, UnlabelledImages] | None,
) -> None:
    given = experiment.input
    smallest = min((min(size) for size in _sizes(train.items)), default=given.crop)
    try:
        train.check_crop(given.crop)
    except SpiritsegError as error:
        section.problem(str(error), f"the smallest side is {smallest}: --input.crop {smallest}")
    else:
        sides = f"{given.crop} x {given.crop}, {given.crop // given.pool} after the max-pool"
        section.ok(f"the crop fits all training images: {sides}")
        least, field = _least_scale(experiment)
        window = given.crop / least
        if window > smallest:
            section.warn(
                f"{field} {least:g} asks for windows of up to {window:.0f} pixels, "
                f"the smallest side is {smallest}: the rest is black padding",
                "a smaller crop, or a scale closer to 1",
            )
    if proximity is None:
        return
    sizes = _sizes([*proximity[0].items, *proximity[1].items])
    factors = [given.crop / min(size) for size in sizes if min(size) < given.crop]
    if factors:
        said = (
            f"{len(factors)} of {len(sizes)} proximity images are enlarged so that the crop fits, "
            f"by up to {max(factors):.2f}"
        )
        if max(factors) > _ENLARGED:
            section.warn(said, "larger images, or a smaller crop")
        else:
            section.ok(said)
    else:
        section.ok("the crop fits all proximity images")


def _least_scale(experiment: Experiment) -> tuple[float, str]:
    """Return the least scale at which a stage sees labelled images, and the field that says it."""
    found = [(1.0, "input.scale")]
    for name, stage in experiment.stages.items():
        if stage.images != "proximity":
            field = "input.scale" if stage.scale is None else f"stages.{name}.scale"
            found.append((stage_input(experiment.input, stage).scale[0], field))
    return min(found)


def _sizes(items: Sequence[Item]) -> list[tuple[int, int]]:
    found = []
    for item in items:
        try:
            found.append(item.size)
        except BadImageError:
            continue  # told elsewhere
    return found


def _proximity_bytes(images: UnlabelledImages, crop: int) -> int:
    total = 0
    for height, width in _sizes(images.items):
        scale = max(1.0, crop / min(height, width))
        total += round(3 * height * width * scale**2)
    return total


def _samples(train: LabelledImages, experiment: Experiment) -> list[Tensor]:
    count = min(_SAMPLES, len(train))
    rows = evenly(count, len(train))
    side = 32 * experiment.input.pool  # networks cannot take less
    return [prepare(fit(train[row][0], side), experiment.input)[None] for row in rows]


def _whole_size(images: LabelledImages, pool: int) -> tuple[int, int]:
    height, width = _sizes(images.items[:1])[0]
    return -(-height // pool), -(-width // pool)
