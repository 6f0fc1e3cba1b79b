"""An export against PyTorch: the same images through both, before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from spiritseg.deploy.card import ModelCard
from spiritseg.deploy.runtime import Runtime
from spiritseg.errors import DataError, RunError, SpiritsegError
from spiritseg.images import Pixels
from spiritseg.student import Student

__all__ = [
    "LIMITS",
    "Check",
    "CheckImages",
    "Limits",
    "check",
    "open_check_images",
    "resize",
    "spaced",
]

Labels = NDArray[np.uint8]
_SCENES, _SCENE_SIZE = 4, (144, 192)


@dataclass(frozen=True)
class Limits:
    """By how much an export may differ from PyTorch.

    Args:
        difference: largest difference of a logit, as a share of the logits' range; None
            where it says nothing (int8 rounds on purpose).
        equal: least share of pixels with the same class.
        miou: most mIOU that it may lose on labelled images, in [0, 1].
    """

    difference: float | None
    equal: float
    miou: float


LIMITS = {
    "fp32": Limits(difference=1e-3, equal=0.999, miou=0.001),
    "fp16": Limits(difference=0.05, equal=0.99, miou=0.005),
    "int8": Limits(difference=None, equal=0.9, miou=0.05),
}


@dataclass(frozen=True)
class CheckImages:
    """What an export is checked on.

    Args:
        images: (H, W, 3) uint8 each.
        labels: (H, W) uint8 each, 255 ignored; None where there are none.
        where: they come from, in words.
        skipped: files of that place that could not be read.
    """

    images: Sequence[Pixels]
    labels: Sequence[Labels] | None
    where: str
    skipped: Sequence[str] = ()

    def resized(self, size: tuple[int, int]) -> CheckImages:
        """Return them at another size, for an export that takes only that.

        Args:
            size: (H, W) of all of them.

        Returns:
            The images resized bilinearly, their labels by nearest neighbour.
        """
        images = [resize(image, size) for image in self.images]
        labels = self.labels
        if labels is not None:
            box, nearest = (size[1], size[0]), Image.Resampling.NEAREST
            labels = [np.array(Image.fromarray(one).resize(box, nearest)) for one in labels]
        return CheckImages(images, labels, self.where, self.skipped)


@dataclass(frozen=True)
class Check:
    """How an export compares with PyTorch.

    Args:
        max_difference: of a logit; None where the export gives masks.
        relative_difference: the same as a share of the logits' range.
        equal_labels: share of pixels with the same class.
        miou_pytorch: mIOU of the student on the labelled images; None without any.
        miou: that of the export.
        images: how many it was checked on.
        where: they come from.
    """

    max_difference: float | None
    relative_difference: float | None
    equal_labels: float
    miou_pytorch: float | None
    miou: float | None
    images: int
    where: str

    @property
    def miou_lost(self) -> float | None:
        """MIOU that the export costs; None without labelled images."""
        if self.miou is None or self.miou_pytorch is None:
            return None
        return self.miou_pytorch - self.miou


def open_check_images(
    student: Student,
    overrides: Mapping[str, Any] | None,
    limit: int,
    unlabelled: Sequence[Pixels] = (),
) -> CheckImages:
    """Find images to check an export on: labelled ones, else unlabelled, else the scenes.

    Args:
        student: its experiment says where its test images are.
        overrides: dotted fields of that experiment; where given, they must lead to images.
        limit: how many at the most, evenly spaced; 0 for all.
        unlabelled: taken where there are no labelled ones.

    Returns:
        One image at the least.

    Raises:
        SpiritsegError: where overrides are given and lead to no images.
    """
    try:
        return _labelled(student, overrides or {}, limit)
    except SpiritsegError:
        if overrides:
            raise
    if unlabelled:
        return CheckImages(list(unlabelled), None, "the given images")
    from spiritseg.scenes import STYLES, render

    scenes = [render(0, index, _SCENE_SIZE, STYLES["test"]).image for index in range(_SCENES)]
    return CheckImages(scenes, None, "the embedded scenes")


def check(student: Student, runtime: Runtime, card: ModelCard, on: CheckImages) -> Check:
    """Compare an export with its student.

    Besides each image: the first one cropped to an odd size, and in a batch with its mirror
    image, where the export takes any size.

    Args:
        student: in PyTorch.
        runtime: the export in its own engine.
        card: what the export is.
        on: the images.

    Returns:
        The comparison.

    Raises:
        RunError: the export differs by more than its precision's `LIMITS`.
    """
    tally = _Tally(student, runtime, card)
    for number, image in enumerate(on.images):
        tally.add(image[None], None if on.labels is None else on.labels[number])
    if card.dynamic:
        first = on.images[0]
        height, width = (max(1, side * 2 // 3 - 1) | 1 for side in first.shape[:2])
        tally.add(first[None, :height, :width])
        tally.add(np.stack([first, first[:, ::-1]]))
    found = tally.result(len(on.images), on.where)
    _refuse_wrong(found, card)
    return found


class _Tally:
    """Collects differences, image by image, so that no more than one is held."""

    def __init__(self, student: Student, runtime: Runtime, card: ModelCard) -> None:
        from spiritseg.evaluation import ImageIoU

        self.student, self.runtime, self.card = student, runtime, card
        self.worst, self.low, self.high = 0.0, np.inf, -np.inf
        self.equal = self.pixels = 0
        self.iou = {name: ImageIoU(len(card.classes)) for name in ("pytorch", "export")}
        self.labelled = 0

    def add(self, images: Pixels, labels: Labels | None = None) -> None:
        """Run a batch of images of one size through both."""
        wanted = self._pytorch(images)
        if self.card.output == "mask":
            masks = self._export(images)
        else:
            logits = self._export(images)
            difference = np.abs(logits - wanted)
            self.worst = max(self.worst, float(difference.max()))
            if not np.isfinite(difference).all():
                self.worst = np.inf  # NaN compares as smaller than anything
            masks = logits.argmax(1)
        self.low, self.high = min(self.low, wanted.min()), max(self.high, wanted.max())
        truth = wanted.argmax(1)
        self.equal += int((masks == truth).sum())
        self.pixels += truth.size
        if labels is not None:
            self.labelled += 1
            for name, mask in (("pytorch", truth), ("export", masks)):
                self.iou[name].update(self._on_labels(mask, labels), torch.from_numpy(labels)[None])

    def _pytorch(self, images: Pixels) -> NDArray[np.float32]:
        """Logits on the export's own grid, by the student's own path to them."""
        tensors = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
        if self.card.preprocess:
            found = torch.stack([self.student.logits(one.contiguous()) for one in tensors])
        else:
            from spiritseg.geometry import max_pool

            with torch.inference_mode():
                found = self.student.network(max_pool(tensors.float() / 255, self.card.pool))
        return found.cpu().numpy()

    def _export(self, images: Pixels) -> NDArray[Any]:
        from spiritseg.deploy.runtime import prepare

        given = np.ascontiguousarray(images)
        try:
            return self.runtime.forward(
                given if self.card.preprocess else prepare(given, self.card.pool)
            )
        except Exception as error:  # the engines' own exceptions have no common base
            other = ", or a fixed size (--fixed)" if self.card.dynamic else ""
            raise RunError(
                f"{self.runtime.name} cannot run the export on images {given.shape}: {error}. "
                f"Nothing was written. Try another format{other}."
            ) from error

    def _on_labels(self, mask: NDArray[Any], labels: Labels) -> torch.Tensor:
        picture = Image.fromarray(mask[0].astype(np.uint8))
        if picture.size != (labels.shape[1], labels.shape[0]):
            picture = picture.resize((labels.shape[1], labels.shape[0]), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(picture)).long()[None]

    def result(self, images: int, where: str) -> Check:
        """Return the comparison."""
        logits = self.card.output == "logits"
        span = max(float(self.high - self.low), 1e-12)
        miou = {
            name: float(metric.compute()["mIOU"]) if self.labelled else None
            for name, metric in self.iou.items()
        }
        return Check(
            max_difference=self.worst if logits else None,
            relative_difference=self.worst / span if logits else None,
            equal_labels=self.equal / self.pixels,
            miou_pytorch=miou["pytorch"],
            miou=miou["export"],
            images=images,
            where=where,
        )


def _refuse_wrong(found: Check, card: ModelCard) -> None:
    limits = LIMITS[card.precision]
    wrong = []
    relative = found.relative_difference
    if limits.difference is not None and relative is not None and relative > limits.difference:
        wrong.append(
            f"a logit differs by {relative:.2%} of their range (at most {limits.difference:.1%})"
        )
    if not found.equal_labels >= limits.equal:
        wrong.append(f"{found.equal_labels:.2%} of the labels agree (at least {limits.equal:.1%})")
    if found.miou_lost is not None and found.miou_lost > limits.miou:
        wrong.append(
            f"{100 * found.miou_lost:.2f} points of mIOU are lost (at most {100 * limits.miou:.1f})"
        )
    if wrong:
        hint = (
            "Calibrate on more images, and on such as the student will meet."
            if card.precision == "int8"
            else "This is a fault of the exporter or of the engine; try another format or version."
        )
        raise RunError(
            f"the {card.precision} export is not the student, on {found.images} images of "
            f"{found.where}: {'; '.join(wrong)}. Nothing was written. {hint}"
        )


def _labelled(student: Student, overrides: Mapping[str, Any], limit: int) -> CheckImages:
    from spiritseg.data.domains import open_target

    experiment = student.experiment(overrides)
    input = dataclasses.replace(experiment.input, skip_bad=True)
    images = open_target(experiment.target, input, "test")
    images.classes.require(student.classes)
    chosen = [images[number] for number in spaced(len(images), limit)]
    if not chosen:
        raise DataError("the student's experiment has no test images.")
    where = f"the test images of {experiment.target.root or experiment.target.dataset}"
    return CheckImages(
        [image.permute(1, 2, 0).contiguous().numpy() for image, _ in chosen],
        [labels.numpy().astype(np.uint8) for _, labels in chosen],
        where,
        images.skipped,
    )


def spaced(count: int, limit: int) -> list[int]:
    """Choose indices, evenly spaced.

    Args:
        count: how many there are.
        limit: how many are chosen at the most; 0 for all.

    Returns:
        Rising indices in [0, count).
    """
    if limit <= 0 or count <= limit:
        return list(range(count))
    return [int(number * count / limit) for number in range(limit)]


def resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize an image bilinearly.

    Args:
        image: (H, W, 3) uint8.
        size: (H, W) of the result.

    Returns:
        The image at that size, uint8.
    """
    picture = Image.fromarray(image)
    return np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
