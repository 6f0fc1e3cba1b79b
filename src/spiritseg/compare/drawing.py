"""Which figures a report has, drawn and ready for its page."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spiritseg.compare import figures
from spiritseg.compare.measured import Images, pictures
from spiritseg.compare.paper import method_of
from spiritseg.compare.results import Row
from spiritseg.compare.sections import Section
from spiritseg.files import write_atomically

__all__ = ["Figure", "draw_all", "sweep"]


@dataclass
class Figure:
    """A figure of the page.

    Args:
        title: above it.
        caption: below it.
        source: a data: address.
    """

    title: str
    caption: str
    source: str


@dataclass
class _Plan:
    """A figure to be drawn: its file's name, its texts, and what draws it."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Any]
    png: bool = False


def draw_all(
    main: Section,
    sections: Sequence[Section],
    images: Images,
    missing: list[str],
    folder: Path,
) -> list[Figure]:
    """Draw every figure that the runs allow.

    Args:
        main: the results that most figures show.
        sections: all results, for the label-efficiency curve.
        images: the test images, if they can be opened.
        missing: what cannot be drawn is added here.
        folder: where the PNGs go.

    Returns:
        The figures in the page's order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Figure] = []
    for plan in _plans(main, sections, images, missing):
        picture, raster = figures.drawn(plan.draw, plan.png)
        write_atomically(folder / f"{plan.name}.png", raster)
        kind = "png" if plan.png else "svg+xml"
        source = f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
        found.append(Figure(plan.title, plan.caption, source))
    return found


def _plans(
    main: Section, sections: Sequence[Section], images: Images, missing: list[str]
) -> Iterator[_Plan]:
    """Say what is drawn, in the page's order."""
    rows, shown = main.rows, figures.headline(main.rows)
    threshold = next(iter(rows.values())).first.experiment.evaluation.threshold
    yield _Plan(
        "cost",
        "Figure 1. Accuracy and cost",
        "mIOU against GFLOPs; the radius of a circle grows with HP-Acc. Means over seeds.",
        partial(figures.cost_figure, shown),
    )
    yield _Plan(
        "histogram",
        "Figure 5. The images' mIOU",
        "All seeds together." + (f" Outlined: {main.reference}." if main.reference else ""),
        partial(figures.histogram_figure, shown, threshold, main.reference),
    )
    yield from _pictures(main, images, missing)
    bars = "Bars: one standard deviation over seeds."
    swept = sweep(rows)
    if len(swept) > 1:
        own = swept[0].recipe.startswith("paper-")
        lines: dict[str, Row] = {
            title: row
            for title, row in rows.items()
            if method_of(row.recipe) in ("baseline", "sd")
            and row.recipe.startswith("paper-") == own
        }
        draw = partial(figures.ratio_figure, swept, lines)
        yield _Plan("ratio", "Figure 7. The ratio of target to proximity images", bars, draw)
    yield _Plan(
        "steadiness",
        "Figure 8. HP-Acc and Var",
        "Small dots: seeds. Upper left is better: more good images, and a steadier quality.",
        partial(figures.steadiness_figure, shown),
    )
    yield _Plan(
        "thresholds",
        "HP-Acc over all thresholds",
        "The share of the images above each threshold, all seeds together.",
        partial(figures.threshold_figure, shown, threshold),
    )
    curves, order = _curves(sections)
    if curves:
        draw = partial(figures.label_figure, curves, order)
        yield _Plan("labels", "Label efficiency", bars, draw)


def _pictures(main: Section, images: Images, missing: list[str]) -> Iterator[_Plan]:
    if not main.reference:
        return
    if images.domains is None:
        missing.append(f"Figure 6: the images cannot be opened here. {images.reason}")
        return
    pictured = pictures(main.rows, main.reference, images.domains)
    if pictured is not None:
        caption = (
            "The images with the largest gains and losses against "
            f"{main.reference}, and the worst ones, of the network on the right."
        )
        yield _Plan("pictures", "Figure 6. Predictions", caption, lambda: pictured, png=True)


def sweep(rows: Mapping[str, Row]) -> list[Row]:
    """Return the rows of the recipe with most ratios."""
    by_recipe: dict[str, list[Row]] = {}
    for row in rows.values():
        if row.first.ratio is not None:
            by_recipe.setdefault(row.first.recipe, []).append(row)
    return max(by_recipe.values(), key=len, default=[])


def _curves(sections: Sequence[Section]) -> tuple[dict[str, dict[str, Row]], list[str]]:
    """Collect, by title, the rows under each label count; of even or listed subsets none."""
    counted = [one for one in sections if one.labels.isdecimal() or one.labels == "all"]
    counted.sort(key=lambda one: float(one.labels) if one.labels.isdecimal() else math.inf)
    curves: dict[str, dict[str, Row]] = {}
    for section in counted:
        for title, row in section.rows.items():
            curves.setdefault(title, {})[section.labels] = row
    kept = {title: points for title, points in curves.items() if len(points) > 1}
    order = [one.labels for one in counted if any(one.labels in points for points in kept.values())]
    return dict(list(kept.items())[:8]), order
