"""Images: every file is opened once; do all decode, do splits overlap, does the crop fit?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from spiritseg.config import Input
from spiritseg.cores import usable_cores
from spiritseg.data.augment import fit, prepare
from spiritseg.data.cache import Budget
from spiritseg.data.class_map import ClassMap
from spiritseg.data.datasets import LabelledImages, UnlabelledImages
from spiritseg.data.domains import (
    Domains,
    TargetImages,
    hold_out,
    list_proximity,
    list_target,
)
from spiritseg.data.items import ScenePair
from spiritseg.data.sampling import stage_input
from spiritseg.data.subsets import SPLITS, check_disjoint
from spiritseg.doctor.findings import Examination, Known
from spiritseg.doctor.labels import examine_labels
from spiritseg.errors import BadImageError, SpiritsegError, listed

__all__ = ["examine_images"]

_SAMPLES = 8  # training images that networks are examined with
_FEW = 20  # images of a split: below, one is more than 5 points of HP-Acc
_DECODED = 512  # unlabelled images that are decoded, of however many
_SCENES = 24  # scenes of a split that are rendered: the others are like them
_ENLARGED = 1.5

Size = tuple[int, int]
Proximity = tuple[UnlabelledImages, UnlabelledImages]


@dataclass(frozen=True)
class _Seen:
    """What one opening of an image showed; bytes and seconds of a decoded one only."""

    size: Size
    nbytes: int = 0
    seconds: float = 0.0
    pixels: Tensor | None = None  # (256,) of each class
    sample: Tensor | None = None


def examine_images(found: Examination, known: Known) -> None:
    """Open all images and add everything that is wrong with them, not only the first."""
    given = known.experiment
    budget = Budget(given.input.cache_mib)
    splits, classes = _list_splits(found, known, budget)
    seen = {name: _look_at_labelled(found, known, name, one) for name, one in splits.items()}
    proximity, proximity_sizes = _look_at_proximity(found, known, budget)
    if classes is not None:
        pixels = {
            name: {splits[name].names[i]: one.pixels for i, one in enumerate(those)}
            for name, those in seen.items()
        }
        examine_labels(found, classes, pixels)
    for name in ("val", "test"):
        if 0 < (count := len(splits.get(name, ()))) < _FEW:
            found.warn(
                name,
                f"{count} images; one image is {100 / count:.0f} points of HP-Acc",
                f"give more by target.{name}, such as folder:DIR or fraction:0.3",
            )
    _check_overlap(found, splits, proximity)
    if train := seen.get("train"):
        sizes = {name: one.size for name, one in zip(splits["train"].names, train, strict=True)}
        _check_crop(found, known, sizes)
        known.samples = [one.sample for one in train if one.sample is not None]
        height, width = (seen.get("test") or train)[0].size
        known.size = -(-height // given.input.pool), -(-width // given.input.pool)
    _check_enlarged(found, given.input.crop, proximity_sizes)
    sound = all(finding.level != "problem" for finding in found.findings)
    if sound and classes is not None and len(splits) == len(SPLITS):
        target = TargetImages(splits["train"], splits["val"], splits["test"], classes, {})
        empty = UnlabelledImages([])
        known.domains = Domains(target, proximity or (empty, empty), given.input)


def _list_splits(
    found: Examination, known: Known, budget: Budget
) -> tuple[dict[str, LabelledImages], ClassMap | None]:
    """List the images of each split; a split that fails is left out."""
    target = known.experiment.target
    splits: dict[str, LabelledImages] = {}
    classes: ClassMap | None = None
    errors: dict[str, None] = {}
    if target.dataset == "scenes" or target.root:  # else the recipe's examination says so
        for split in SPLITS:
            try:
                _, some, classes = list_target(target, known.experiment.input, [split], budget)
                splits |= some
            except SpiritsegError as error:
                errors[str(error)] = None  # one fault may stop all splits
    for message in errors:
        found.refused("target", message)
    if classes is not None:
        known.num_classes, known.classes = len(classes), classes.names
    return splits, classes


def _look_at_labelled(
    found: Examination, known: Known, name: str, images: LabelledImages
) -> list[_Seen]:
    """Decode a split; images and masks that fail leave it. Return what was seen of the others."""
    total = len(images)
    seen, failed = _look(known, name, images, total, _SAMPLES if name == "train" else 0)
    wrong = [str(e) for e in failed if not isinstance(e, BadImageError)]
    if wrong:
        found.problem(name, f"{len(wrong)} masks do not fit\n{listed(wrong)}", "mend these masks")
    _report_bad(found, name, failed, known.experiment.input)
    of = _drives(images.names) if name == "test" and images.items else ""
    found.ok(name, f"{len(seen)} of {total} images{of}, {len(images.classes)} classes")
    if total and not seen:
        found.problem(name, "no image is left", "replace the files")
    seconds = _add_bytes(known, seen)
    scenes = any(isinstance(item, ScenePair) for item in images.items)
    known.read_s += seconds if scenes else seconds / min(8, usable_cores())  # files: in threads
    return seen


def _look_at_proximity(
    found: Examination, known: Known, budget: Budget
) -> tuple[Proximity | None, list[Size]]:
    """Decode some of the unlabelled images, and read the headers of the others."""
    given, input = known.experiment.proximity, known.experiment.input
    if given.dataset != "scenes" and not given.root:
        return None, []
    try:
        images = list_proximity(given, input, budget)
    except SpiritsegError as error:
        found.refused("proximity", str(error))
        return None, []
    unkept = UnlabelledImages(images.items)  # decoded as they are, and not kept in memory
    seen, failed = _look(known, "proximity", unkept, _DECODED)
    images.items = unkept.items
    _report_bad(found, "proximity", failed, input)
    parts = hold_out(images, given.held_out)
    found.ok(
        "proximity",
        f"{len(parts[0])} images for training, {len(parts[1])} held out; "
        f"{sum(one.nbytes > 0 for one in seen)} were decoded, of the others the headers were read",
    )
    seconds = _add_bytes(known, seen)
    stages = known.experiment.stages.values()
    if known.images_fit and any(stage.images != "target" or stage.fda_prob for stage in stages):
        known.read_s += seconds
    return parts, [one.size for one in seen]


def _look(
    known: Known,
    name: str,
    images: LabelledImages | UnlabelledImages,
    decoded: int,
    samples: int = 0,
) -> tuple[list[_Seen], list[SpiritsegError]]:
    """Open images in threads, and take those that fail out; return what was seen, and errors."""
    given, items = known.experiment.input, images.items
    some = set(_spaced(len(items), decoded))
    sampled = set(_spaced(len(items), samples))

    def look(index: int) -> _Seen | SpiritsegError:
        item = items[index]
        try:
            if index not in some or (isinstance(item, ScenePair) and index >= _SCENES):
                return _Seen(item.size)
            started = time.perf_counter()
            got = images[index]
            seconds = time.perf_counter() - started
        except SpiritsegError as error:
            return error
        image, labels = got if isinstance(got, tuple) else (got, None)
        nbytes = image.nbytes + (0 if labels is None else labels.nbytes)
        pixels = None if labels is None else torch.bincount(labels.flatten(), minlength=256)
        side = 32 * given.pool  # networks cannot take less
        sample = prepare(fit(image, side), given)[None] if index in sampled else None
        return _Seen((image.shape[1], image.shape[2]), nbytes, seconds, pixels, sample)

    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        work = pool.map(look, range(len(items)))
        results = list(known.tracked(work, f"{name} images", len(items)))
    images.items = [i for i, one in zip(items, results, strict=True) if isinstance(one, _Seen)]
    seen = [one for one in results if isinstance(one, _Seen)]
    return seen, [one for one in results if isinstance(one, SpiritsegError)]


def _spaced(count: int, most: int) -> list[int]:
    """Return up to `most` evenly spaced indices."""
    some = min(count, most)
    return [i * count // some for i in range(some)]


def _drives(names: Sequence[str]) -> str:
    """Name the sequences that images belong to; there is no word where they are all of one."""
    from spiritseg.compare.sequences import sequence_of

    drives = list(dict.fromkeys(map(sequence_of, names)))
    some = f" ({', '.join(drives)})" if len(drives) < 4 else ""
    return f" of {len(drives)} drives{some}" if len(drives) > 1 else " of one drive or folder"


def _report_bad(
    found: Examination, where: str, failed: Sequence[SpiritsegError], input: Input
) -> None:
    bad = [f"{e.path}: {e.reason}" for e in failed if isinstance(e, BadImageError)]
    what = f"{len(bad)} unreadable images\n{listed(bad)}"
    if bad and input.skip_bad:
        found.warn(where, f"{what}\nThey are left out (input.skip_bad).")
    elif bad:
        found.problem(where, what, "replace the files, or leave such files out with --skip-bad")


def _add_bytes(known: Known, seen: Sequence[_Seen]) -> float:
    """Add the bytes of all images, from those decoded; return the seconds to decode each once."""
    decoded = [one for one in seen if one.nbytes]
    if not decoded:
        return 0.0
    area, of_decoded = (sum(h * w for h, w in (x.size for x in some)) for some in (seen, decoded))
    known.nbytes += round(sum(one.nbytes for one in decoded) * area / of_decoded)
    return sum(one.seconds for one in decoded) * area / of_decoded


def _check_overlap(
    found: Examination, splits: Mapping[str, LabelledImages], proximity: Proximity | None
) -> None:
    files = {name: list(images.items) for name, images in splits.items()}
    pairs = [files]
    if proximity is not None:
        measured = [*files.get("val", []), *files.get("test", [])]
        unlabelled = [*proximity[0].items, *proximity[1].items]
        pairs.append({"proximity": unlabelled, "val or test": measured})
    for one in pairs:
        try:
            check_disjoint(one)
        except SpiritsegError as error:
            found.refused("splits", str(error))


def _check_crop(found: Examination, known: Known, sizes: Mapping[str, Size]) -> None:
    """Check that the crop, and at the least scale its window, fit the training images."""
    given = known.experiment.input
    smallest = min(map(min, sizes.values()))
    small = [f"{n}: {h} x {w}" for n, (h, w) in sorted(sizes.items()) if min(h, w) < given.crop]
    if small:
        found.problem(
            "input.crop",
            f"a crop of {given.crop} x {given.crop} does not fit {len(small)} of {len(sizes)} "
            f"training images (height x width):\n{listed(small)}",
            f"--input.crop {smallest}, or leave these images out with target.subset",
        )
        return
    pooled = given.crop // given.pool
    found.ok("input.crop", f"{given.crop} pixels fit all training images; {pooled} after the pool")
    scales = [(1.0, "input.scale")]
    for name, stage in known.experiment.stages.items():
        if stage.images != "proximity":
            where = "input.scale" if stage.scale is None else f"stages.{name}.scale"
            scales.append((stage_input(given, stage).scale[0], where))
    scale, where = min(scales)
    if given.crop / scale > smallest:
        found.warn(
            where,
            f"{scale:g} asks for windows of up to {given.crop / scale:.0f} pixels, the smallest "
            f"side is {smallest}: the rest is black padding",
            "a smaller crop, or a scale closer to 1",
        )


def _check_enlarged(found: Examination, crop: int, sizes: Sequence[Size]) -> None:
    factors = [crop / min(size) for size in sizes if min(size) < crop]
    if not factors:
        return
    what = (
        f"{len(factors)} of {len(sizes)} images are enlarged so that the crop fits, by up to "
        f"{max(factors):.2f}"
    )
    if max(factors) > _ENLARGED:
        found.warn("proximity", what, "larger images, or a smaller crop")
    else:
        found.ok("proximity", what)
