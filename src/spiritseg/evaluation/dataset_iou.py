"""IoU over the pixels of a whole data set, from one confusion matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from spiritseg.errors import DataError
from spiritseg.evaluation.image_iou import mean_iou
from spiritseg.evaluation.predictions import checked_index, confusion, first_seen

__all__ = ["DatasetIoU"]


class DatasetIoU(Metric):
    r"""Mean IoU, IoU per class and pixel accuracy over all pixels of all images.

    .. math:: \mathrm{IoU}_c = \frac{M_{cc}}{\sum_k M_{ck} + \sum_k M_{kc} - M_{cc}}

    with M the confusion matrix of the data set, labels in rows. This is the benchmarks'
    mIoU, in which a large image or class region weighs more; `ImageIoU` is the papers'. A
    class in neither label nor prediction of any image is left out of the mean.

    Each image is kept as the cells of its own confusion matrix that are not 0 (a few dozen,
    whatever K), so that an image which the sampler of several processes repeats counts once
    where `update` is given the images' indices.

    Args:
        num_classes: K.
        ignore_index: label of the pixels that are left out.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    _index: list[Tensor]
    _cells: list[Tensor]
    _cell: list[Tensor]
    _pixels: list[Tensor]

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.add_state("_index", default=[], dist_reduce_fx="cat")  # of each image
        self.add_state("_cells", default=[], dist_reduce_fx="cat")  # how many are each image's
        self.add_state("_cell", default=[], dist_reduce_fx="cat")  # label * K + prediction
        self.add_state("_pixels", default=[], dist_reduce_fx="cat")  # in that cell
        self.set_dtype(torch.float64)  # of all states: a process without images gathers so

    def update(self, prediction: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Add a batch of images.

        Args:
            prediction: logits (B, K, h, w), brought to the labels' grid bilinearly and
                arg-maxed; or label maps (B, H, W) of integers.
            labels: (B, H, W) integers in [0, K), or `ignore_index`.
            index: (B,) indices >= 0 of the images in their data set.

        Raises:
            DataError: shapes that do not fit, or classes beyond K.
        """
        cells = confusion(prediction, labels, self.num_classes, self.ignore_index).flatten(1)
        self._index.append(checked_index(index, len(labels), cells.device))
        self._cells.append((cells > 0).sum(1).double())
        image, cell = cells.nonzero(as_tuple=True)
        self._cell.append(cell.double())
        self._pixels.append(cells[image, cell].double())

    def compute(self) -> dict[str, Tensor]:
        """Compute over all images and processes.

        Returns:
            ``mIoU`` and ``pixel accuracy``, float64 scalars in [0, 1]; ``IoU``, (K,) float64,
            NaN for a class that does not occur.

        Raises:
            DataError: no labelled pixel came.
        """
        matrix = self._matrix()
        if not bool(matrix.any()):
            raise DataError("DatasetIoU: no labelled pixel came; check the labels.")
        iou, mean = mean_iou(matrix)
        accuracy = matrix.diagonal().sum().double() / matrix.sum()
        return {"mIoU": mean, "IoU": iou, "pixel accuracy": accuracy}

    def confusion_matrix(self) -> Tensor:
        """Count the pixels over all processes, each image once.

        Returns:
            (K, K) int64, labels in rows, predictions in columns.
        """
        with self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync):
            return self._matrix()

    def _matrix(self) -> Tensor:
        k = self.num_classes
        matrix = torch.zeros(k * k, dtype=torch.int64, device=self.device)
        if len(self._index):
            lengths = dim_zero_cat(self._cells).long()
            keep = first_seen(dim_zero_cat(self._index)).repeat_interleave(lengths)
            cell, pixels = dim_zero_cat(self._cell)[keep], dim_zero_cat(self._pixels)[keep]
            matrix = matrix.index_add(0, cell.long(), pixels.long())
        return matrix.view(k, k)
