"""Dense convolutions to compact ones by policy, as the paper makes its student."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from spiritseg.config import Policy
from spiritseg.errors import ConfigError, unknown
from spiritseg.models.segmenter import Segmenter
from spiritseg.models.tracing import parallel_projections
from spiritseg.randomness import derive_seed, seeded

__all__ = ["compact"]

M = TypeVar("M", bound=nn.Module)

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
)


def compact(module: M, policy: Policy = "spatial", seed: int = 0) -> M:
    """Copy a network with compact convolutions, randomly initialised.

    A grouped convolution takes groups = gcd(C_in, C_out). One that has groups already is not
    changed: it is compact (depthwise), or its groups are part of its design (ResNeXt).
    With a gcd of 1, as from RGB to 64, a convolution stays dense.

    Where the whole network has no normalisation layer (VGG16), a batch norm follows each
    convolution that the policy covers, in place of its bias; the extractor and the head of a
    `Segmenter` are treated separately.

    The paper's text makes *every* convolution grouped; its Table II (9.5 M, 169.4 GFLOPs)
    is reached with "spatial", which is why that is the default.

    Args:
        module: Network of `nn.Conv2d`; an `Extractor`, a `Segmenter` or any module. It is not
            changed.
        policy: "spatial": kernels larger than 1, and the 1x1 projections on the parallel
            branch of residual blocks (found in the graph of a dry run), become grouped.
            "all": every convolution becomes grouped, as the paper's text says.
            "separable": kernels larger than 1 become a depthwise convolution and a dense
            1x1; for networks without 1x1 convolutions to mix channels. A convolution of
            RGB stays dense: a depthwise one would see one colour only.
        seed: Random seed for initialisation: Kaiming normal for convolutions, ones and zeros
            for norms, each other layer's own way. Loose parameters of one dimension (layer
            scales) become ones, of more dimensions normal with a deviation of 0.02.

    Returns:
        The copy: trainable, in train mode.

    Source: Wu et al., Spirit Distillation, arXiv:2103.13733, Table II.
    """
    if policy not in get_args(Policy):
        raise ConfigError(unknown("policy", policy, get_args(Policy)))
    result = copy.deepcopy(module).requires_grad_(True).train()
    covered = _covered(result, policy)
    bare = _without_norm(result)
    replace = _separate if policy == "separable" else _group
    result = _map_convolutions(
        result, lambda conv: replace(conv, conv in bare) if conv in covered else conv
    )
    _reset(result, seed)
    return result


def _covered(module: nn.Module, policy: Policy) -> set[nn.Conv2d]:
    """Return the convolutions that a policy covers; one with groups is covered by none."""
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    if policy == "all":
        return set(convs)
    wide = {c for c in convs if c.kernel_size != (1, 1)}
    if policy == "separable" or len(wide) == len(convs):
        return wide
    shortcuts = _shortcuts(module)
    return wide | {c for c in convs if id(c.weight) in shortcuts}


def _shortcuts(module: nn.Module) -> set[int]:
    if isinstance(module, Segmenter) and module.head is None:
        return _shortcuts(module.extractor)
    first = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
    weight = first.weight
    image = torch.zeros(1, first.in_channels, 64, 64, dtype=weight.dtype, device=weight.device)
    try:
        return parallel_projections(module, (image,))
    except Exception as error:
        raise ConfigError(
            f"compact(policy='spatial') looks for residual shortcuts in a dry run, and "
            f"{type(module).__name__} could not be called with {tuple(image.shape)}: "
            f"{type(error).__name__}: {error}. Use the policy 'all' or 'separable', which need no "
            "dry run."
        ) from error


def _without_norm(module: nn.Module) -> set[nn.Conv2d]:
    """Return the convolutions of parts that have no normalisation layer at all."""
    if isinstance(module, Segmenter) and module.head is not None:
        return _without_norm(module.extractor) | _without_norm(module.head)
    # timm's norms subclass torch's, or bear the word in their class name.
    if any(isinstance(m, _NORMS) or "Norm" in type(m).__name__ for m in module.modules()):
        return set()
    return {m for m in module.modules() if isinstance(m, nn.Conv2d)}


def _map_convolutions(module: M, function: Callable[[nn.Conv2d], nn.Module]) -> M:
    new: dict[nn.Module, nn.Module] = {}  # a layer that is used in two places stays one layer
    holder = nn.Sequential(module)  # the module may be a convolution itself
    for parent in list(holder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                if child not in new:
                    new[child] = function(child)
                parent._modules[name] = new[child]
    return cast(M, holder[0])


def _group(conv: nn.Conv2d, norm: bool) -> nn.Module:
    return _with_groups(conv, math.gcd(conv.in_channels, conv.out_channels), norm)


def _with_groups(conv: nn.Conv2d, groups: int, norm: bool) -> nn.Module:
    grouped = _reshaped(conv, groups, conv.out_channels)
    return nn.Sequential(_unbiased(grouped), _norm(grouped)) if norm else grouped


def _separate(conv: nn.Conv2d, norm: bool) -> nn.Module:
    if conv.in_channels <= 3:
        return _with_groups(conv, 1, norm)
    depthwise = _unbiased(_reshaped(conv, conv.in_channels, conv.in_channels))
    bias = conv.bias is not None and not norm
    pointwise = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=bias)
    pointwise.to(conv.weight.device, conv.weight.dtype)
    return nn.Sequential(depthwise, pointwise, *([_norm(pointwise)] if norm else []))


def _reshaped(conv: nn.Conv2d, groups: int, out_channels: int) -> nn.Conv2d:
    # A copy, not a new nn.Conv2d, so that a subclass (timm's "same" padding) is kept.
    conv = copy.copy(conv)
    conv._parameters = dict(conv._parameters)
    conv.groups, conv.out_channels = groups, out_channels
    shape = (out_channels, conv.in_channels // groups, *conv.kernel_size)
    conv.weight = nn.Parameter(conv.weight.new_empty(shape))
    return conv


def _unbiased(conv: nn.Conv2d) -> nn.Conv2d:
    conv.bias = None
    return conv


def _norm(conv: nn.Conv2d) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)


@torch.no_grad()
def _reset(module: nn.Module, seed: int) -> None:
    """Initialise every weight anew; each is a function of (seed, its name)."""
    for name, part in module.named_modules():
        with seeded(derive_seed(seed, name)):
            if isinstance(part, nn.Conv2d):
                _reset_convolution(part)
            elif isinstance(part, _NORMS) or not hasattr(part, "reset_parameters"):
                for key, parameter in part.named_parameters(recurse=False):
                    _reset_loose(key, parameter)
                if isinstance(part, nn.modules.batchnorm._NormBase):
                    part.reset_running_stats()
            else:
                cast(Callable[[], None], part.reset_parameters)()


def _reset_convolution(conv: nn.Conv2d) -> None:
    # The fan-in counts the channels of one group; torch's fan-out would count all groups.
    weight = torch.empty(conv.weight.shape, device="cpu")
    nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")
    conv.weight.copy_(weight)
    if conv.bias is not None:
        conv.bias.zero_()


def _reset_loose(name: str, parameter: Tensor) -> None:
    if parameter.ndim > 1:
        parameter.copy_(torch.empty(parameter.shape, device="cpu").normal_(std=0.02))
    else:
        parameter.fill_(0.0 if "bias" in name else 1.0)
