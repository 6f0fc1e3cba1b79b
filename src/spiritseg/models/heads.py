"""Heads: features to logits of the image's size."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from spiritseg.config import MAX_CHANNELS, Convolution, Policy
from spiritseg.errors import ConfigError, unknown
from spiritseg.geometry import resize
from spiritseg.models.compact import compact
from spiritseg.models.segmenter import Segmenter
from spiritseg.randomness import derive_seed, seeded

__all__ = ["ResizedHead", "StudentHead", "student", "student_head"]


class StudentHead(nn.Module):
    """The student head of Table V; see `student_head`."""

    def __init__(
        self, in_channels: int, num_classes: int, channels: int, convolution: Convolution
    ) -> None:
        super().__init__()
        self.at_quarter = _group(3, in_channels, channels, convolution)
        self.at_half = _group(4, channels, channels, convolution)
        groups = math.gcd(channels, num_classes) if convolution == "grouped" else 1
        self.classifier = nn.Conv2d(channels, num_classes, 1, groups=groups)

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Classify features (B, C, h, w); return logits (B, K, H, W) of a size (H, W)."""
        quarter = self.at_quarter(features)
        half = self.at_half(quarter)
        return resize(self.classifier(half), size)


class ResizedHead(nn.Module):
    """Any module from features to logits, then a bilinear resize to the image's size.

    Args:
        module: (B, C, h, w) to (B, K, h', w').
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Classify features (B, C, h, w); return logits (B, K, H, W) of a size (H, W)."""
        return resize(self.module(features), size)


def student_head(
    in_channels: int,
    num_classes: int,
    channels: int = 512,
    convolution: Convolution = "grouped",
    seed: int = 0,
) -> StudentHead:
    """Make the student head of Table V.

    Bilinear x2; 3 x (3x3 conv, BN, ReLU); bilinear x2; 4 x the same; 1x1 classifier;
    bilinear to the input's (H, W).

    The paper's text has two groups of three convolutions; Table V's 3 + 4 are followed. The
    last step resizes to (H, W) rather than by 2, so that any size works.

    Args:
        in_channels: channels of the features.
        num_classes: K, the background included.
        channels: width of the head, 1 to `MAX_CHANNELS`; the paper's is 512.
        convolution: "grouped", the paper's: groups = gcd(in, out), in the classifier as
            well. Between equal widths it mixes no channels.
            "separable": depthwise 3x3 and dense 1x1. The first of each group takes its 1x1
            before the upsampling, where it costs a quarter: a 1x1 convolution and a bilinear
            resize commute, so only the order of the two halves differs.
            "dense": plain convolutions.
        seed: of the fresh weights.

    Returns:
        A head: (features, (H, W)) to logits (B, K, H, W).

    Raises:
        ConfigError: an unknown convolution, or a number that is not positive or too large.

    Source: Wu et al., Spirit Distillation, arXiv:2103.13733, Table V.
    """
    if convolution not in get_args(Convolution):
        raise ConfigError(unknown("convolution", convolution, get_args(Convolution)))
    for name, value in (
        ("in_channels", in_channels),
        ("num_classes", num_classes),
        ("channels", channels),
    ):
        if value < 1:
            raise ConfigError(f"student_head: expected {name} of 1 or more, got {value}.")
        if value > MAX_CHANNELS:
            raise ConfigError(f"student_head: expected {name} up to {MAX_CHANNELS}, got {value}.")
    with seeded(seed):
        return StudentHead(in_channels, num_classes, channels, convolution)


def student(
    teacher: Segmenter,
    num_classes: int,
    policy: Policy = "spatial",
    channels: int = 512,
    convolution: Convolution = "grouped",
    seed: int = 0,
) -> Segmenter:
    """Make the paper's student of a teacher: its extractor made compact, and a student head.

    Args:
        teacher: whose extractor is copied; it stays as it is.
        num_classes: K, the background included.
        policy: which convolutions become compact; see `spiritseg.compact`.
        channels: width of the head.
        convolution: of the head; see `student_head`.
        seed: of the fresh weights.

    Returns:
        A trainable network with fresh weights.

    Raises:
        ConfigError: an unknown policy or convolution.
    """
    extractor = compact(teacher.extractor, policy, seed=derive_seed(seed, "extractor"))
    head = student_head(
        teacher.extractor.channels,
        num_classes,
        channels,
        convolution,
        seed=derive_seed(seed, "head"),
    )
    network = Segmenter(extractor, head)
    return network.requires_grad_(True).train()


def _group(count: int, in_channels: int, channels: int, convolution: Convolution) -> nn.Sequential:
    """Make a x2 upsampling and `count` blocks of convolution, BN and ReLU."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    up = nn.Upsample(scale_factor=2.0, mode="bilinear")
    if convolution == "separable":
        layers["reduce"] = nn.Conv2d(in_channels, channels, 1, bias=False)
        layers["up"] = up
        layers["0"] = _block([_conv(channels, channels, channels)], channels)
    else:
        layers["up"] = up
        groups = math.gcd(in_channels, channels) if convolution == "grouped" else 1
        layers["0"] = _block([_conv(in_channels, channels, groups)], channels)
    for index in range(1, count):
        layers[str(index)] = _block(_equal(channels, convolution), channels)
    return nn.Sequential(layers)


def _equal(channels: int, convolution: Literal["dense", "grouped", "separable"]) -> list[nn.Module]:
    if convolution == "dense":
        return [_conv(channels, channels, 1)]
    depthwise = _conv(channels, channels, channels)
    if convolution == "grouped":  # gcd of equal widths is the width
        return [depthwise]
    return [depthwise, nn.Conv2d(channels, channels, 1, bias=False)]


def _conv(in_channels: int, out_channels: int, groups: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, groups=groups, bias=False)


def _block(convolutions: list[nn.Module], channels: int) -> nn.Sequential:
    return nn.Sequential(*convolutions, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
