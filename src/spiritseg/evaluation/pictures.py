"""Predictions side by side: input, truth, and the mask of each network."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from spiritseg.colours import overlay
from spiritseg.data.class_map import ClassMap
from spiritseg.files import write_atomically

__all__ = ["draw_predictions"]

Predictor = Callable[[Tensor], NDArray[np.uint8]]


def draw_predictions(
    students: Mapping[str, Predictor],
    images: Dataset[Any],
    classes: ClassMap,
    count: int,
    path: Path,
) -> None:
    """Draw evenly spaced images with their truth and each network's prediction.

    Args:
        students: (3, H, W) uint8 to an (H, W) mask, by the title of the column.
        images: (3, H, W) uint8 images with their (H, W) labels.
        classes: names and colours.
        count: rows at the most.
        path: a .png.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    total = len(images)  # type: ignore[arg-type]  # a map-style data set
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
    titles = ["input", "truth", *students]
    rows = [_row(images[int(i)], students, classes) for i in chosen]
    height, width = rows[0][0].shape[:2]
    figsize = (3 * len(titles), (3 * height / width + 0.05) * len(rows) + 0.7)
    figure = Figure(figsize=figsize, layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for axis, picture in zip(axes.flat, itertools.chain(*rows), strict=True):
        axis.imshow(picture)
        axis.set_axis_off()
    handles = [
        Patch(facecolor="#" + bytes(colour).hex(), edgecolor="black", label=name)
        for name, colour in zip(classes.names, classes.colours, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    write_atomically(path, buffer.getvalue())


def _row(
    sample: tuple[Tensor, Tensor], students: Mapping[str, Predictor], classes: ClassMap
) -> list[NDArray[np.uint8]]:
    image, labels = sample
    picture: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    masks = [labels.numpy(), *(student(image) for student in students.values())]
    return [picture, *(overlay(picture, mask, classes.colours, 0.55) for mask in masks)]
