"""Labels: which classes each split shows, and where that is too little to learn from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spiritseg.data.class_map import IGNORED, ClassMap
from spiritseg.doctor.findings import Examination
from spiritseg.errors import listed

__all__ = ["examine_labels"]


def examine_labels(
    found: Examination, classes: ClassMap, pixels: Mapping[str, Mapping[str, Tensor | None]]
) -> None:
    """Tabulate the classes of each split; warn of classes that are missing or ignored.

    Args:
        found: gets the findings and a table.
        classes: the class map.
        pixels: by split and image name, (256,) the pixels of each class; None where the labels
            were not read.
    """
    shown = {
        name: {image: one for image, one in images.items() if one is not None}
        for name, images in pixels.items()
    }
    totals = {
        name: torch.stack(list(images.values())).sum(0) if images else torch.zeros(256).long()
        for name, images in shown.items()
    }
    _tabulate(found, classes, shown, totals)
    train = totals.get("train")
    if train is None or not int(train.sum()):
        return
    ignored = int(train[IGNORED]) / int(train.sum())
    if ignored == 1:
        found.problem(
            "target.classes",
            "all pixels of the training images are ignored (255)",
            "check the class map",
        )
        return
    if ignored > 0.5:
        found.warn(
            "target.classes",
            f"{100 * ignored:.0f} % of the training pixels are ignored",
            "check that the class map names all values of the masks",
        )
    _check_missing(found, classes, totals)
    _check_road(found, classes, shown)


def _tabulate(
    found: Examination,
    classes: ClassMap,
    shown: Mapping[str, Mapping[str, Tensor]],
    totals: Mapping[str, Tensor],
) -> None:
    rows = [["class", *shown]]
    for index, label in [*enumerate(classes.names), (IGNORED, "(ignored)")]:
        row = [label]
        for name, images in shown.items():
            share = int(totals[name][index]) / max(1, int(totals[name].sum()))
            row.append(f"{100 * share:.2f} ({sum(bool(one[index]) for one in images.values())})")
        rows.append(row)
    found.tables["pixels of each class in % (images that show it)"] = rows


def _check_missing(found: Examination, classes: ClassMap, totals: Mapping[str, Tensor]) -> None:
    for index, label in enumerate(classes.names):
        if int(totals["train"][index]):
            continue
        others = [name for name, total in totals.items() if int(total[index])]
        if others:
            found.warn(
                "train",
                f"no training image shows {label}, but {' and '.join(others)} images do",
                "choose other images (target.subset, such as even:64), or merge the class",
            )
        else:
            found.warn("target.classes", f"no image shows {label}", "check the class map")


def _check_road(
    found: Examination, classes: ClassMap, shown: Mapping[str, Mapping[str, Tensor]]
) -> None:
    road = next((i for i, label in enumerate(classes.names) if label.lower() == "road"), None)
    for name, images in shown.items():
        if road is None:
            return
        without = [image for image, one in images.items() if not int(one[road])]
        if without and len(without) == len(images):
            found.problem(
                name,
                "no image shows any road",
                "masks of a folder hold 0 background, 1 road, 255 ignored; otherwise name their "
                "values in a classes.yaml",
            )
        elif without:
            what = f"{len(without)} of {len(images)} images show no road:\n{listed(without, 5)}"
            found.warn(name, what)
