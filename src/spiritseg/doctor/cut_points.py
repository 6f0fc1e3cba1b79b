"""Where each network can be cut into extractor and head, and what it costs up to there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spiritseg.doctor.findings import Examination, reason
from spiritseg.doctor.known import Known
from spiritseg.evaluation.cost import Cost, cost
from spiritseg.geometry import fitted
from spiritseg.models import Segmenter, splits, teacher
from spiritseg.models.sources import source_of
from spiritseg.models.tracing import evaluating
from spiritseg.tables import Table

__all__ = ["CutPoint", "cut_points", "examine_cut_points"]

_DEPTH = 2  # of the module paths that are listed for networks given by their class
_MOST = 24
_FEW = 4  # positions on a side of a training crop's feature map
_FAR = 0.1  # a resize to a multiple of the stride that changes what is seen

Size = tuple[int, int]


@dataclass(frozen=True)
class CutPoint:
    """A network up to a layer at which it can be cut.

    Args:
        name: as in the extractor's split.
        channels: C of the feature map there.
        stride: image pixels per position.
        size: (h, w) of the feature map.
        params: parameters up to there.
        gflops: of an image up to there, 2 per multiply-add.
    """

    name: str
    channels: int
    stride: int
    size: Size
    params: int
    gflops: float


def examine_cut_points(found: Examination, known: Known) -> None:
    """Tabulate networks and their cut points; check that images and crops suit their strides."""
    at = f"at {known.size[0]} x {known.size[1]}"
    rows: Table = [["network", "part", "feature map", "stride", "params M", "GFLOPs"]]
    found.tables[f"networks {at}"] = rows
    listed: set[str] = set()
    for name, network in known.networks.items():
        where = f"networks.{name}"
        try:
            rows += _parts(name, network, known.size)
        except Exception as error:  # a network of the user's own may do anything
            found.problem(where, f"it cannot run on an image {at[3:]}: {reason(error)}")
        _check_strides(found, known, name, network)
        given = known.experiment.networks[name]
        extractor = given.extractor
        if given.bundle or source_of(extractor.name).of_network or extractor.name in listed:
            continue
        listed.add(extractor.name)
        try:
            points = cut_points(extractor.name, known.size, network)
        except Exception as error:  # what is only listed must not stop the examination
            found.warn(where, f"cut points cannot be listed: {reason(error)}")
            continue
        found.tables[f"cut points of {extractor.name} {at}"] = _table(points)
        strides = f"strides {extractor.strides}" if extractor.strides else "its usual place"
        found.ok(where, f"cut at {extractor.split or strides}; {len(points)} layers are possible")


def cut_points(name: str, size: Size, network: Segmenter | None = None) -> list[CutPoint]:
    """Return where a network can be cut, from the image on.

    Args:
        name: as for `spiritseg.teacher`.
        size: (H, W) of the image.
        network: built; needed for a class path only, whose layers are listed.

    Raises:
        ConfigError: an unknown name.
    """
    cuts, source = splits(name), source_of(name)
    if cuts and source.whole is None:
        return [_built(name, split, size) for split in cuts]
    if cuts and source.whole is not None:
        whole = source.whole(name)
        modules = dict(whole.named_modules())
        return _run(whole, {path: modules[path] for path in cuts}, size, _described(whole))
    if network is None:
        return []
    inside = getattr(network.extractor, "module", network.extractor)
    modules = {p: m for p, m in inside.named_modules() if p and p.count(".") < _DEPTH}
    return _run(network if network.head is not None else network.extractor, modules, size, {})


def _built(name: str, split: str, size: Size) -> CutPoint:
    with torch.device("meta"):  # no weights are initialised
        extractor = teacher(name, split=split).extractor
        shape = extractor(torch.zeros(1, 3, *size)).shape
    found, there = cost(extractor, size), (int(shape[2]), int(shape[3]))
    return CutPoint(split, shape[1], extractor.stride, there, found.params, found.gflops)


def _described(whole: nn.Module) -> dict[str, tuple[int, int]]:
    """Return channels and stride of the layers that a timm model describes."""
    info: Any = getattr(whole, "feature_info", ())
    return {one["module"]: (one["num_chs"], one["reduction"]) for one in info}


@torch.no_grad()
def _run(
    whole: nn.Module,
    layers: Mapping[str, nn.Module],
    size: Size,
    described: Mapping[str, tuple[int, int]],
) -> list[CutPoint]:
    """Run a network once, and note at each layer what was spent up to its output."""
    found: dict[str, CutPoint] = {}
    params: dict[int, int] = {}
    with FlopCounterMode(display=False) as counter, evaluating(whole):

        def spend(module: nn.Module, *_: Any) -> None:
            params.update({id(p): p.numel() for p in module.parameters(recurse=False)})

        def note(path: str, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim != 4 or path in found:
                return
            if output.shape[2] < 2 and path not in described:
                return  # a vector, such as that of an attention to channels
            # A map is rounded up, so that its stride is the nearest power of two.
            nearest = 2 ** round(math.log2(max(1.0, size[0] / output.shape[2])))
            channels, stride = described.get(path, (output.shape[1], nearest))
            there = -(-size[0] // stride), -(-size[1] // stride)
            gflops = counter.get_total_flops() / 1e9
            found[path] = CutPoint(path, channels, stride, there, sum(params.values()), gflops)

        hooks = [m.register_forward_pre_hook(spend) for m in whole.modules()]
        for path, layer in layers.items():
            hooks.append(layer.register_forward_hook(lambda m, i, o, p=path: note(p, o)))
        try:
            whole(torch.zeros(1, 3, *size))
        finally:
            for hook in hooks:
                hook.remove()
    return list(found.values())


def _table(points: Sequence[CutPoint]) -> Table:
    rows = [["cut at", "channels", "feature map", "stride", "params M", "GFLOPs"]]
    for one in points[:_MOST]:
        there = f"{one.size[0]} x {one.size[1]}"
        rows.append([one.name, str(one.channels), there, str(one.stride), *_costs(one)])
    return rows


def _parts(name: str, network: Segmenter, size: Size) -> Table:
    with torch.no_grad():
        shape = network.eval().features(torch.zeros(1, 3, *size)).shape
    there, stride = f"{shape[1]} x {shape[2]} x {shape[3]}", str(network.extractor.stride)
    rows = [[name, "extractor", there, stride, *_costs(cost(network.extractor, size))]]
    if network.head is not None:
        rows.append([name, "whole", f"{size[0]} x {size[1]}", "", *_costs(cost(network, size))])
    return rows


def _costs(of: CutPoint | Cost) -> list[str]:
    return [f"{of.params / 1e6:.3f}", f"{of.gflops:.2f}"]


def _check_strides(found: Examination, known: Known, name: str, network: Segmenter) -> None:
    """Check that crop and images are multiples of the stride, and leave enough positions."""
    given, where = known.experiment.input, f"networks.{name}"
    side, multiple = -(-given.crop // given.pool), network.extractor.multiple_of
    stride, after = network.extractor.stride, f"after the max-pool of {given.pool}"
    if side // stride < _FEW:
        found.warn(
            where,
            f"a crop of {side} pixels {after} leaves {side // stride} positions a side at stride "
            f"{stride}",
            "a larger input.crop, or an earlier split",
        )
    for what, whole in (("a test image", known.size), ("a training crop", (side, side))):
        seen = fitted(whole, multiple)
        if seen == whole:
            continue
        scale = max(abs(s / w - 1) for s, w in zip(seen, whole, strict=True))
        pixels = seen[0] * seen[1] / (whole[0] * whole[1])
        text = (
            f"{what} of {whole[0]} x {whole[1]} {after} is resized to {seen[0]} x {seen[1]}, "
            f"multiples of the stride of {multiple}: by up to {100 * scale:.1f} %, to {pixels:.2f} "
            "times the pixels"
        )
        if what == "a training crop":
            step = multiple * given.pool
            lower = max(step, given.crop // step * step)
            found.warn(where, text, f"input.crop {lower}, which needs no resize")
        elif scale > _FAR:
            advice = f"images of at least {multiple * given.pool * 4} pixels a side"
            found.warn(where, text, advice)
        else:
            found.ok(where, text)
