"""Where each network can be cut into extractor and head, and what it costs up to there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spiritseg.doctor.findings import Examination, Known, reason
from spiritseg.evaluation.cost import Cost, cost
from spiritseg.geometry import Size, fitted
from spiritseg.models import Segmenter, splits, teacher
from spiritseg.models.sources import source_of
from spiritseg.tables import Table

__all__ = ["CutPoint", "cut_points", "examine_cut_points"]

_MOST = 24
_FEW = 4  # positions on a side of a training crop's feature map
_FAR = 0.1  # a resize to a multiple of the stride that changes what is seen


@dataclass(frozen=True)
class CutPoint:
    """A network up to a layer at which it can be cut.

    Args:
        name: As in the extractor's split.
        channels: C of the feature map there.
        stride: Image pixels per position.
        size: (h, w) of the feature map.
        cost: Parameters and operations up to there.
    """

    name: str
    channels: int
    stride: int
    size: Size
    cost: Cost


def examine_cut_points(found: Examination, known: Known) -> None:
    """Tabulate networks and their cut points; check that images and crops suit their strides."""
    size = f"{known.size[0]} x {known.size[1]}"
    rows: Table = [["network", "part", "feature map", "stride", "params M", "GFLOPs"]]
    found.tables[f"networks at {size}"] = rows
    listed: set[str] = set()
    for name, network in known.networks.items():
        where = f"networks.{name}"
        try:
            rows += _parts(name, network, known.size)
        except Exception as error:  # a network of the user's own may do anything
            found.problem(where, f"it cannot run on an image {size}: {reason(error)}")
        _check_strides(found, known, where, network)
        given = known.experiment.networks[name]
        extractor = given.extractor
        if given.bundle or source_of(extractor.name).of_network or extractor.name in listed:
            continue
        listed.add(extractor.name)
        try:
            points = cut_points(extractor.name, known.size)
        except Exception as error:  # what is only listed must not stop the examination
            found.warn(where, f"cut points cannot be listed: {reason(error)}")
            continue
        if points:
            found.tables[f"cut points of {extractor.name} at {size}"] = _table(points)
            strides = f"strides {extractor.strides}" if extractor.strides else "its usual place"
            at = extractor.cut_at or strides
            found.ok(where, f"cut at {at}; {len(points)} layers are possible")


def cut_points(name: str, size: Size) -> list[CutPoint]:
    """Return where a network can be cut, from the image on.

    Args:
        name: As for `spiritseg.teacher`; of a class path, no layers are listed.
        size: (H, W) of the image.

    Raises:
        ConfigError: if the name is unknown.
    """
    found = []
    for split in splits(name):
        extractor = teacher(name, cut_at=split).extractor
        with torch.no_grad():
            _, channels, *there = extractor(torch.zeros(1, 3, *size)).shape
        point = CutPoint(
            split, channels, extractor.stride, (there[0], there[1]), cost(extractor, size)
        )
        found.append(point)
    return found


def _table(points: list[CutPoint]) -> Table:
    rows = [["cut at", "channels", "feature map", "stride", "params M", "GFLOPs"]]
    for one in points[:_MOST]:
        there = f"{one.size[0]} x {one.size[1]}"
        rows.append([one.name, str(one.channels), there, str(one.stride), *_costs(one.cost)])
    return rows


def _parts(name: str, network: Segmenter, size: Size) -> Table:
    with torch.no_grad():
        shape = network.eval().features(torch.zeros(1, 3, *size)).shape
    there, stride = f"{shape[1]} x {shape[2]} x {shape[3]}", str(network.extractor.stride)
    rows = [[name, "extractor", there, stride, *_costs(cost(network.extractor, size))]]
    if network.head is not None:
        rows.append([name, "whole", f"{size[0]} x {size[1]}", "", *_costs(cost(network, size))])
    return rows


def _costs(of: Cost) -> list[str]:
    return [f"{of.params / 1e6:.3f}", f"{of.gflops:.2f}"]


def _check_strides(found: Examination, known: Known, where: str, network: Segmenter) -> None:
    """Warn of crops and images that do not suit a network's strides."""
    given = known.experiment.input
    side, multiple = -(-given.crop // given.pool), network.extractor.multiple_of
    positions = side // network.extractor.stride
    if positions < _FEW:
        found.warn(
            where,
            f"a crop of {side} pixels after the max-pool of {given.pool} leaves {positions} "
            f"positions a side at stride {network.extractor.stride}",
            "a larger input.crop, or an earlier split",
        )
    step = multiple * given.pool
    crop = f"input.crop {max(step, given.crop // step * step)}, which needs no resize"
    for what, whole, advice, far in (
        ("a training crop", (side, side), crop, 0.0),
        ("a test image", known.size, f"images of at least {4 * step} pixels a side", _FAR),
    ):
        seen = fitted(whole, multiple)
        if max(abs(s / w - 1) for s, w in zip(seen, whole, strict=True)) > far:
            found.warn(
                where,
                f"{what} of {whole[0]} x {whole[1]} after the max-pool of {given.pool} is resized "
                f"to {seen[0]} x {seen[1]}, multiples of the stride of {multiple}",
                advice,
            )
