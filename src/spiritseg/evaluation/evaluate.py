"""Measuring a network: on labelled images, and against a teacher's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from spiritseg.errors import DataError
from spiritseg.evaluation.iou import DatasetIoU, ImageIoU, most_likely
from spiritseg.geometry import resize, size_of
from spiritseg.losses.grid import check_pair
from spiritseg.models.segmenter import Segmenter

__all__ = ["EvaluationModule", "ExplainedVariance", "Scores"]

_LOGITS = 1 << 26  # logits of a batch that are held at once: 256 MiB


@dataclass(frozen=True)
class Scores:
    """What a network reached on a set of labelled images; all of it in [0, 1].

    Args:
        miou: mean over images of the per-image mean IoU (eq. 5): "mIOU".
        hp_acc: share of images whose mIOU is above the threshold (eq. 7): "HP-Acc".
        var: population variance of the per-image mIOU (eq. 8): "Var".
        dataset_miou: mean IoU of one confusion matrix over all images: "dataset mIoU".
        iou: IoU of each class in that matrix, by name; NaN for a class that is absent.
        images: the images' indices in the data set.
        per_image: their mIOU, in the same order.
    """

    miou: float
    hp_acc: float
    var: float
    dataset_miou: float
    iou: dict[str, float]
    images: list[int]
    per_image: list[float]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by the names that the tables use."""
        return {
            "mIOU": self.miou,
            "HP-Acc": self.hp_acc,
            "Var": self.var,
            "dataset mIoU": self.dataset_miou,
            "IoU": self.iou,
            "images": len(self.images),
        }


class EvaluationModule(L.LightningModule):
    """Runs a network over labelled images, on the Lightning Trainer's ``test``.

    The logits are brought to the labels' grid (`Segmenter.before_pool`), then arg-maxed. Under a
    distributed sampler, which repeats images to fill its last round, each image counts once.

    Args:
        network: the network.
        class_names: K names.
        threshold: of HP-Acc.
        pool: side of the max-pool that the images have gone through.
    """

    def __init__(
        self, network: Segmenter, class_names: list[str], threshold: float, pool: int
    ) -> None:
        super().__init__()
        self.network = network
        self.pool = pool
        self.class_names = class_names
        self.image_iou = ImageIoU(len(class_names), threshold=threshold)
        self.dataset_iou = DatasetIoU(len(class_names))
        self._scores: Scores | None = None

    def test_step(self, batch: list[dict[str, Tensor]], batch_idx: int) -> None:
        """Measure a batch of images, those of one size together."""
        groups: dict[tuple[torch.Size, torch.Size], list[dict[str, Tensor]]] = {}
        for sample in batch:
            groups.setdefault((sample["image"].shape, sample["labels"].shape), []).append(sample)
        for samples in groups.values():
            images = torch.stack([sample["image"] for sample in samples])
            labels = torch.stack([sample["labels"] for sample in samples]).long()
            index = torch.tensor([int(sample["index"]) for sample in samples], device=self.device)
            predicted = self._predict(images, labels.shape[-2:])
            self.image_iou.update(predicted, labels, index=index)
            self.dataset_iou.update(predicted, labels, index=index)

    def _predict(self, images: Tensor, size: torch.Size) -> Tensor:
        """Return label maps (B, H, W), a few images at once: their logits are of full size."""
        count = max(1, _LOGITS // (len(self.class_names) * size.numel()))
        found = [
            most_likely(self.network.before_pool(images[i : i + count], self.pool, size))
            for i in range(0, len(images), count)
        ]
        return torch.cat(found)

    def on_test_epoch_end(self) -> None:
        """Gather the processes' images, while the processes are still there."""
        image, dataset = self.image_iou.compute(), self.dataset_iou.compute()
        indices, per_image = self.image_iou.per_image()
        self._scores = Scores(
            miou=float(image["mIOU"]),
            hp_acc=float(image["HP-Acc"]),
            var=float(image["Var"]),
            dataset_miou=float(dataset["mIoU"]),
            iou=dict(zip(self.class_names, map(float, dataset["IoU"]), strict=True)),
            images=indices.tolist(),
            per_image=per_image.tolist(),
        )

    @property
    def scores(self) -> Scores:
        """What was measured, over all processes."""
        assert self._scores is not None, "run Trainer.test first"
        return self._scores


class ExplainedVariance(Metric):
    r"""Share of the teacher's variance that the student's features explain.

    .. math:: R^2 = 1 - \frac{\sum_c \sum_p (t_{c,p} - s_{c,p})^2}
        {\sum_c \sum_p (t_{c,p} - \bar t_c)^2}

    over the positions p of all held-out images, with the mean of each teacher channel over
    those same images. 1 is perfect; 0 is no better than the mean; it can be negative. The
    papers report no such figure. Not to be confused with `torchmetrics.ExplainedVariance`,
    which forgives a constant error.

    Processes add plain float64 sums, which loses about 1e-16 (mean / std)^2.

    Args:
        kwargs: Of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    _error: Tensor
    _count: Tensor
    _channels: Tensor
    _sum: list[Tensor]
    _squares: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zero = torch.zeros(())
        self.add_state("_error", default=zero, dist_reduce_fx="sum")
        self.add_state("_count", default=zero.clone(), dist_reduce_fx="sum")
        self.add_state("_channels", default=zero.clone(), dist_reduce_fx="max")
        # at most one tensor (C,) each; lists, since C is unknown before the first batch and
        # to a process without images
        self.add_state("_sum", default=[], dist_reduce_fx="cat")
        self.add_state("_squares", default=[], dist_reduce_fx="cat")
        self.set_dtype(torch.float64)

    def update(self, student_features: Tensor, teacher_features: Tensor) -> None:
        """Add a batch of features, as they enter the mimicry loss.

        Args:
            student_features: (B, C, h, w), resized bilinearly to the teacher's grid.
            teacher_features: (B, C, h', w'), standardised if the loss sees them so.

        Raises:
            ConfigError: if images or channels differ in number.
            DataError: if the number of channels changes.
        """
        check_pair(student_features, teacher_features, "explained variance", channels=True)
        channels = teacher_features.shape[1]
        if self._sum and len(self._sum[0]) != channels:
            raise DataError(
                f"explained variance: expected {len(self._sum[0])} channels as before, got "
                f"{channels}. Make one metric for each teacher."
            )
        teacher = teacher_features.detach().double()
        grid = size_of(teacher)
        student = resize(student_features.detach().double(), grid)
        self._error = self._error + (teacher - student).square().sum()
        self._count = self._count + teacher.numel() // channels
        self._channels = torch.full_like(self._channels, channels)
        sums, squares = teacher.sum((0, 2, 3)), teacher.square().sum((0, 2, 3))
        self._sum = [sums + self._sum[0] if self._sum else sums]
        self._squares = [squares + self._squares[0] if self._squares else squares]

    def compute(self) -> Tensor:
        """Return R^2 over all processes, float64 <= 1; NaN where the teacher does not vary.

        Raises:
            DataError: if there are no features.
        """
        if int(self._count) == 0:
            raise DataError("explained variance: no features came; give it held-out images.")
        channels = int(self._channels)
        sums = dim_zero_cat(self._sum).view(-1, channels).sum(0)
        squares = dim_zero_cat(self._squares).view(-1, channels).sum(0)
        total = (squares - sums.square() / self._count).clamp(min=0).sum()
        return torch.where(total > 0, 1 - self._error / total, torch.nan)
