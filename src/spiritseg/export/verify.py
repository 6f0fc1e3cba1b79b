"""Verify that an export agrees with PyTorch: the same images through both, before it is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from spiritseg.errors import DataError, RunError, SpiritsegError
from spiritseg.export.engines import Runtime, prepare
from spiritseg.geometry import max_pool
from spiritseg.images import Pixels
from spiritseg.student import Student

__all__ = ["LIMITS", "Check", "CheckImages", "check", "evenly", "open_check_images", "resize"]

T = TypeVar("T")
_SCENES, _SCENE_SIZE = 4, (144, 192)

# Least share of pixels with the same class; largest difference of a logit, as a share of the
# logits' range (int8 rounds on purpose).
LIMITS = {"fp32": (0.999, 1e-3), "fp16": (0.99, 0.05), "int8": (0.9, np.inf)}


@dataclass(frozen=True)
class CheckImages:
    """Images (H, W, 3) uint8 that an export is verified on, their source and unreadable files."""

    images: Sequence[Pixels]
    where: str
    skipped: Sequence[str] = ()


@dataclass(frozen=True)
class Check:
    """How an export compares with PyTorch."""

    equal_labels: float  # share of pixels with the same class
    max_difference: float  # largest of a logit, as a share of the logits' range; 0 for masks
    images: int  # number of them
    where: str  # where they come from

    def __str__(self) -> str:
        return (
            f"{100 * self.equal_labels:.3f} % of labels equal to PyTorch's, on {self.images} "
            f"images of {self.where}"
        )


def open_check_images(
    student: Student,
    overrides: Mapping[str, Any] | None,
    limit: int,
    given: Sequence[Pixels] = (),
    otherwise: Sequence[Pixels] = (),
) -> CheckImages:
    """Find images to verify an export on.

    Args:
        student: Student; its experiment names its test images.
        overrides: Dotted fields of that experiment.
        limit: Largest number of test images, evenly spaced; 0 for all.
        given: Images to take unless there are overrides.
        otherwise: Images to take where the student's own are not there any more.

    Returns:
        The first there is: the test images that `overrides` lead to, those given, the student's
        own test images, those to take otherwise, procedural scenes.

    Raises:
        SpiritsegError: if overrides are given and lead to no images.
    """
    if given and not overrides:
        return CheckImages(given, "the given images")
    try:
        return _test_images(student, overrides or {}, limit)
    except SpiritsegError:
        if overrides:
            raise
    if otherwise:
        return CheckImages(otherwise, "the given images")
    from spiritseg.scenes import STYLES, render

    scenes = [render(0, index, _SCENE_SIZE, STYLES["test"]).image for index in range(_SCENES)]
    return CheckImages(scenes, "the embedded scenes")


def check(student: Student, runtime: Runtime, on: CheckImages) -> Check:
    """Compare an export in its own engine with its student in PyTorch.

    If the export takes any size: also on the first image cropped to an odd and to an even size,
    and on a batch of two.

    Raises:
        RunError: if the export cannot run, or differs by more than its precision's `LIMITS`.
    """
    equal = pixels = 0
    difference, low, high = 0.0, np.inf, -np.inf
    for images in _batches(on.images, runtime.info.dynamic):
        wanted, found = _pytorch(student, runtime, images), _exported(runtime, images)
        truth = wanted.argmax(1)
        if runtime.info.output == "logits":
            worst = float(np.abs(found - wanted).max())
            difference = max(difference, worst if np.isfinite(worst) else np.inf)
            found = found.argmax(1)
        low, high = min(low, float(wanted.min())), max(high, float(wanted.max()))
        equal, pixels = equal + int((found == truth).sum()), pixels + truth.size
    relative = difference / max(high - low, 1e-12)
    result = Check(equal / pixels, relative, len(on.images), on.where)
    _refuse_wrong(result, runtime.info.precision)
    return result


def _batches(images: Sequence[Pixels], dynamic: bool) -> Iterator[Pixels]:
    yield from (image[None] for image in images)
    if dynamic:
        first = images[0]
        height, width = (max(1, side * 2 // 3 - 1) for side in first.shape[:2])
        yield first[None, : height | 1, : width | 1]
        yield first[None, : (height | 1) + 1, : (width | 1) + 1]
        yield np.stack([first, first[:, ::-1]])


def _pytorch(student: Student, runtime: Runtime, images: Pixels) -> NDArray[np.float32]:
    """Return logits on the export's own grid, by the student's own path to them."""
    tensors = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
    side, network = runtime.info.pool, student.network
    with torch.inference_mode():
        pooled = max_pool(tensors.float() / 255, side)
        if runtime.info.preprocess:
            return network.before_pool(pooled, side, tensors.shape[-2:]).cpu().numpy()
        return cast(NDArray[np.float32], network(pooled).cpu().numpy())


def _exported(runtime: Runtime, images: Pixels) -> NDArray[Any]:
    info, given = runtime.info, np.ascontiguousarray(images)
    try:
        return runtime.forward(given if info.preprocess else prepare(given, info.pool))
    except Exception as error:  # the engines' exceptions have no common base
        other = ", or a fixed size (--fixed)" if info.dynamic else ""
        raise RunError(
            f"{runtime.name} cannot run the export on images {given.shape}: {error}. Nothing was "
            f"written. Try another format{other}."
        ) from error


def _refuse_wrong(found: Check, precision: str) -> None:
    least, most = LIMITS[precision]
    if found.equal_labels >= least and found.max_difference <= most:
        return
    hint = (
        "Calibrate on more images, and on such as the student will meet."
        if precision == "int8"
        else "This is a fault of the exporter or of the engine; try another format or version."
    )
    raise RunError(
        f"the {precision} export differs from the student, on {found.images} images of "
        f"{found.where}: {found.equal_labels:.2%} of the labels agree (at least {least:.1%}), and "
        f"a logit differs by up to {found.max_difference:.2%} of their range (at most {most:.1%}). "
        f"Nothing was written. {hint}"
    )


def _test_images(student: Student, overrides: Mapping[str, Any], limit: int) -> CheckImages:
    from spiritseg.data.domains import open_target

    experiment = student.experiment(overrides)
    input = dataclasses.replace(experiment.input, skip_bad=True)
    images = open_target(experiment.target, input, "test")
    if not len(images):
        raise DataError("the student's experiment has no test images.")
    chosen = evenly(range(len(images)), limit)
    return CheckImages(
        [images[number][0].permute(1, 2, 0).contiguous().numpy() for number in chosen],
        f"the test images of {experiment.target.root or experiment.target.dataset}",
        images.skipped,
    )


def evenly(items: Sequence[T], limit: int) -> list[T]:
    """Return at most `limit` items, evenly spaced; all of them if `limit` is 0."""
    count = min(len(items), limit) if limit > 0 else len(items)
    return [items[number * len(items) // count] for number in range(count)]


def resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize an image (H, W, 3) uint8 bilinearly to a size (H, W)."""
    picture = Image.fromarray(image)
    return np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
