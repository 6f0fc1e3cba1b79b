"""Rewrites of a student for onnxruntime: the same numbers, computed faster.

What each is worth on the paper's Table II student at 256 x 512, one thread of a CPU with AVX-512,
the median over 15 rounds of the time without it to the time with it, in one run: `slice_head`
1.11 and `return_to_blocks` 1.18 in fp32 (both 1.33), `make_dense` 1.36 in int8.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spiritseg.geometry import resize
from spiritseg.models.heads import StudentHead
from spiritseg.models.segmenter import Segmenter

__all__ = ["SlicedHead", "make_dense", "return_to_blocks", "slice_head"]

_WIDTH = 64  # channels of a slice, whose maps stay in the processor's cache
_BLOCK = 16  # channels of onnxruntime's blocked layout with AVX-512; 8 otherwise


def slice_head(network: Segmenter) -> int:
    """Compute the paper's grouped head in slices of channels, if the network has one, in place.

    With groups = gcd no channel of Table V's head meets another before the classifier. It can
    run for 64 channels from end to end, then for the next 64, and the logits be summed, without
    writing maps of 512 channels at half resolution to memory again and again.

    Returns:
        Number of convolutions of the sliced head; 0 if the head stays as it is.
    """
    if not _can_be_sliced(network.head):
        return 0
    head = SlicedHead(cast(StudentHead, network.head))
    network.head = head
    return sum(cast(_Slice, part).convolutions for part in head.slices)


def return_to_blocks(network: nn.Module) -> int:
    """Follow each grouped 1x1 shortcut by a product by 1, in place; for float32.

    `spiritseg.compact` makes the 1x1 convolutions at a ResNet's shortcuts grouped, with fewer than
    16 channels a group. They have almost no FLOPs, and no fast kernel: onnxruntime keeps maps in
    blocks of 8 or 16 channels, in which a convolution takes the sum with the shortcut and the ReLU
    along. One convolution without a kernel for that layout throws the whole row of blocks behind
    it back into the plain layout. The product, a depthwise convolution, brings the map back.

    Returns:
        Number of shortcuts.
    """
    return _replace(network, lambda conv: nn.Sequential(conv, _one(conv)))


def make_dense(network: nn.Module) -> int:
    """Make those shortcuts dense, zero between the groups, in place; return their number.

    For int8: onnxruntime computes each group of an 8-bit convolution by itself.
    """
    return _replace(network, _dense)


class SlicedHead(nn.Module):
    """A `StudentHead` of grouped convolutions in slices, with its batch norms folded.

    Args:
        head: Head in eval mode.
    """

    def __init__(self, head: StudentHead) -> None:
        super().__init__()
        quarter, half = _folded(head.at_quarter), _folded(head.at_half)
        classifier = _dense(head.classifier)
        self.slices = nn.ModuleList(
            _Slice([*quarter, *half], len(quarter), classifier, start)
            for start in range(0, quarter[0].out_channels, _WIDTH)
        )
        self.bias = nn.Parameter(_bias(head.classifier).clone())

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Classify features (B, C, h, w); return logits (B, K, H, W) of a size (H, W)."""
        total = self.bias[None, :, None, None]
        for part in self.slices:
            total = total + part(features)
        return resize(total, size)


class _Slice(nn.Module):
    """The head from end to end, for the channels [start, start + _WIDTH)."""

    def __init__(
        self, convs: list[nn.Conv2d], at_quarter: int, classifier: nn.Conv2d, start: int
    ) -> None:
        super().__init__()
        here = slice(start, start + _WIDTH)
        first, *others = convs
        members = first.in_channels // first.out_channels  # input channels a group
        self.inputs = range(start * members, (start + _WIDTH) * members)
        self.upsample_before = at_quarter - 1
        # A group's members one by one: depthwise convolutions, whose sum is the grouped one.
        # Before each, a product by 1 brings the slice into the layout in which onnxruntime
        # resizes fast.
        self.one = nn.Parameter(torch.ones(_WIDTH, 1, 1, 1))
        self.split = nn.ParameterList(
            first.weight.detach()[here, member : member + 1].clone() for member in range(members)
        )
        self.bias = nn.Parameter(_bias(first)[here].clone())
        self.weights = nn.ParameterList(conv.weight.detach()[here].clone() for conv in others)
        self.biases = nn.ParameterList(_bias(conv)[here].clone() for conv in others)
        self.classifier = nn.Parameter(classifier.weight.detach()[:, here].clone())
        self.convolutions = 2 * members + len(others) + 1

    def forward(self, features: Tensor) -> Tensor:
        total: Tensor | None = None
        for member, weight in enumerate(self.split):
            own = features[:, self.inputs.start + member : self.inputs.stop : len(self.split)]
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


def _can_be_sliced(head: object) -> bool:
    """Return whether it is a `StudentHead` of two slices or more whose channels do not meet."""
    if not isinstance(head, StudentHead) or head.classifier.bias is None:
        return False
    blocks = [*_blocks(head.at_quarter), *_blocks(head.at_half)]
    if not all(isinstance(block[0], nn.Conv2d) and len(block) == 3 for block in blocks):
        return False  # a separable block has one more convolution
    convs = [cast(nn.Conv2d, block[0]) for block in blocks]
    channels = convs[0].out_channels
    return (
        not hasattr(head.at_quarter, "reduce")
        and channels % _WIDTH == 0
        and channels > _WIDTH
        and all(conv.groups == conv.out_channels == channels for conv in convs)
    )


def _blocks(group: nn.Sequential) -> list[nn.Sequential]:
    return [block for block in group.children() if isinstance(block, nn.Sequential)]


def _folded(group: nn.Sequential) -> list[nn.Conv2d]:
    return [
        fuse_conv_bn_eval(cast(nn.Conv2d, block[0]), cast(nn.BatchNorm2d, block[1]))
        for block in _blocks(group)
    ]


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None  # folding made one
    return conv.bias.detach()


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear")


def _replace(network: nn.Module, by: Callable[[nn.Conv2d], nn.Module]) -> int:
    """Replace each grouped 1x1 convolution without a fast kernel."""
    found = 0
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and _is_slow(child):
                setattr(module, name, by(child))
                found += 1
    return found


def _is_slow(conv: nn.Conv2d) -> bool:
    if conv.groups == 1 or conv.kernel_size != (1, 1) or conv.out_channels % _BLOCK:
        return False
    members, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    depthwise = members == outputs == 1
    return not depthwise and bool(members % _BLOCK or outputs % _BLOCK)


def _one(conv: nn.Conv2d) -> nn.Conv2d:
    channels = conv.out_channels
    one = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
    one.weight = nn.Parameter(torch.ones_like(one.weight))
    return one.to(conv.weight).train(conv.training)


def _dense(conv: nn.Conv2d) -> nn.Conv2d:
    """Copy a grouped 1x1 convolution as a dense one."""
    dense = copy.deepcopy(conv)
    dense.groups = 1
    weight = conv.weight.new_zeros(conv.out_channels, conv.in_channels, 1, 1)
    members, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    for group in range(conv.groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        weight[rows, group * members : (group + 1) * members] = conv.weight.detach()[rows]
    dense.weight = nn.Parameter(weight)
    return dense
