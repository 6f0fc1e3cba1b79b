"""Which geometry at sizes that are no multiple of the stride? The same weights, other inference.

    python benchmarks/geometry.py runs/a runs/b --split val --report geometry.md

Each row is a way to bring an image to a multiple of the network's deepest stride and its logits
back to the labels' grid; each column a finished run, measured on its own images. What is chosen
is `spiritseg.geometry.fit`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import spiritseg
from spiritseg.data.datasets import EvalData
from spiritseg.data.domains import open_target
from spiritseg.evaluation.iou import ImageIoU
from spiritseg.models import Segmenter
from spiritseg.tables import Table, markdown

Size = tuple[int, int]
Way = Callable[[Segmenter, Tensor, Size, int], Tensor]  # network, pooled image, (H, W), pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--split", choices=["val", "test"], default="val")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--report", type=Path, help="write the table here")
    options = parser.parse_args()
    overrides: dict[str, Any] = dict(one.split("=", 1) for one in options.set)
    columns = {str(run.name): measured(run, options.split, overrides) for run in options.runs}
    table: Table = [["way", *columns]]
    table += [[way, *(f"{columns[run][way]:.1f}" for run in columns)] for way in WAYS]
    print(markdown(table))
    if options.report:
        options.report.write_text(markdown(table) + "\n")


@torch.no_grad()
def measured(run: Path, split: Any, overrides: dict[str, Any]) -> dict[str, float]:
    student = spiritseg.load(run, trust=True)
    experiment = student.experiment(overrides)
    images = open_target(experiment.target, experiment.input, split)
    data, pool = EvalData(images, experiment.input), experiment.input.pool
    found = {way: ImageIoU(len(student.classes)) for way in WAYS}
    for index in range(len(data)):
        image, labels = data[index]["image"][None], data[index]["labels"][None]
        size = (labels.shape[-2], labels.shape[-1])
        for name, way in WAYS.items():
            found[name].update(way(student.network, image, size, pool).argmax(1), labels)
    return {name: 100 * float(metric.compute()["mIOU"]) for name, metric in found.items()}


def as_before(network: Segmenter, image: Tensor, size: Size, pool: int) -> Tensor:
    """Take no care of remainders, as the first version did."""
    features = network.extractor(image)
    logits = network.classify(features, image.shape[-2:])
    return F.interpolate(logits, size, mode="bilinear")


def resized(rounding: Callable[[float], int], **how: Any) -> Way:
    def way(network: Segmenter, image: Tensor, size: Size, pool: int) -> Tensor:
        multiple = network.extractor.multiple_of
        whole = [max(1, rounding(side / multiple)) * multiple for side in image.shape[-2:]]
        features = network.extractor(F.interpolate(image, whole, **how).clamp(0, 1))
        covered = [side * pool for side in image.shape[-2:]]
        return network.classify(features, covered)[..., : size[0], : size[1]]

    return way


def padded(**how: Any) -> Way:
    def way(network: Segmenter, image: Tensor, size: Size, pool: int) -> Tensor:
        multiple = network.extractor.multiple_of
        bottom, right = (-side % multiple for side in image.shape[-2:])
        mean = torch.tensor(network.extractor.mean).view(1, 3, 1, 1)
        whole = F.pad(image - mean, (0, right, 0, bottom), **how) + mean
        covered = [side * pool for side in whole.shape[-2:]]
        logits = network.classify(network.extractor(whole), covered)
        return logits[..., : size[0], : size[1]]

    return way


def up(x: float) -> int:
    return -int(-x // 1)


def to_nearest(x: float) -> int:
    return int(x + 0.5)


WAYS: dict[str, Way] = {
    "as before": as_before,
    "resized to the nearest multiple, bilinear": resized(to_nearest, mode="bilinear"),
    "the same, antialiased": resized(to_nearest, mode="bilinear", antialias=True),
    "the same, bicubic": resized(to_nearest, mode="bicubic"),
    "resized to the next larger multiple, bilinear": resized(up, mode="bilinear"),
    "resized to the next smaller multiple, bilinear": resized(int, mode="bilinear"),
    "padded, reflected": padded(mode="reflect"),
    "padded, edges repeated": padded(mode="replicate"),
    "padded with the mean, the exact grid": padded(mode="constant"),
}


if __name__ == "__main__":
    main()
