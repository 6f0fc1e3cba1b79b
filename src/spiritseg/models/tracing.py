"""What a network computes, found by running it: layers' outputs, strides, the autograd graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spiritseg.errors import ConfigError, unknown
from spiritseg.geometry import Size, resize
from spiritseg.randomness import seeded

__all__ = [
    "DRY_SIZE",
    "Maps",
    "drop_unused",
    "dry_run",
    "evaluating",
    "join_maps",
    "layer",
    "parallel_projections",
    "recorded",
    "strides",
    "used_parameters",
]

Maps = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

DRY_SIZE: Size = (128, 128)  # (H, W) of the images of dry runs, in pixels

# A stride is the slope of the input's side over a map's, so no border or rounding can hide it.
# The sides are multiples of 64, 3, 5 and 7: of every usual stride, a patch of 14 among them.
_SIDES = (6720, 13440)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and afterwards each of its parts back in its own mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


# Layers and their outputs ------------------------------------------------------------------


def join_maps(maps: Maps) -> Tensor:
    """Resize maps bilinearly to the finest grid and concatenate their channels.

    Args:
        maps: One map (B, C, h, w), or several in a list, tuple or dict.

    Returns:
        (B, sum of C, h, w) on the finest grid.
    """
    if isinstance(maps, Tensor):
        return maps
    several = list(maps.values()) if isinstance(maps, Mapping) else list(maps)
    if len(several) == 1:
        return several[0]
    size = max((m.shape[-2:] for m in several), key=lambda s: s[0])
    return torch.cat([m if m.shape[-2:] == size else resize(m, size) for m in several], dim=1)


def layer(network: nn.Module, path: str) -> nn.Module:
    """Find a module inside a network by its path.

    Raises:
        ConfigError: if there is none; the message lists the layers at that level.
    """
    here = network
    walked: list[str] = []
    for name in path.split("."):
        children = dict(here.named_children())
        if name not in children:
            kind = f"layer of {'.'.join(walked) or type(network).__name__}"
            raise ConfigError(f"layer {path!r}: {unknown(kind, name, children)}")
        here = children[name]
        walked.append(name)
    return here


class _EnoughError(Exception):
    """All wanted outputs are recorded; the rest of the forward pass is not needed."""


@contextmanager
def recorded(
    network: nn.Module, paths: Collection[str], stop: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of layers in whatever runs inside the block.

    The first call of a layer counts. Several maps of one layer are joined (`join_maps`).

    Args:
        network: Network that has the layers.
        paths: Paths of modules inside it; ConfigError if there is none.
        stop: Whether the block ends as soon as all outputs are there.

    Yields:
        The outputs by path.
    """
    found: dict[str, Tensor] = {}

    def record(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Maps) -> None:
            if path in found:
                return
            found[path] = join_maps(output)
            if stop and len(found) == len(set(paths)):
                raise _EnoughError
            # A copy: an in-place activation after the layer would overwrite the output.
            found[path] = found[path].clone()

        return hook

    hooks = [layer(network, path).register_forward_hook(record(path)) for path in paths]
    # Code that was compiled earlier would skip the hooks silently.
    eager = torch.compiler.set_stance("force_eager") if hooks else nullcontext()
    try:
        with eager:
            yield found
    except _EnoughError:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def dry_run(module: nn.Module, run: Callable[[Tensor], Any], size: Sequence[int] = DRY_SIZE) -> Any:
    """Run a function of a black image (1, 3, H, W), with a module in eval mode and unchanged."""
    like = next(module.parameters(), torch.zeros(()))
    images = torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype)
    with torch.no_grad(), evaluating(module), seeded(0):
        return run(images)


# Strides -----------------------------------------------------------------------------------


def strides(
    module: nn.Module, features: Callable[[Any], Tensor], otherwise: int
) -> tuple[int, int]:
    """Find the stride of a module's features and the deepest stride inside it.

    The module runs on torch's meta device, where tensors have shapes and no values.

    Args:
        module: (1, 3, H, W) to anything; its state does not change.
        features: Function from the module's output to its feature map.
        otherwise: Both strides of a module that cannot run there, or not at any size.

    Returns:
        The stride of the features; and the least common multiple of the strides of all maps
        inside, in pixels. Maps of a fixed size (pooled ones) do not count.
    """
    try:
        sides = [_map_sides(module, features, side) for side in _SIDES]
    except Exception:  # a module of the user's may raise anything on meta tensors
        return otherwise, otherwise
    found = {name: _slope(side, sides[1].get(name, side)) for name, side in sides[0].items()}
    stride = max(1, found.pop(""))
    return stride, math.lcm(stride, *(deep for deep in found.values() if deep > 0))


def _slope(small: int, large: int) -> int:
    return round((_SIDES[1] - _SIDES[0]) / (large - small)) if large > small else 0


def _map_sides(module: nn.Module, features: Callable[[Any], Tensor], side: int) -> dict[str, int]:
    """Run a module on the meta device; return the height of each layer's map, "" the features'."""
    found: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:
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


# The autograd graph ------------------------------------------------------------------------


def used_parameters(module: nn.Module, inputs: Sequence[Any]) -> set[int]:
    """Return the ids of the parameters that the output for some arguments depends on."""
    graph = _trace(module, inputs)
    return {id(node.variable) for node in graph if hasattr(node, "variable")}


def parallel_projections(module: nn.Module, inputs: Sequence[Any]) -> set[int]:
    """Find the 1x1 convolutions on the parallel branches of residual blocks; ids of their weights.

    At every addition, the convolutions of one branch that the other does not share are compared.
    Where one branch has a single convolution, a 1x1, and the other a larger kernel, the former
    is the shortcut's projection. A branch that upsamples belongs to a feature pyramid instead.
    """
    graph = _trace(module, inputs)
    upstream: dict[Any, frozenset[Any]] = {}
    for node in graph:  # sources first
        upstream[node] = frozenset({node}).union(*(upstream[p] for p in graph[node]))
    found: set[int] = set()
    for node, parents in graph.items():
        if not node.name().startswith("AddBackward") or len(parents) != 2:
            continue
        one, other = (upstream[p] for p in parents)
        if any("Upsample" in n.name() for n in one ^ other):
            continue
        branches = [list(_kernels(b, graph)) for b in (one - other, other - one)]
        for branch, rest in (branches, branches[::-1]):
            alone = len(branch) == 1 and _is_pointwise(branch[0])
            if alone and not all(map(_is_pointwise, rest)):
                found.add(id(branch[0]))
    return found


def drop_unused(module: nn.Module, inputs: Sequence[Any]) -> None:
    """Replace, in place, the layers that the output does not depend on by identities.

    If that would change the output for `inputs`, nothing is replaced.
    """
    used = used_parameters(module, inputs)
    before = _outputs(module, inputs)
    dropped = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if _all_unused(child, used) and not _all_unused(parent, used)
    ]
    for parent, name, _ in dropped:
        parent._modules[name] = nn.Identity()
    try:
        after = _outputs(module, inputs)
        same = len(before) == len(after) and all(map(torch.equal, before, after))
    except Exception:  # the layer was called in another way than an identity can be
        same = False
    if not same:
        for parent, name, child in dropped:
            parent._modules[name] = child


def _all_unused(module: nn.Module, used: set[int]) -> bool:
    parameters = [id(p) for p in module.parameters()]
    return bool(parameters) and used.isdisjoint(parameters)


def _outputs(module: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    with torch.no_grad(), evaluating(module), seeded(0):
        return list(_tensors(module(*inputs)))


def _trace(module: nn.Module, inputs: Sequence[Any]) -> dict[Any, list[Any]]:
    """Run the module and return its autograd graph, sources first: node -> its inputs."""
    wants = {p: p.requires_grad for p in module.parameters()}
    try:
        with torch.enable_grad(), evaluating(module), seeded(0):
            for parameter in wants:
                parameter.requires_grad_(parameter.is_floating_point())
            outputs = list(_tensors(module(*inputs)))
    finally:
        for parameter, want in wants.items():
            parameter.requires_grad_(want)
    graph: dict[Any, list[Any]] = {}
    pending = [(o.grad_fn, False) for o in outputs if o.grad_fn is not None]
    while pending:  # depth first without recursion: deep networks have deep graphs
        node, done = pending.pop()
        if node in graph:
            continue
        parents = [p for p, _ in node.next_functions if p is not None]
        if done:
            graph[node] = parents
        else:
            pending.append((node, True))
            pending += [(p, False) for p in parents if p not in graph]
    return graph


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        yield from _tensors(list(outputs.values()))
    elif isinstance(outputs, list | tuple):
        for output in outputs:
            yield from _tensors(output)


def _kernels(nodes: Iterable[Any], graph: Mapping[Any, list[Any]]) -> Iterator[Tensor]:
    """Yield the weights of the convolutions among some nodes."""
    for node in nodes:
        if node.name().startswith("ConvolutionBackward"):
            leaves = [p.variable for p in graph[node] if hasattr(p, "variable")]
            yield from (leaf for leaf in leaves if leaf.ndim == 4)


def _is_pointwise(weight: Tensor) -> bool:
    return weight.shape[-2:] == (1, 1)
