"""Which figures a report has, and which rows and images they show."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritseg.compare.conclusions import Setting
from spiritseg.compare.measured import MeasuredImages
from spiritseg.compare.paper import is_paper, method_of
from spiritseg.compare.plots import (
    cost_figure,
    curves_figure,
    drawn,
    histogram_figure,
    predictions_figure,
    steadiness_figure,
    threshold_figure,
)
from spiritseg.compare.results import Row
from spiritseg.files import make_folder, write_atomically

if TYPE_CHECKING:
    from spiritseg.data.domains import Domains

__all__ = ["Figure", "draw_all", "headline"]

_MOST = 8  # curves that one figure still shows legibly
_NETWORKS = 3  # predictions side by side
_EACH = 3  # images of each kind
_LEAST = 0.005  # smaller differences of mIOU cannot be seen


@dataclass(frozen=True)
class Figure:
    """A figure of the page, and the paper's number of it."""

    name: str
    title: str
    paper: str
    caption: str
    source: str = ""


def draw_all(
    main: Setting,
    settings: Sequence[Setting],
    images: MeasuredImages,
    missing: list[str],
    folder: Path,
) -> list[Figure]:
    """Draw every figure that the runs allow, in the page's order, with a PNG in `folder`.

    Most show the main setting; what cannot be drawn is appended to `missing`.
    """
    make_folder(folder)
    found = []
    for figure, draw in _plan(main, settings, images, missing):
        is_photo = figure.name == "predictions"
        picture, raster = drawn(draw, is_photo)
        write_atomically(folder / f"{figure.name}.png", raster)
        kind = "png" if is_photo else "svg+xml"
        source = f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
        found.append(dataclasses.replace(figure, source=source))
    return found


def _plan(
    main: Setting, settings: Sequence[Setting], images: MeasuredImages, missing: list[str]
) -> Iterator[tuple[Figure, Callable[[], Any]]]:
    """Yield what is drawn, in the page's order."""
    rows, shown, reference = main.rows, headline(main.rows), main.reference
    caption = "The radius of a circle grows with HP-Acc. Means over seeds."
    yield (
        Figure("cost", "Accuracy against cost", "Figure 1", caption),
        partial(cost_figure, shown),
    )
    caption = "All seeds together." + (f" Outlined: {reference}." if reference else "")
    yield (
        Figure("histogram", "mIOU of single images", "Figure 5", caption),
        partial(histogram_figure, shown, main.threshold, reference),
    )
    if reference and images.domains is None:
        missing.append(f"Predictions: the images cannot be opened here. {images.reason}")
    elif reference and images.domains is not None:
        chosen = _choose(rows, reference, images.domains)
        caption = (
            f"The images with the largest gains and losses against {reference}, and the worst "
            "ones, of the network on the right."
        )
        if chosen is not None:
            yield (
                Figure("predictions", "Predictions", "Figure 6", caption),
                partial(predictions_figure, *chosen, images.domains),
            )
    bars = "Bars: one standard deviation over seeds."
    swept = _sweep(rows)
    if len(swept) > 1:
        yield (
            Figure("ratio", "Ratio of target to proximity images", "Figure 7", bars),
            partial(curves_figure, *_ratio_curves(swept, rows)),
        )
    caption = "Small dots: seeds. Upper left is better: more good images, and a steadier quality."
    yield (
        Figure("steadiness", "HP-Acc against Var", "Figure 8", caption),
        partial(steadiness_figure, shown),
    )
    caption = "The share of the images above each threshold, all seeds together."
    yield (
        Figure("thresholds", "HP-Acc over all thresholds", "", caption),
        partial(threshold_figure, shown, main.threshold),
    )
    curves, order = _label_curves(settings)
    if curves:
        yield (
            Figure("labels", "Label efficiency", "", bars),
            partial(curves_figure, curves, order, "labelled images", {}),
        )


def headline(rows: Mapping[str, Row], most: int = _MOST) -> dict[str, Row]:
    """Choose one row per recipe: of several ratios r = 0.5 (the paper's), or the nearest."""
    best: dict[str, str] = {}
    for title, row in rows.items():
        recipe, ratio = row.first.recipe, row.first.ratio
        before = rows[best[recipe]].first.ratio if recipe in best else None
        if before is None or ratio is None or abs(ratio - 0.5) < abs(before - 0.5):
            best[recipe] = title
    return {title: rows[title] for title in rows if title in list(best.values())[:most]}


def _sweep(rows: Mapping[str, Row]) -> list[Row]:
    """Return the rows of the recipe with most ratios."""
    by_recipe: dict[str, list[Row]] = {}
    for row in rows.values():
        if row.first.ratio is not None:
            by_recipe.setdefault(row.first.recipe, []).append(row)
    return max(by_recipe.values(), key=len, default=[])


_Curves = tuple[dict[str, dict[str, Row]], list[str]]


def _ratio_curves(
    swept: Sequence[Row], rows: Mapping[str, Row]
) -> tuple[dict[str, dict[str, Row]], list[str], str, dict[str, Row]]:
    """Collect one curve over the ratios, and S and SD of the same networks as lines."""
    points = {f"{row.first.ratio:g}": row for row in swept}
    order = sorted(points, key=float)
    lines = {
        title: row
        for title, row in rows.items()
        if method_of(row.recipe) in ("baseline", "sd")
        and is_paper(row.recipe) == is_paper(swept[0].recipe)
    }
    title = swept[0].title.partition(" r=")[0]
    return {title: points}, order, "r, target : proximity (0: proximity only)", lines


def _label_curves(settings: Sequence[Setting]) -> _Curves:
    """Collect the rows by title and label count; not those of even or listed subsets."""
    counted = [one for one in settings if one.labels.isdecimal() or one.labels == "all"]
    counted.sort(key=lambda one: float(one.labels) if one.labels.isdecimal() else math.inf)
    curves: dict[str, dict[str, Row]] = {}
    for setting in counted:
        for title, row in setting.rows.items():
            curves.setdefault(title, {})[setting.labels] = row
    kept = {title: points for title, points in curves.items() if len(points) > 1}
    order = [one.labels for one in counted if any(one.labels in points for points in kept.values())]
    return dict(list(kept.items())[:_MOST]), order


_Scores = dict[str, dict[int, float]]


def _choose(
    rows: Mapping[str, Row], reference: str, images: Domains
) -> tuple[dict[str, Row], dict[str, list[int]], _Scores] | None:
    """Choose rows, images by why they are shown, and their mIOU; None without a comparison."""
    shown = _shown(rows, reference)
    place = {name: index for index, name in enumerate(images.names("test"))}
    scores = {
        title: {place[n]: v for n, v in row.first.per_image.items() if n in place}
        for title, row in shown.items()
    }
    common = sorted(set.intersection(*(set(found) for found in scores.values())))
    if len(shown) < 2 or not common:
        return None
    last = scores[list(shown)[-1]]
    gain = {index: last[index] - scores[reference][index] for index in common}
    by_gain = sorted(common, key=lambda index: gain[index])
    each = min(_EACH, max(1, len(common) // 3))
    groups = {
        "gain": [index for index in by_gain[::-1][:each] if gain[index] > _LEAST],
        "loss": [index for index in by_gain[:each] if gain[index] < -_LEAST],
        "worst": sorted(common, key=lambda index: last[index])[:each],
    }
    return shown, groups, scores


def _shown(rows: Mapping[str, Row], reference: str) -> dict[str, Row]:
    """Choose the reference, SD and ESD; others where these are missing."""
    methods = {t: method_of(row.recipe) for t, row in rows.items()}
    order = [t for t, method in methods.items() if method in ("sd", "esd")]
    order += [t for t in rows if t not in order and t != reference and methods[t] != "ct"]
    return {title: rows[title] for title in [reference, *order][:_NETWORKS] if title in rows}
