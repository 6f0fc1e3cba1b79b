"""PSPNet's head: pooling at several scales, then a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritseg.config import MAX_CHANNELS
from spiritseg.errors import ConfigError
from spiritseg.geometry import resize
from spiritseg.randomness import seeded

__all__ = ["BINS", "PyramidHead", "pyramid_head"]

BINS = (1, 2, 3, 6)


class PyramidHead(nn.Module):
    """PSPNet's head; see `pyramid_head`.

    Args:
        in_channels: channels of the features.
        num_classes: K, the background included.
        channels: of the bottleneck.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int) -> None:
        super().__init__()
        width = in_channels // len(BINS)
        self.branches = nn.ModuleList(_branch(in_channels, width, bins) for bins in BINS)
        self.bottleneck = nn.Sequential(
            nn.Conv2d(in_channels + len(BINS) * width, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Classify features (B, C, h, w); return logits (B, K, H, W) of a size (H, W)."""
        grid = features.shape[-2:]
        pooled = [resize(b(features), grid) for b in self.branches]
        context = self.bottleneck(torch.cat([features, *pooled], 1))
        logits = self.classifier(self.dropout(context))
        return resize(logits, size)


def pyramid_head(
    in_channels: int, num_classes: int, channels: int = 512, seed: int = 0
) -> PyramidHead:
    """Make PSPNet's head.

    Average pooling to 1x1, 2x2, 3x3 and 6x6 bins; for each a 1x1 convolution to in_channels / 4,
    BN, ReLU and bilinear upsampling; concatenated with the features; a 3x3 convolution to
    `channels`, BN, ReLU (``head.bottleneck``, the feature map of SKD's pair-wise loss);
    dropout of 0.1; 1x1 classifier; bilinear to the input's (H, W).

    With one image a batch, the 1x1 bin has one value a channel, which has no variance: in
    training its BN then takes the running statistics, and leaves them as they are.

    Where SKD's released networks differ: leaky ReLU (0.01), dropout of whole channels, corners
    aligned when resizing, and, for training only, a second classifier on the trunk's third
    stage. Their pair-wise loss takes the bottleneck after its dropout.

    Args:
        in_channels: channels of the features, 4 or more; a ResNet's at stride 8 (dilated).
        num_classes: K, the background included.
        channels: of the bottleneck: 512 on a ResNet-101, 128 on a ResNet-18.
        seed: of the fresh weights: Kaiming normal convolutions.

    Returns:
        A head: (features, (H, W)) to logits (B, K, H, W).

    Raises:
        ConfigError: a number that is too small, or above `MAX_CHANNELS`.

    Source: Zhao et al., Pyramid Scene Parsing Network, arXiv:1612.01105, fig. 3 and sec. 3.2;
    its use with SKD: Liu et al., arXiv:1903.04197, sec. 4.1.
    """
    for name, value, least in (
        ("in_channels", in_channels, len(BINS)),
        ("num_classes", num_classes, 1),
        ("channels", channels, 1),
    ):
        if value < least:
            raise ConfigError(f"pyramid_head: expected {name} of {least} or more, got {value}.")
        if value > MAX_CHANNELS:
            raise ConfigError(f"pyramid_head: expected {name} up to {MAX_CHANNELS}, got {value}.")
    with seeded(seed):
        head = PyramidHead(in_channels, num_classes, channels)
        for conv in head.modules():
            if isinstance(conv, nn.Conv2d) and conv is not head.classifier:
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return head


class _Pool(nn.Module):
    """Average pooling to bins x bins; bins overlap where a side is no multiple of their number.

    Bin i of n covers positions floor(i h / n) to ceil((i + 1) h / n).
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            return F.adaptive_avg_pool2d(x, self.bins)
        # Adaptive pooling would be exported for the example's size alone.
        rows, columns = (self._weights(x, x.shape[dim]) for dim in (-2, -1))
        return ((x @ columns.mT).mT @ rows.mT).mT

    def _weights(self, like: Tensor, side: int) -> Tensor:
        bin_ = torch.arange(self.bins, device=like.device)[:, None]
        position = torch.arange(side, device=like.device)
        starts, ends = bin_ * side // self.bins, -(-(bin_ + 1) * side // self.bins)
        inside = ((position >= starts) & (position < ends)).to(like.dtype)
        return inside / inside.sum(1, keepdim=True)

    def extra_repr(self) -> str:
        return f"bins={self.bins}"


class _PooledNorm(nn.BatchNorm2d):
    """Batch norm that takes the running statistics where the batch has none."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            mean, var = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def _branch(in_channels: int, width: int, bins: int) -> nn.Sequential:
    return nn.Sequential(
        _Pool(bins),
        nn.Conv2d(in_channels, width, 1, bias=False),
        _PooledNorm(width),
        nn.ReLU(inplace=True),
    )
