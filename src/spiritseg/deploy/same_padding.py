"""Convolutions with TensorFlow's "same" padding, as one operation of the exported graph.

Their padding depends on the image's size: traced as arithmetic on an open size it takes
minutes to export and many nodes to run. ONNX has it as an attribute (SAME_UPPER).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["replace_same_padding", "translations"]


class _ConvSame(nn.Module):
    """A convolution whose output has ceil(side / stride) positions a side."""

    def __init__(self, source: nn.Conv2d, as_operation: bool) -> None:
        super().__init__()
        self.weight, self.bias = source.weight, source.bias
        self.stride = [int(s) for s in source.stride]
        self.dilation = [int(d) for d in source.dilation]
        self.groups = source.groups
        self.as_operation = as_operation

    def forward(self, x: Tensor) -> Tensor:
        run: Any = torch.ops.spiritseg.conv_same if self.as_operation else _padded
        y: Tensor = run(x, self.weight, self.bias, self.stride, self.dilation, self.groups)
        return y


def replace_same_padding(network: nn.Module, as_operation: bool) -> None:
    """Replace timm's convolutions with "same" padding, in place.

    Args:
        network: what shall be exported.
        as_operation: as the operation that `translations` brings to ONNX; otherwise as
            padding and convolution, which torch alone can run.
    """
    from timm.layers.conv2d_same import Conv2dSame

    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv2dSame):
                setattr(parent, name, _ConvSame(child, as_operation))


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return how torch.onnx writes the operation: a Conv with auto_pad."""
    from onnxscript import opset20 as op

    def conv_same(
        x: Any,
        weight: Any,
        bias: Any,
        stride: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Any:
        given = (x, weight) if bias is None else (x, weight, bias)
        return op.Conv(
            *given,
            auto_pad="SAME_UPPER",
            strides=list(stride),
            dilations=list(dilation),
            group=groups,
        )

    found: Callable[..., Any] = torch.ops.spiritseg.conv_same.default
    return {found: conv_same}


def _padded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    pads: list[int] = []
    for axis in (1, 0):  # F.pad counts from the last axis
        reach = (weight.shape[2 + axis] - 1) * dilation[axis] + 1
        side, step = x.shape[2 + axis], stride[axis]
        # (ceil(side / step) - 1) step + reach - side, without a case for reach >= step
        total = reach - 1 - (side + step - 1) % step
        if reach < step:
            total = cast(int, torch.sym_max(total, 0))
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, bias, list(stride), 0, list(dilation), groups)


_SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] dilation, int groups) -> Tensor"
)


def _sides(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    height, width = ((x.shape[2 + a] + stride[a] - 1) // stride[a] for a in (0, 1))
    return x.new_empty(x.shape[0], weight.shape[0], height, width)


_operation = torch.library.custom_op(
    "spiritseg::conv_same", _padded, mutates_args=(), schema=_SCHEMA
)
_operation.register_fake(_sides)
