"""mIOU, HP-Acc and Var over images (SD, eqs. 4-8)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from spiritseg.errors import DataError
from spiritseg.evaluation.predictions import checked_index, confusion, first_seen

__all__ = ["ImageIoU", "mean_iou"]


def mean_iou(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """IoU of each class, and its mean over the classes that occur.

    Args:
        matrix: (..., K, K) pixel counts by label and prediction.

    Returns:
        (..., K) float64, NaN for a class in neither label nor prediction; and the mean (...),
        NaN where no class occurs.
    """
    both = matrix.diagonal(dim1=-2, dim2=-1).double()
    either = matrix.sum(-1) + matrix.sum(-2) - both  # 0 / 0 = NaN is the class that is absent
    iou = both / either
    return iou, iou.nanmean(-1)


class ImageIoU(Metric):
    r"""Mean, variance and share of high precision of the images' mean IoU.

    .. math:: \mathrm{mIOU}_i = \frac{1}{|C_i|} \sum_{c \in C_i} \mathrm{IoU}_{i,c}, \quad
        \mathrm{mIOU} = \frac{1}{n} \sum_i \mathrm{mIOU}_i, \quad
        \mathrm{Var} = \frac{1}{n} \sum_i (\mathrm{mIOU}_i - \mathrm{mIOU})^2, \quad
        \text{HP-Acc} = \frac{1}{n} |\{i : \mathrm{mIOU}_i > t\}|

    (SD, eqs. 4-8; Wu et al., arXiv:2103.13733). C_i are the classes, background included,
    in the label or the prediction of image i: an absent one counts neither as 0 nor as 1,
    which the paper leaves open. An image whose pixels are all ignored is left out. Not to be
    confused with the IoU over a data set's pixels, `DatasetIoU`.

    The order of the images does not matter. Give `update` the images' indices where several
    processes share a data set: their sampler repeats some images to even out the batches, and
    each index counts once.

    Args:
        num_classes: K.
        threshold: t, in [0, 1].
        ignore_index: label of the pixels that are left out.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    _index: list[Tensor]
    _image_iou: list[Tensor]

    def __init__(
        self, num_classes: int, threshold: float = 0.75, ignore_index: int = 255, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.threshold = threshold
        self.ignore_index = ignore_index
        self.add_state("_index", default=[], dist_reduce_fx="cat")
        self.add_state("_image_iou", default=[], dist_reduce_fx="cat")
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
        matrix = confusion(prediction, labels, self.num_classes, self.ignore_index)
        indices = checked_index(index, len(labels), matrix.device)  # before any state changes
        self._image_iou.append(mean_iou(matrix)[1])
        self._index.append(indices)

    def compute(self) -> dict[str, Tensor]:
        """Compute over all images and processes.

        Returns:
            ``mIOU``, ``HP-Acc`` and ``Var``, float64 scalars in [0, 1].

        Raises:
            DataError: no image with a labelled pixel came.
        """
        iou = self._once()[1]
        if len(iou) == 0:
            raise DataError("ImageIoU: no image with a labelled pixel came; check the labels.")
        return {
            "mIOU": iou.mean(),
            "HP-Acc": (iou > self.threshold).double().mean(),
            "Var": iou.var(correction=0),
        }

    def per_image(self) -> tuple[Tensor, Tensor]:
        """Give each image's value, over all processes, once each.

        Returns:
            The indices (n,) int64, ascending, -1 for images that came without one; and their
            mIOU_i (n,) float64. Images whose pixels are all ignored are not among them.
        """
        with self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync):
            return self._once()

    def _once(self) -> tuple[Tensor, Tensor]:
        if not len(self._index):
            empty = torch.zeros(0, dtype=torch.float64, device=self.device)
            return empty.long(), empty
        index, iou = dim_zero_cat(self._index), dim_zero_cat(self._image_iou)
        keep = first_seen(index) & ~iou.isnan()
        index, iou = index[keep].long(), iou[keep]
        order = index.argsort(stable=True)
        return index[order], iou[order]
