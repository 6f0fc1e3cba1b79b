"""The strides of a network, found by running it without computing anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spiritseg.geometry import size_of
from spiritseg.modes import evaluating
from spiritseg.randomness import seeded

__all__ = ["dry_strides", "meta_strides"]

# A stride is the slope of the input's side over a map's, so no border or rounding can hide it.
# The sides are multiples of 64, 3, 5 and 7: of every usual stride, a patch of 14 among them.
_SIDES = (6720, 13440)


def dry_strides(
    module: nn.Module, features: Callable[[Any], Tensor], size: Sequence[int] = (128, 128)
) -> tuple[int, int]:
    """Find the stride of a module's features and the deepest stride inside it.

    The module runs on torch's meta device, where tensors have shapes and no values. One that
    cannot run there, or takes images of one size only, runs once on zeros of `size`.

    Args:
        module: (1, 3, H, W) to anything; its state stays as it is.
        features: from what the module returns to its feature map.
        size: (H, W) of the real dry run, in pixels.

    Returns:
        The stride of the features; and the least common multiple of the strides of all maps
        inside, in pixels. Maps of a fixed size (pooled ones) do not count.
    """
    return meta_strides(module, features) or _at_one_size(module, features, size)


def meta_strides(module: nn.Module, features: Callable[[Any], Tensor]) -> tuple[int, int] | None:
    """Find the strides without running anything; None for a module that meta tensors stop.

    Args:
        module: see `dry_strides`.
        features: see `dry_strides`.
    """
    try:
        sides = [_map_sides(module, features, side) for side in _SIDES]
    except Exception:  # whatever a module of somebody's stumbles over on meta tensors
        return None
    strides = {name: _slope(side, sides[1].get(name, side)) for name, side in sides[0].items()}
    stride = max(1, strides.pop(""))
    return stride, math.lcm(stride, *(found for found in strides.values() if found > 0))


def _slope(small: int, large: int) -> int:
    return round((_SIDES[1] - _SIDES[0]) / (large - small)) if large > small else 0


def _map_sides(module: nn.Module, features: Callable[[Any], Tensor], side: int) -> dict[str, int]:
    """Run a module on the meta device; return the height of each layer's map, "" the features'."""
    found: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                found.setdefault(name, output.shape[-2])

        return hook

    hooks = [m.register_forward_hook(note(n)) for n, m in module.named_modules() if n]
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    like = next(module.parameters(), torch.zeros(()))
    images = torch.zeros(1, 3, side, side, device="meta", dtype=like.dtype)
    try:
        with torch.no_grad(), torch.device("meta"), evaluating(module), seeded(0):
            output = functional_call(module, state, (images,))
    finally:
        for hook in hooks:
            hook.remove()
    return {**found, "": features(output).shape[-2]}


def _at_one_size(
    module: nn.Module, features: Callable[[Any], Tensor], size: Sequence[int]
) -> tuple[int, int]:
    like = next(module.parameters(), torch.zeros(()))
    images = torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype)
    with torch.no_grad(), evaluating(module), seeded(0):
        stride = max(1, round(size[0] / size_of(features(module(images)))[0]))
    return stride, stride
