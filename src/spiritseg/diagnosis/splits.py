"""Where a network can be split, and what each split costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spiritseg.config import Experiment, Input
from spiritseg.diagnosis.findings import Section
from spiritseg.evaluation.cost import cost
from spiritseg.geometry import fitted
from spiritseg.models import Segmenter, splits, teacher
from spiritseg.models.sources import source_of
from spiritseg.modes import evaluating

__all__ = ["Split", "examine_splits", "split_points"]

_DEPTH = 2  # of the module paths that are listed for networks given by their class
_MOST = 24
_FEW = 4  # positions on a side of a training crop's feature map
_FAR = 0.1  # resize to a multiple of the stride that changes what is seen


@dataclass(frozen=True)
class Split:
    """A network up to one of its legal split points.

    Args:
        name: as in extractor.split.
        channels: C of the feature map there.
        stride: image pixels per position.
        size: (h, w) of the feature map.
        params: parameters up to there.
        gflops: of an image up to there, 2 per multiply-add.
    """

    name: str
    channels: int
    stride: int
    size: tuple[int, int]
    params: int
    gflops: float


def examine_splits(
    experiment: Experiment, networks: Mapping[str, Segmenter], size: tuple[int, int]
) -> Section:
    """List the legal split points of the experiment's networks, with shapes and costs.

    Args:
        experiment: its networks are read.
        networks: built.
        size: (H, W) of an image as the networks see it.
    """
    section = Section("Split points and cost")
    at = f"at {size[0]} x {size[1]}"
    seen: set[str] = set()
    rows = [["network", "part", "feature map", "stride", "params M", "GFLOPs"]]
    for name, network in networks.items():
        try:
            rows += _parts(name, network, size)
        except Exception as error:  # a network of the user's own may do anything
            reason = (str(error) or repr(error)).splitlines()[0]
            section.problem(f"{name} cannot run on an image of {size[0]} x {size[1]}: {reason}")
    section.tables[f"networks {at}"] = rows
    side = -(-experiment.input.crop // experiment.input.pool)
    for name, network in networks.items():
        _examine_fit(section, name, network.extractor.multiple_of, size, experiment.input)
        if side // network.extractor.stride < _FEW:
            section.warn(
                f"{name}: a crop of {side} pixels after the max-pool leaves "
                f"{side // network.extractor.stride} positions a side at stride "
                f"{network.extractor.stride}",
                "a larger input.crop, or an earlier split",
            )
        given = experiment.networks[name]
        source = given.extractor.name
        if given.bundle or source_of(source).of_network or source in seen:
            continue
        seen.add(source)
        try:
            found = split_points(source, size, network)
        except Exception as error:  # what is only listed must not stop the examination
            reason = (str(error) or repr(error)).splitlines()[0]
            section.warn(f"{source}: its split points cannot be listed: {reason}")
            continue
        table = [["split", "channels", "feature map", "stride", "params M", "GFLOPs"]]
        table += [
            [
                one.name,
                str(one.channels),
                f"{one.size[0]} x {one.size[1]}",
                str(one.stride),
                f"{one.params / 1e6:.3f}",
                f"{one.gflops:.2f}",
            ]
            for one in found[:_MOST]
        ]
        section.tables[f"legal splits of {source} {at}"] = table
        used = given.extractor.split or (
            f"strides {given.extractor.strides}" if given.extractor.strides else "its usual place"
        )
        section.ok(f"{name} is split at {used}; {len(found)} single layers of {source} can be")
    return section


def _examine_fit(
    section: Section, name: str, multiple_of: int, size: tuple[int, int], input: Input
) -> None:
    """Say what a network sees of images and crops that are no multiples of its stride."""
    crop = (-(-input.crop // input.pool),) * 2
    behind = f" after the max-pool of {input.pool}" if input.pool > 1 else ""
    for what, whole in (("a test image", size), ("a training crop", crop)):
        seen = fitted(whole, multiple_of)
        if seen == whole:
            continue
        scale = max(abs(s / w - 1) for s, w in zip(seen, whole, strict=True))
        pixels = seen[0] * seen[1] / (whole[0] * whole[1])
        found = (
            f"{name} sees {what} of {whole[0]} x {whole[1]}{behind} as {seen[0]} x {seen[1]}, "
            f"multiples of its stride of {multiple_of}: a resize by up to {100 * scale:.1f} %, "
            f"{pixels:.2f} of the pixels to compute"
        )
        if what == "a training crop":
            step = multiple_of * input.pool
            lower = max(step, input.crop // step * step)
            section.warn(found, f"input.crop {lower}, which needs no resize")
        elif scale > _FAR:
            section.warn(found, f"images of at least {multiple_of * input.pool * 4} pixels a side")
        else:
            section.ok(found)


def split_points(name: str, size: tuple[int, int], network: Segmenter | None = None) -> list[Split]:
    """Return the legal splits of a network, from the image on.

    Args:
        name: as for `spiritseg.teacher`.
        size: (H, W) of the image.
        network: built; needed for a class path only, whose layers are listed.

    Raises:
        ConfigError: an unknown name.
    """
    if not (cuts := splits(name)):
        return [] if network is None else _layers(network, size)
    if source_of(name).whole is None:
        return [_built(name, split, size) for split in cuts]
    return _timm(name, size)


def _built(name: str, split: str, size: tuple[int, int]) -> Split:
    with torch.device("meta"):  # no weights are drawn
        extractor = teacher(name, split=split).extractor
        shape = tuple(extractor(torch.zeros(1, 3, *size)).shape)
    found = cost(extractor, size)
    there = (int(shape[2]), int(shape[3]))
    return Split(split, shape[1], extractor.stride, there, found.params, found.gflops)


def _timm(name: str, size: tuple[int, int]) -> list[Split]:
    import timm

    from spiritseg.models.timm import LITES

    model = LITES.get(name, name.removeprefix("timm:"))
    info: Any = timm.create_model(model, features_only=True).feature_info
    strides = info.reduction()
    of_stride = zip(info.channels(), strides, strict=True)
    described = dict(zip(map(str, info.module_name()), of_stride, strict=True))
    whole = timm.create_model(model).eval()
    points = _run(whole, torch.zeros(1, 3, *size), splits(name))
    found = []
    for path, one in points.items():  # as they are met on the way
        # timm describes the last layer of a stride only; the others are blocks with plain maps,
        # whose sizes are rounded up.
        nearest = min(strides, key=lambda s: abs(s - size[0] / one.shape[2]))
        channels, stride = described.get(path) or (one.shape[1], nearest)
        there = (-(-size[0] // stride), -(-size[1] // stride))
        found.append(Split(path, channels, stride, there, one.params, one.flops / 1e9))
    return found


def _layers(network: Segmenter, size: tuple[int, int]) -> list[Split]:
    module = getattr(network.extractor, "module", network.extractor)
    paths = [p for p, _ in module.named_modules() if p and p.count(".") < _DEPTH]
    run = network if network.head is not None else network.extractor
    with evaluating(network):
        found = _run(run, torch.zeros(1, 3, *size), paths, module)
    return [
        Split(
            path,
            one.shape[1],
            max(1, round(size[0] / one.shape[2])),
            (one.shape[2], one.shape[3]),
            one.params,
            one.flops / 1e9,
        )
        for path, one in found.items()
        if len(one.shape) == 4 and one.shape[2] > 1
    ]


@dataclass(frozen=True)
class _Point:
    shape: tuple[int, ...]
    params: int
    flops: int


@torch.no_grad()
def _run(
    network: nn.Module, image: Tensor, paths: Sequence[str], inside: nn.Module | None = None
) -> dict[str, _Point]:
    """Run a network once, and note at each layer what was spent up to its output."""
    found: dict[str, _Point] = {}
    used: dict[int, int] = {}
    modules = dict((inside or network).named_modules())
    with FlopCounterMode(display=False) as counter:

        def spend(module: nn.Module, *_: Any) -> None:
            used.update({id(p): p.numel() for p in module.parameters(recurse=False)})

        def note(path: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor) and path not in found:
                    flops = int(counter.get_total_flops())
                    found[path] = _Point(tuple(output.shape), sum(used.values()), flops)

            return hook

        hooks = [m.register_forward_pre_hook(spend) for m in network.modules()]
        hooks += [modules[p].register_forward_hook(note(p)) for p in paths if p in modules]
        with _removed(hooks):
            network(image)
    return found


@contextmanager
def _removed(hooks: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _parts(name: str, network: Segmenter, size: tuple[int, int]) -> list[list[str]]:
    extractor = cost(network.extractor, size)
    shape = _feature_shape(network, size)
    rows = [
        [
            name,
            "extractor",
            f"{shape[1]} x {shape[2]} x {shape[3]}",
            str(network.extractor.stride),
            f"{extractor.params / 1e6:.3f}",
            f"{extractor.gflops:.2f}",
        ]
    ]
    if network.head is not None:
        whole = cost(network, size)
        logits = f"{size[0]} x {size[1]}"
        rows.append([name, "whole", logits, "", f"{whole.params / 1e6:.3f}", f"{whole.gflops:.2f}"])
    return rows


@torch.no_grad()
def _feature_shape(network: Segmenter, size: tuple[int, int]) -> tuple[int, ...]:
    return tuple(network.eval().features(torch.zeros(1, 3, *size)).shape)
