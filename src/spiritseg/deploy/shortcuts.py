"""Compact shortcuts in a form that onnxruntime computes fast; benchmarks/deploy.py measures it.

`spiritseg.compact` makes the 1x1 convolutions at a ResNet's shortcuts grouped, with fewer than 16
channels a group. They have almost no FLOPs, and no fast kernel.

* In float32 onnxruntime keeps maps in blocks of 8 or 16 channels, in which a convolution takes
  the sum with the shortcut and the ReLU along. It has no such convolution in that layout: one of
  them throws the whole row of blocks behind it back into the plain layout, with its sums, its
  ReLUs and a reordering around each. A product by 1 behind it, which is a depthwise convolution,
  brings the map back.
* In int8 it computes each group by itself; a dense convolution with zeros is much faster.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["make_dense", "return_to_blocks"]

_BLOCK = 16  # with AVX-512; 8 otherwise


def return_to_blocks(network: nn.Module) -> int:
    """Put a product by 1 behind each shortcut that onnxruntime computes in the plain layout.

    Args:
        network: changed in place; what it computes stays the same to the last bit.

    Returns:
        How many there are.
    """
    return _replace(network, lambda conv: nn.Sequential(conv, _one(conv)))


def make_dense(network: nn.Module) -> int:
    """Write each of those shortcuts as a dense convolution, zero between the groups.

    Args:
        network: changed in place; what it computes stays the same.

    Returns:
        How many there are.
    """
    return _replace(network, _dense)


def _replace(network: nn.Module, by: Callable[[nn.Conv2d], nn.Module]) -> int:
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
    dense = copy.deepcopy(conv)
    dense.groups = 1
    weight = conv.weight.new_zeros(conv.out_channels, conv.in_channels, 1, 1)
    members, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    for group in range(conv.groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        weight[rows, group * members : (group + 1) * members] = conv.weight.detach()[rows]
    dense.weight = nn.Parameter(weight)
    return dense
