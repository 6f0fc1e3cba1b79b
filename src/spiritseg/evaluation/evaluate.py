"""A network measured on labelled images: per image and over the data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from spiritseg.evaluation.dataset_iou import DatasetIoU
from spiritseg.evaluation.image_iou import ImageIoU
from spiritseg.evaluation.predictions import most_likely
from spiritseg.models.segmenter import Segmenter

__all__ = ["EvaluationModule", "Scores"]

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
        """Bring the processes' images together, while the processes are still there."""
        self._scores = self._collect()

    @property
    def scores(self) -> Scores:
        """What was measured, over all processes."""
        assert self._scores is not None, "run Trainer.test first"
        return self._scores

    def _collect(self) -> Scores:
        image, dataset = self.image_iou.compute(), self.dataset_iou.compute()
        indices, per_image = self.image_iou.per_image()
        return Scores(
            miou=float(image["mIOU"]),
            hp_acc=float(image["HP-Acc"]),
            var=float(image["Var"]),
            dataset_miou=float(dataset["mIoU"]),
            iou=dict(zip(self.class_names, map(float, dataset["IoU"]), strict=True)),
            images=indices.tolist(),
            per_image=per_image.tolist(),
        )
