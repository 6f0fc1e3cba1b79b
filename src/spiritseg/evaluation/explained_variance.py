"""Explained variance of mimicry: what the value of its loss cannot say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from spiritseg.errors import DataError
from spiritseg.geometry import resize, size_of
from spiritseg.losses.grid import check_pair

__all__ = ["ExplainedVariance"]


class ExplainedVariance(Metric):
    r"""Share of the teacher's variance that the student's features explain.

    .. math:: R^2 = 1 - \frac{\sum_c \sum_p (t_{c,p} - s_{c,p})^2}
        {\sum_c \sum_p (t_{c,p} - \bar t_c)^2}

    over the positions p of all held-out images, with the mean of each teacher channel over
    those same images. 1 is perfect; 0 is no better than the mean; it can be negative. The
    papers report no such figure. Not to be confused with `torchmetrics.ExplainedVariance`,
    which forgives a constant error.

    The sums are plain ones in float64, so that processes can add them. That loses about
    1e-16 (mean / std)^2, nothing beside the features' own float32.

    Args:
        kwargs: of `torchmetrics.Metric`.
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
            student_features: (B, C, h, w); resized bilinearly to the teacher's grid.
            teacher_features: (B, C, h', w'), standardised if the loss sees them so.

        Raises:
            ConfigError: images or channels differ in number.
            DataError: another number of channels than before.
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
        """Compute over all images and processes.

        Returns:
            R^2, a float64 scalar <= 1; NaN where the teacher's features do not vary.

        Raises:
            DataError: no features came.
        """
        if int(self._count) == 0:
            raise DataError("explained variance: no features came; give it held-out images.")
        channels = int(self._channels)
        sums = dim_zero_cat(self._sum).view(-1, channels).sum(0)
        squares = dim_zero_cat(self._squares).view(-1, channels).sum(0)
        total = (squares - sums.square() / self._count).clamp(min=0).sum()
        return torch.where(total > 0, 1 - self._error / total, torch.nan)
