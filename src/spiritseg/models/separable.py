"""A small extractor of depthwise-separable convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, cast

from annotated_types import Interval
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from spiritseg.config import MAX_CHANNELS
from spiritseg.errors import ConfigError
from spiritseg.geometry import resize
from spiritseg.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, RGB, Extractor
from spiritseg.options import STRICT, build
from spiritseg.randomness import seeded

__all__ = ["SeparableTrunk", "separable"]

_STRIDES = (4, 8, 16)

_Width = Annotated[int, Interval(ge=1, le=MAX_CHANNELS)]
_Depth = Annotated[int, Interval(ge=0, le=100)]


@dataclass(frozen=True, config=STRICT)
class _Options:
    out_channels: _Width
    stride: Literal[4, 8, 16]
    widths: tuple[_Width, _Width, _Width, _Width]
    depths: tuple[_Depth, _Depth, _Depth]
    mean: RGB
    std: RGB
    seed: Annotated[int, Interval(ge=-(2**63), lt=2**63)]


class SeparableTrunk(nn.Module):
    """Separable convolutions at strides 4, 8 and 16, summed through 1x1 projections.

    The strided stem keeps work off the full resolution; stride 16 brings the context, at a
    quarter of the cost of dilation at stride 8. It ends linearly, without a ReLU, so that it
    can match features of either sign. Few wide layers mimic better in a few hundred steps than
    many narrow ones. For the arguments see `separable`.
    """

    def __init__(
        self,
        out_channels: int,
        stride: int,
        widths: tuple[int, int, int, int],
        depths: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False), *_norm_relu(widths[0])
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                _Block(widths[i], widths[i + 1], 2),
                *(_Block(widths[i + 1], widths[i + 1], 1) for _ in range(depth)),
            )
            for i, depth in enumerate(depths)
        )
        self.projections = nn.ModuleList(
            nn.Conv2d(width, out_channels, 1, bias=s == 16)  # one bias is enough for the sum
            if s >= stride
            else nn.Identity()
            for s, width in zip(_STRIDES, widths[1:], strict=True)
        )
        self._first = _STRIDES.index(stride)

    def forward(self, images: Tensor) -> Tensor:
        """Turn normalised images (B, 3, H, W) into (B, out_channels, H / stride, W / stride)."""
        x = self.stem(images)
        maps = []
        for index, (stage, projection) in enumerate(
            zip(self.stages, self.projections, strict=True)
        ):
            x = stage(x)
            if index >= self._first:
                maps.append(projection(x))
        # Projecting before resizing gives the same sum and costs a quarter.
        result = maps.pop()
        while maps:
            finer = maps.pop()
            result = finer + resize(result, finer.shape[-2:])
        return cast(Tensor, result)


def separable(
    out_channels: int = 128,
    stride: int = 8,
    widths: tuple[int, int, int, int] = (48, 96, 192, 320),
    depths: tuple[int, int, int] = (1, 2, 2),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    seed: int = 0,
) -> Extractor:
    """Make a small, randomly initialised extractor of depthwise-separable convolutions.

    For a teacher that is itself compact, where `compact` has nothing to save.

    Args:
        out_channels: Channels of the feature map, 1 to `MAX_CHANNELS`.
        stride: Image pixels per position of the feature map: 4, 8 or 16.
        widths: Channels at strides 2, 4, 8 and 16, each 1 to `MAX_CHANNELS`.
        depths: Residual blocks after the downsampling at strides 4, 8 and 16, each 0 to 100.
        mean: Mean that is subtracted from RGB in [0, 1].
        std: Standard deviation that it is divided by.
        seed: Random seed for initialisation, of 64 bits.
    """
    values = {"out_channels": out_channels, "stride": stride, "widths": widths, "depths": depths}
    values |= {"mean": mean, "std": std, "seed": seed}
    given, problems = build(_Options, values, "separable")
    if given is None:
        raise ConfigError(
            f"{'; '.join(problems)}. For another stride, set strides such as [8, 16] in the "
            "network that it matches, or use a timm backbone."
        )
    with seeded(given.seed):
        trunk = SeparableTrunk(given.out_channels, given.stride, given.widths, given.depths)
        _initialise(trunk)
    return Extractor(trunk, given.out_channels, given.stride, given.mean, given.std, max(_STRIDES))


class _Block(nn.Module):
    """Depthwise 3x3, dense 1x1, each with batch norm and ReLU; a residual where shapes allow."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(
                in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False
            ),
            *_norm_relu(in_channels),
            nn.Conv2d(in_channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return F.relu(x + y if self.residual else y)


def _norm_relu(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


def _initialise(trunk: nn.Module) -> None:
    for conv in trunk.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
