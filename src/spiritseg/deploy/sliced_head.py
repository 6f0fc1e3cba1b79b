"""The paper's grouped head, computed in slices of channels that stay in the processor's cache.

With groups = gcd no channel of Table V's head meets another before the classifier, so that
it can be run for 64 channels from end to end, then for the next 64, and the logits added up:
the same numbers, without writing maps of 512 channels at half resolution to memory again and
again. benchmarks/deploy.py measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spiritseg.geometry import resize
from spiritseg.models.heads import StudentHead

__all__ = ["SlicedHead", "can_be_sliced"]

_WIDTH = 64


class SlicedHead(nn.Module):
    """A `StudentHead` of grouped convolutions, with its batch norms folded.

    Args:
        head: in eval mode; `can_be_sliced` says whether it fits.
    """

    def __init__(self, head: StudentHead) -> None:
        super().__init__()
        quarter, half = _folded(head.at_quarter), _folded(head.at_half)
        self.upsample_before = (0, len(quarter))
        channels = quarter[0].out_channels
        self.members = quarter[0].in_channels // channels  # input channels a group
        classifier = _dense(head.classifier)
        self.slices = nn.ModuleList(
            _Slice([*quarter, *half], classifier, range(start, start + _WIDTH), self)
            for start in range(0, channels, _WIDTH)
        )
        assert head.classifier.bias is not None
        self.bias = nn.Parameter(head.classifier.bias.detach().clone())

    @property
    def convolutions(self) -> int:
        """How many convolutions the exported head has."""
        return sum(cast(_Slice, part).convolutions for part in self.slices)

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Classify features (B, C, h, w); return logits (B, K, H, W) of a size (H, W)."""
        total = self.bias[None, :, None, None]
        for part in self.slices:
            total = total + part(features)
        return resize(total, size)


class _Slice(nn.Module):
    """The head from end to end, for some of its channels."""

    def __init__(
        self, convs: list[nn.Conv2d], classifier: Tensor, channels: range, head: SlicedHead
    ) -> None:
        super().__init__()
        here = slice(channels.start, channels.stop)
        first, *others = convs
        self.first = here.start * head.members
        self.stop = here.stop * head.members
        self.members = head.members
        self.upsample_before = head.upsample_before[1] - 1
        # A group's members one by one: depthwise convolutions, whose sum is the grouped one.
        # Before each stands a product by 1: it brings the slice into the layout in which
        # onnxruntime resizes fast.
        self.one = nn.Parameter(torch.ones(_WIDTH, 1, 1, 1))
        self.split = nn.ParameterList(
            first.weight.detach()[here, member : member + 1].clone()
            for member in range(self.members)
        )
        self.bias = nn.Parameter(_bias(first)[here].clone())
        self.weights = nn.ParameterList(conv.weight.detach()[here].clone() for conv in others)
        self.biases = nn.ParameterList(_bias(conv)[here].clone() for conv in others)
        self.classifier = nn.Parameter(classifier[:, here].clone())
        self.convolutions = 2 * head.members + len(others) + 1

    def forward(self, features: Tensor) -> Tensor:
        total: Tensor | None = None
        for member, weight in enumerate(self.split):
            own = features[:, self.first + member : self.stop : self.members]
            own = _double(F.conv2d(own, self.one, groups=_WIDTH))
            bias = self.bias if member == 0 else None
            part = F.conv2d(own, weight, bias, padding=1, groups=_WIDTH)
            total = part if total is None else total + part
        x = F.relu(cast(Tensor, total))
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if number == self.upsample_before:
                x = _double(x)
            x = F.relu(F.conv2d(x, weight, bias, padding=1, groups=_WIDTH))
        return F.conv2d(x, self.classifier)


def can_be_sliced(head: object) -> bool:
    """Whether `SlicedHead` can take a head's place.

    Args:
        head: any module.

    Returns:
        True for a `StudentHead` whose channels do not meet, of two slices or more.
    """
    if not isinstance(head, StudentHead) or head.classifier.bias is None:
        return False
    blocks = [block for name, block in _blocks(head.at_quarter) + _blocks(head.at_half)]
    if not all(isinstance(block[0], nn.Conv2d) and len(block) == 3 for block in blocks):
        return False  # a separable block has a convolution more
    convs = [cast(nn.Conv2d, block[0]) for block in blocks]
    channels = convs[0].out_channels
    return (
        not hasattr(head.at_quarter, "reduce")
        and channels % _WIDTH == 0
        and channels > _WIDTH
        and all(conv.groups == conv.out_channels == channels for conv in convs)
    )


def _blocks(group: nn.Sequential) -> list[tuple[str, nn.Sequential]]:
    return [(n, b) for n, b in group.named_children() if isinstance(b, nn.Sequential)]


def _folded(group: nn.Sequential) -> list[nn.Conv2d]:
    return [
        fuse_conv_bn_eval(cast(nn.Conv2d, block[0]), cast(nn.BatchNorm2d, block[1]))
        for _, block in _blocks(group)
    ]


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None  # folding made one
    return conv.bias.detach()


def _dense(classifier: nn.Conv2d) -> Tensor:
    """Write a grouped 1x1 classifier's weight (K, C / groups, 1, 1) as (K, C, 1, 1)."""
    weight, groups = classifier.weight.detach(), classifier.groups
    classes, width = weight.shape[:2]
    whole = weight.new_zeros(classes, width * groups, 1, 1)
    for number in range(classes):
        start = number * groups // classes * width
        whole[number, start : start + width] = weight[number]
    return whole


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear")
