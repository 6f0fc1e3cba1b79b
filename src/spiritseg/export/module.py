"""The module that is exported: preprocessing, the student, and its answer on the image's grid.

Convolutions with TensorFlow's "same" padding become one operation of the graph: their padding
depends on the image's size; traced as arithmetic on an open size it takes minutes to export and
many nodes to run. ONNX has it as an attribute (SAME_UPPER).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritseg.errors import ConfigError
from spiritseg.export.metadata import ModelCard
from spiritseg.geometry import max_pool
from spiritseg.models.segmenter import Segmenter

__all__ = ["DeployedNetwork", "example_input", "same_padding_to_onnx", "trace"]

_SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] dilation, int groups) -> Tensor"
)


class DeployedNetwork(nn.Module):
    """A student with its preprocessing and its answer on the image's grid.

    Args:
        network: Student.
        pool: Side of the max-pool before it.
        preprocess: Whether the input is (N, H, W, 3) uint8 RGB, and the output on its grid.
            Otherwise the input is what the network takes, and the output on the network's grid.
        argmax: Whether the output is the mask (N, H, W) uint8 instead of logits.
    """

    def __init__(
        self, network: Segmenter, pool: int, preprocess: bool = True, argmax: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.pool = pool
        self.preprocess = preprocess
        self.argmax = argmax
        self.half_precision = False

    def in_half(self) -> DeployedNetwork:
        """Compute in float16, in place; input and output keep their types."""
        self.network.half()
        self.half_precision = True
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Segment images; see the class for the shapes."""
        size = (images.shape[1], images.shape[2])
        if self.preprocess:
            images = max_pool(images.permute(0, 3, 1, 2).float() / 255, self.pool)
        images = images.half() if self.half_precision else images
        if self.preprocess:
            logits = self.network.before_pool(images, self.pool, size)
        else:
            logits = cast(Tensor, self.network(images))
        return logits.argmax(1).to(torch.uint8) if self.argmax else logits.float()


def example_input(card: ModelCard) -> Tensor:
    """Return zeros of the shape and type that an export takes, two images if sizes are open.

    Args:
        card: Metadata of the export.

    Returns:
        (N, H, W, 3) uint8, or without preprocessing (N, 3, ceil(H / pool), ceil(W / pool)) float32.
    """
    count = 2 if card.dynamic else 1  # torch takes a batch of 1 for a constant
    height, width = card.size
    if card.preprocess:
        return torch.zeros(count, height, width, 3, dtype=torch.uint8)
    return torch.zeros(count, 3, -(-height // card.pool), -(-width // card.pool))


def trace(
    module: DeployedNetwork, card: ModelCard, same_as_operation: bool = True
) -> torch.export.ExportedProgram:
    """Trace a module with torch.export; batch, height and width stay open if the card says so.

    Args:
        module: In eval mode; its "same" padding is replaced in place.
        card: Metadata of the export.
        same_as_operation: Whether "same" padding becomes the operation that
            `same_padding_to_onnx` translates, otherwise arithmetic that torch alone can run.

    Returns:
        The program. Conditions that hold for this size only become checks in it.

    Raises:
        ConfigError: if the network cannot be traced.
    """
    _replace_same_padding(module, same_as_operation)
    shapes = None
    if card.dynamic:
        axes = (0, 1, 2) if card.preprocess else (0, 2, 3)
        shapes = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
    try:
        with torch.no_grad():
            return torch.export.export(
                module,
                (example_input(card),),
                dynamic_shapes=shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # torch.export raises whatever it meets
        hint = (
            "The network's computation depends on the size: try a fixed one (--fixed)."
            if card.dynamic
            else "torch.export does not know one of its operations."
        )
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"the student cannot be traced: {first[:300]} {hint}") from error


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


def _replace_same_padding(network: nn.Module, as_operation: bool) -> None:
    """Replace timm's convolutions with "same" padding, in place."""
    from timm.layers.conv2d_same import Conv2dSame

    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv2dSame):
                setattr(parent, name, _ConvSame(child, as_operation))


def same_padding_to_onnx() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translation table for torch.onnx: the operation as a Conv with auto_pad."""
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
