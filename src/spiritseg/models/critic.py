"""The critic of SKD's holistic loss: it discriminates the student's maps from the teacher's."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normalised

from spiritseg.errors import ConfigError
from spiritseg.geometry import resize
from spiritseg.models.segmenter import check_counts
from spiritseg.randomness import seeded

__all__ = ["Critic", "SelfAttention", "critic"]

SMALLEST_SIDE = 32  # five halvings leave one position of it
LARGEST_SIDE = 128  # attention is between all positions of an eighth: 16 x 16 of them


class SelfAttention(nn.Module):
    r"""Self-attention over positions (SAGAN, Zhang et al., arXiv:1805.08318).

    .. math:: y_j = x_j + \gamma \sum_i
        \mathrm{softmax}_i\left(q(x_j)^\top k(x_i)\right) v(x_i)

    with q, k (to an eighth of the channels) and v 1x1 convolutions. Gamma is learned and
    starts at 0, so that a newly initialised critic is purely convolutional.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, C, h, w) plus the attended values."""
        query, key, value = (part(x).flatten(2) for part in (self.query, self.key, self.value))
        # written out, since torch's fused attention cannot be differentiated twice
        weights = (query.transpose(1, 2) @ key).softmax(dim=-1)
        attended = value @ weights.transpose(1, 2)
        return cast(Tensor, x + self.gamma * attended.view_as(x))


class Critic(nn.Module):
    """Scores segmentation maps: high for the teacher's, low for the student's; see `critic`."""

    def __init__(
        self,
        num_classes: int,
        conditioned: bool = True,
        width: int = 64,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        check_counts("critic", num_classes=num_classes, width=width)
        self.num_classes = num_classes
        self.conditioned = conditioned
        in_channels = num_classes + (3 if conditioned else 0)
        self.stage1 = _stage(in_channels, width, spectral_norm)
        self.stage2 = _stage(width, 2 * width, spectral_norm)
        self.stage3 = _stage(2 * width, 4 * width, spectral_norm)
        self.attention3 = SelfAttention(4 * width)
        self.stage4 = _stage(4 * width, 8 * width, spectral_norm)
        self.attention4 = SelfAttention(8 * width)
        self.score = nn.Conv2d(8 * width, 1, 4, stride=2, padding=1)

    def forward(self, maps: Tensor, images: Tensor | None = None) -> Tensor:
        """Score maps, each by itself.

        Args:
            maps: (B, K, H, W), probabilities or logits.
            images: (B, 3, H', W'), RGB in [0, 1]; ignored by a critic that is not conditioned.

        Returns:
            (B,) unbounded scores.
        """
        x = self._input(maps, images)
        x = self.stage3(self.stage2(self.stage1(x)))
        x = self.stage4(self.attention3(x))
        patch = self.score(self.attention4(x))
        return cast(Tensor, patch.mean(dim=(1, 2, 3)))

    def _input(self, maps: Tensor, images: Tensor | None) -> Tensor:
        if maps.ndim != 4 or maps.shape[1] != self.num_classes:
            raise ConfigError(
                f"critic: expected maps (B, {self.num_classes}, H, W), got {tuple(maps.shape)}."
            )
        maps = _to_sane_size(maps)
        if not self.conditioned:
            return maps
        if images is None or images.ndim != 4 or images.shape[:2] != (len(maps), 3):
            came = "none" if images is None else str(tuple(images.shape))
            raise ConfigError(
                f"critic: expected {len(maps)} RGB images (B, 3, H, W) with the maps, got "
                f"{came}. Give it the images that the maps belong to, or make it with "
                "conditioned=False."
            )
        seen = F.interpolate(
            images.to(maps.dtype), maps.shape[-2:], mode="bilinear", antialias=True
        )
        return torch.cat([maps, 2 * seen - 1], dim=1)

    def extra_repr(self) -> str:
        """Describe its input."""
        return f"num_classes={self.num_classes}, conditioned={self.conditioned}"


def critic(
    num_classes: int,
    conditioned: bool = True,
    width: int = 64,
    spectral_norm: bool = False,
    seed: int = 0,
) -> Critic:
    """Make a randomly initialised critic of segmentation maps.

    Five 4x4 convolutions of stride 2 with width x (1, 2, 4, 8) and 1 channels, LeakyReLU, and
    self-attention before the last two (SKD, Liu et al., arXiv:1903.04197, section 3.3; sizes
    as in the authors' released code). The patch of scores of an image is averaged into one.

    Decisions and differences:

    * **Size.** The released code scores maps of 65x65 only. Here maps with a side beyond 128
      are averaged over blocks, those with one below 32 are enlarged bilinearly. The last
      convolution has stride 2 too: 32x32 give one score, 128x128 a patch of 4x4.
    * **Condition.** The images are resized bilinearly to the maps' grid, scaled to [-1, 1]
      and concatenated. The released critic sees no image.
    * **No batch norm**, unlike the released code: it would make the penalty on the slope of a
      sample's score depend on the other samples (Gulrajani et al., arXiv:1704.00028, section 4).
    * **Spectral norm** is the released code's, on all but the last convolution (and not in the
      attention). Each forward pass in train mode takes one step of the power iteration.

    Args:
        num_classes: K, the background included.
        conditioned: Whether it sees the images too, as in the paper.
        width: Channels of the first convolution.
        spectral_norm: Whether weights of convolutions are divided by their largest singular value.
        seed: Random seed for initialisation.

    Returns:
        A critic in train mode: maps (B, K, H, W) and images (B, 3, H', W') to scores (B,).
    """
    with seeded(seed):
        return Critic(num_classes, conditioned, width, spectral_norm)


def _stage(in_channels: int, out_channels: int, spectral_norm: bool) -> nn.Sequential:
    convolution: nn.Module = nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1)
    if spectral_norm:
        convolution = normalised(convolution)
    return nn.Sequential(convolution, nn.LeakyReLU(0.1))


def _to_sane_size(maps: Tensor) -> Tensor:
    """Bring the sides of maps (B, K, H, W) to between 32 and 128 positions, in proportion.

    Of a very long map the shorter side counts, at the price of time.
    """
    longer, shorter = max(maps.shape[-2:]), min(maps.shape[-2:])
    block = min(math.ceil(longer / LARGEST_SIDE), max(1, shorter // SMALLEST_SIDE))
    if block > 1:
        return F.avg_pool2d(maps, block, ceil_mode=True)
    if shorter < SMALLEST_SIDE:
        scale = SMALLEST_SIDE / shorter
        size = [round(side * scale) for side in maps.shape[-2:]]
        return resize(maps, size)
    return maps
