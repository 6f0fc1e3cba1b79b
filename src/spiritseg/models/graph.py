"""What a network computes, read from the autograd graph of a dry run rather than from names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spiritseg.modes import evaluating
from spiritseg.randomness import seeded

__all__ = ["drop_unused", "parallel_projections", "used_parameters"]


def used_parameters(module: nn.Module, inputs: Sequence[Any]) -> set[int]:
    """Return the ids of the parameters that a module's output depends on.

    Args:
        module: any module; its state stays as it is.
        inputs: its positional arguments.
    """
    graph = _trace(module, inputs)
    return {id(node.variable) for node in graph if hasattr(node, "variable")}


def parallel_projections(module: nn.Module, inputs: Sequence[Any]) -> set[int]:
    """Find the 1x1 convolutions that make up the parallel branch of a residual block.

    At every addition of two branches, the convolutions of one that the other does not share
    are looked at. Where one branch has a single convolution, a 1x1, and the other a larger
    kernel, the former is the shortcut's projection. A branch that upsamples belongs to a
    feature pyramid, not to a residual block, and is left alone.

    Args:
        module: any module; its state stays as it is.
        inputs: its positional arguments.

    Returns:
        The ids of those convolutions' weights.
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

    Args:
        module: any module; what it computes stays the same, or nothing is replaced.
        inputs: positional arguments of a dry run.
    """
    used = used_parameters(module, inputs)
    before = _outputs(module, inputs)
    dropped = [
        (parent, name, child)
        for parent, name, child in _children(module)
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


def _children(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in module.modules():
        for name, child in parent.named_children():
            yield parent, name, child


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
