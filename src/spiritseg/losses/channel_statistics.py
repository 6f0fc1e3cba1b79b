"""Mean and standard deviation per channel of a teacher's features, over many batches."""

from __future__ import annotations

import torch
from torch import Tensor

from spiritseg.errors import ConfigError, DataError

__all__ = ["ChannelStatistics"]


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
