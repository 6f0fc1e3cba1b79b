"""Mimicry of the teacher's features (SD, eq. 2), and their standardisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from spiritseg.errors import ConfigError, DataError, unknown
from spiritseg.geometry import resize, size_of
from spiritseg.losses.grid import at_least_float32, check_pair, valid_on

__all__ = ["ChannelStatistics", "mimicry", "standardise"]

Reduction = Literal["channel_sum", "mean"]


def mimicry(
    student_features: Tensor,
    teacher_features: Tensor,
    reduction: Reduction = "channel_sum",
    valid: Tensor | None = None,
) -> Tensor:
    r"""Squared error between the student's and the teacher's feature maps.

    .. math:: L_D = \frac{1}{|V|} \sum_{(b, p) \in V} \sum_c
        \left(y^{AMG}_{b,c,p} - y^{FE}_{b,c,p}\right)^2

    with V the valid positions of the whole batch, B h w where nothing is padded (SD, eq. 2; Wu et
    al., arXiv:2103.13733). The printed equation subtracts y^AMG from itself and calls c a class;
    we read y^AMG - y^FE and channels. The ``paper-*`` recipes use ``"channel_sum"``, the
    equation's letter; with ``"mean"`` the value and the learning rate do not depend on the number
    of channels.

    Args:
        student_features: (B, C, h, w), of any float type; computed in float32 at least. A
            student on another grid is resized bilinearly to the teacher's.
        teacher_features: (B, C, h', w'); no gradient flows into them.
        reduction: ``"channel_sum"`` sums over channels and averages over positions and
            images; ``"mean"`` averages over channels too.
        valid: (B, H, W) bool, False on padding, which is left out; None where everything is
            valid. Brought to the features' grid by nearest neighbour.

    Returns:
        A scalar >= 0; 0 for equal features, and where no position is valid.

    Raises:
        ConfigError: other than four axes, images or channels that differ in number, or an
            unknown reduction.
    """
    check_pair(student_features, teacher_features, "mimicry", channels=True)
    if reduction not in ("channel_sum", "mean"):
        raise ConfigError(unknown("reduction of mimicry", reduction, ("channel_sum", "mean")))
    teacher = at_least_float32(teacher_features.detach())
    grid = size_of(teacher)
    errors = (resize(at_least_float32(student_features), grid) - teacher).square()
    mask = valid_on(valid, teacher, "mimicry")
    if mask is None:
        mean = errors.mean()
    else:
        kept = errors.masked_fill(~mask[:, None], 0)
        mean = kept.sum() / (mask.sum() * teacher.shape[1]).clamp(min=1)
    return mean * teacher.shape[1] if reduction == "channel_sum" else mean


def standardise(features: Tensor, mean: Tensor, std: Tensor, centre: bool) -> Tensor:
    """Divide features by their standard deviation per channel, after centring if asked.

    A trunk without batch norm has features of arbitrary scale. Leave `centre` out where the
    student ends in a ReLU, which cannot follow below zero. The paper does not standardise.

    Args:
        features: (B, C, h, w).
        mean: (C,), used only with `centre`.
        std: (C,), positive.
        centre: whether the mean is subtracted first.

    Returns:
        (B, C, h, w), of the features' type.

    Raises:
        ConfigError: the statistics have another number of channels.
    """
    if mean.shape != std.shape or std.shape != features.shape[1:2]:
        raise ConfigError(
            f"standardise: expected a mean and a std of {features.shape[1]} channels, got "
            f"{tuple(mean.shape)} and {tuple(std.shape)}. Take the statistics anew."
        )
    scaled = at_least_float32(features)
    if centre:
        scaled = scaled - mean.to(scaled)[:, None, None]
    return (scaled / std.to(scaled)[:, None, None]).to(features.dtype)


class ChannelStatistics:
    """Mean and standard deviation per channel over many batches, in float64.

    Batches are merged pairwise (Chan et al., 1983), so a large mean cancels nothing.

    Args:
        floor: least standard deviation, as a share of the median over the channels that
            vary at all. A channel that hardly varies would otherwise be blown up to noise of
            unit size.
    """

    def __init__(self, floor: float = 1e-2) -> None:
        self.floor = floor
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._squares = torch.zeros(0, dtype=torch.float64)  # sum of squared deviations

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Add a batch of features (B, C, h, w).

        Raises:
            ConfigError: another number of channels than before.
        """
        x = features.detach().double()
        squares, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        count = x.numel() // x.shape[1]
        self._merge(count, mean.cpu(), squares.cpu() * count)

    def merge(self, other: ChannelStatistics) -> None:
        """Add what another one has seen, such as that of another process."""
        if other.count:
            self._merge(other.count, other._mean, other._squares)

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if self.count == 0:
            self.count, self._mean, self._squares = count, mean, squares
            return
        if mean.shape != self._mean.shape:
            raise ConfigError(
                f"channel statistics: expected {len(self._mean)} channels as before, "
                f"got {len(mean)}. Use one object for each teacher."
            )
        total = self.count + count
        delta = mean - self._mean
        self._mean = self._mean + delta * (count / total)
        self._squares = self._squares + squares + delta.square() * (self.count * count / total)
        self.count = total

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return what all batches together have.

        Returns:
            Mean and population standard deviation per channel, (C,) float64 each on the CPU;
            the latter clamped from below.

        Raises:
            DataError: no features came, or some were not finite.
        """
        if self.count == 0:
            raise DataError("channel statistics: no features came; update() with some first.")
        if not bool((self._mean.isfinite() & self._squares.isfinite()).all()):
            raise DataError(
                "channel statistics: the teacher's features are not finite. Check its weights "
                "and the range of the images (RGB in [0, 1])."
            )
        std = (self._squares / self.count).sqrt()
        varying = std[std > 0]
        if len(varying) == 0:  # constant features: nothing to scale by
            return self._mean, torch.ones_like(std)
        return self._mean, std.clamp(min=self.floor * float(varying.median()))
