"""The report's figures: which rows and images they show, and how they are drawn."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spiritseg.compare.conclusions import Setting
from spiritseg.compare.results import Row, is_paper
from spiritseg.files import make_folder, write_atomically

if TYPE_CHECKING:
    from spiritseg.data.domains import Domains

__all__ = ["Figure", "draw_all"]

_MOST = 8  # curves that one figure still shows legibly
_NETWORKS = 3  # predictions side by side
_EACH = 3  # images of each kind
_LEAST = 0.005  # smaller differences of mIOU cannot be seen

# Okabe and Ito's colours, told apart with any colour vision; yellow is too light for lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":")
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
}

_Rows = Mapping[str, Row]  # by title


@dataclass(frozen=True)
class Figure:
    """A figure of the page, and the paper's number of it."""

    name: str
    title: str
    paper: str
    caption: str
    draw: Callable[[], Any]


def draw_all(
    main: Setting, settings: Sequence[Setting], images: Domains | None, trust: bool, folder: Path
) -> list[tuple[Figure, str]]:
    """Draw the figures that the runs allow, as PNG files in `folder`.

    Most show the main setting; the predictions need its test images and a baseline.

    Returns:
        Each figure with its data URL, in the page's order.
    """
    make_folder(folder)
    found = []
    for figure in _plan(main, settings, images, trust):
        picture = drawn(figure.draw)
        write_atomically(folder / f"{figure.name}.png", picture)
        found.append((figure, f"data:image/png;base64,{base64.b64encode(picture).decode()}"))
    return found


def drawn(draw: Callable[[], Any]) -> bytes:
    """Return a matplotlib figure as PNG."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        picture = io.BytesIO()
        draw().savefig(picture, format="png", dpi=150)
    return picture.getvalue()


def _plan(
    main: Setting, settings: Sequence[Setting], images: Domains | None, trust: bool
) -> Iterator[Figure]:
    """Yield what is drawn, in the page's order."""
    shown, reference = _headline(main.rows), main.reference
    caption = "The radius of a circle grows with HP-Acc. Means over seeds."
    draw = partial(_cost_figure, shown)
    yield Figure("cost", "Accuracy against cost", "Figure 1", caption, draw)
    caption = "All seeds together." + (f" Outlined: {reference}." if reference else "")
    draw = partial(_histogram_figure, shown, main.threshold, reference)
    yield Figure("histogram", "mIOU of single images", "Figure 5", caption, draw)
    if reference and images and (chosen := _choose(main.rows, reference, images)):
        caption = (
            f"The images with the largest gains and losses against {reference}, and the worst "
            "ones, of the network on the right."
        )
        draw = partial(_predictions_figure, *chosen, images, trust)
        yield Figure("predictions", "Predictions", "Figure 6", caption, draw)
    bars = "Bars: one standard deviation over seeds."
    if len(swept := _sweep(main.rows)) > 1:
        draw = partial(_ratio_figure, swept, main.rows)
        yield Figure("ratio", "Ratio of target to proximity images", "Figure 7", bars, draw)
    caption = "Small dots: seeds. Upper left is better: more good images, and a steadier quality."
    draw = partial(_steadiness_figure, shown)
    yield Figure("steadiness", "HP-Acc against Var", "Figure 8", caption, draw)
    curves, order = _label_curves(settings)
    if curves:
        draw = partial(_curves_figure, curves, order, "labelled images", {})
        yield Figure("labels", "Label efficiency", "", bars, draw)


def _headline(rows: _Rows) -> dict[str, Row]:
    """Choose one row per recipe: of several ratios r = 0.5 (the paper's), or the nearest."""
    best: dict[str, str] = {}
    for title, row in rows.items():
        recipe, ratio = row.first.recipe, row.first.ratio
        before = rows[best[recipe]].first.ratio if recipe in best else None
        if before is None or ratio is None or abs(ratio - 0.5) < abs(before - 0.5):
            best[recipe] = title
    return {title: rows[title] for title in rows if title in list(best.values())[:_MOST]}


def _axes(width: float, height: float, rows: int = 1, columns: int = 1, **further: Any) -> Any:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **further)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _marker(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]


def _cost_figure(rows: _Rows) -> Any:
    """mIOU against GFLOPs; the radius of a circle is HP-Acc."""
    figure, ((axis,),) = _axes(8, 4.4)
    xs = [float(row.first.metrics["cost"]["gflops"]) for row in rows.values()]
    ys = [100 * row.mean("mIOU") for row in rows.values()]
    for number, (x, y, (title, row)) in enumerate(zip(xs, ys, rows.items(), strict=True)):
        share, colour = row.mean("HP-Acc"), _colour(number)
        axis.plot(x, y, "o", ms=6 + 34 * share, color=colour, alpha=0.35, mew=1.2)
        label = f"{title} (HP-Acc {100 * share:.0f} %)"
        axis.plot(x, y, _marker(number), ms=5, color=colour, label=label)
    if min(xs) > 0 and max(xs) > 8 * min(xs):
        axis.set_xscale("log")
    axis.margins(0.3)  # room for large circles
    axis.set(xlabel="GFLOPs per image", ylabel="mIOU (%)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _histogram_figure(rows: _Rows, threshold: float, reference: str) -> Any:
    """Distribution of the mIOU of single images; the reference is outlined behind the others."""
    figure, axes = _axes(7, 0.6 + 1.25 * len(rows), len(rows), sharex=True, sharey=True)
    pooled = {title: _pooled(row) for title, row in rows.items()}
    lowest = min(float(values.min()) for values in pooled.values())
    bins = np.arange(np.floor(lowest * 40) / 40, 1.0001, 0.025)
    shares = {title: np.full(len(values), 100 / len(values)) for title, values in pooled.items()}
    for number, (title, values) in enumerate(pooled.items()):
        axis = axes[number][0]
        axis.hist(values, bins, weights=shares[title], color=_colour(number), alpha=0.75)
        if reference in pooled and title != reference:
            line: Any = {"histtype": "step", "color": "0.25", "lw": 1.1}
            axis.hist(pooled[reference], bins, weights=shares[reference], **line)
        axis.axvline(threshold, color="0.25", ls=":", lw=1.2)
        axis.set_title(title, loc="left", fontsize=10, pad=2)
    axes[-1][0].set_xlabel(f"mIOU of an image (dotted: HP-Acc's threshold {threshold:g})")
    figure.supylabel("share of the images (%)", fontsize=10)
    return figure


def _pooled(row: Row) -> NDArray[np.float64]:
    return np.array([v for images in row.per_image().values() for v in images.values()])


def _steadiness_figure(rows: _Rows) -> Any:
    """HP-Acc against Var; a small dot per seed, a large marker for their mean."""
    figure, ((axis,),) = _axes(8, 4.2)
    for number, (title, row) in enumerate(rows.items()):
        xs, ys = 1000 * np.array(row.values("Var")), 100 * np.array(row.values("HP-Acc"))
        axis.plot(xs, ys, ".", color=_colour(number), alpha=0.5, ms=6)
        axis.plot(xs.mean(), ys.mean(), _marker(number), ms=9, color=_colour(number), label=title)
    axis.set(xlabel="Var of the images' mIOU (e-3)", ylabel="HP-Acc (%)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _sweep(rows: _Rows) -> list[Row]:
    """Return the rows of the recipe with most ratios."""
    by_recipe: dict[str, list[Row]] = {}
    for row in rows.values():
        if row.first.ratio is not None:
            by_recipe.setdefault(row.first.recipe, []).append(row)
    return max(by_recipe.values(), key=len, default=[])


def _ratio_figure(swept: Sequence[Row], rows: _Rows) -> Any:
    """One curve over the ratios, and S and SD of the same networks as lines."""
    points = {f"{row.first.ratio:g}": row for row in swept}
    curves = {swept[0].title.partition(" r=")[0]: points}
    lines = {
        title: row
        for title, row in rows.items()
        if row.recipe.removeprefix("paper-") in ("baseline", "sd")
        and is_paper(row.recipe) == is_paper(swept[0].recipe)
    }
    label = "r, target : proximity (0: proximity only)"
    return _curves_figure(curves, sorted(points, key=float), label, lines)


def _label_curves(settings: Sequence[Setting]) -> tuple[dict[str, dict[str, Row]], list[str]]:
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


def _curves_figure(
    curves: Mapping[str, _Rows], order: Sequence[str], label: str, lines: _Rows
) -> Any:
    """mIOU and HP-Acc against ratios or label counts; `lines` are horizontal."""
    figure, (axes,) = _axes(8.5, 3.7, 1, 2)
    for axis, metric in zip(axes, ("mIOU", "HP-Acc"), strict=True):
        for number, (title, row) in enumerate(lines.items()):
            style = _LINES[(number + 1) % len(_LINES)]
            axis.axhline(100 * row.mean(metric), color=_colour(number), ls=style, label=title)
        for place, (title, points) in enumerate(curves.items()):
            # Side by side, so that the error bars at equal places do not hide each other.
            shift, number = 0.06 * (place - (len(curves) - 1) / 2), place + len(lines)
            axis.errorbar(
                [order.index(x) + shift for x in order if x in points],
                [100 * points[x].mean(metric) for x in order if x in points],
                [100 * np.nan_to_num(points[x].std(metric)) for x in order if x in points],
                fmt=_marker(number) + _LINES[place % len(_LINES)],
                color=_colour(number),
                capsize=3,
                label=title,
            )
        axis.set_xticks(range(len(order)), order)
        axis.set(xlabel=label, ylabel=f"{metric} (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


_Scores = dict[str, dict[int, float]]  # mIOU by title and index of a test image


def _choose(
    rows: _Rows, reference: str, images: Domains
) -> tuple[dict[str, Row], dict[str, list[int]], _Scores] | None:
    """Choose rows, images by why they are shown, and their mIOU; None without a comparison."""
    shown = _side_by_side(rows, reference)
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


def _side_by_side(rows: _Rows, reference: str) -> dict[str, Row]:
    """Choose the reference, SD and ESD; others where these are missing."""
    methods = {t: row.recipe.removeprefix("paper-") for t, row in rows.items()}
    order = [t for t, method in methods.items() if method in ("sd", "esd")]
    order += [t for t in rows if t not in order and t != reference and methods[t] != "ct"]
    return {title: rows[title] for title in [reference, *order][:_NETWORKS] if title in rows}


def _predictions_figure(
    rows: _Rows, groups: Mapping[str, Sequence[int]], scores: _Scores, images: Domains, trust: bool
) -> Any:
    """Input, truth and predictions of chosen images, under each row's first seed."""
    from matplotlib.patches import Patch

    from spiritseg.student import load

    students = {title: load(row.first.folder, trust=trust) for title, row in rows.items()}
    chosen = [(why, index) for why, indices in groups.items() for index in indices]
    names, classes = images.names("test"), images.classes
    height, width = images.test[chosen[0][1]][0].shape[-2:]
    columns = 2 + len(students)
    size = (2.15 * columns, (2.1 * height / width + 0.28) * len(chosen) + 0.9)
    figure, axes = _axes(*size, len(chosen), columns)
    for line, (why, index) in zip(axes, chosen, strict=True):
        image, labels = images.test[index]
        picture = image.permute(1, 2, 0).numpy()
        masks = [labels.numpy(), *(student(image) for student in students.values())]
        blends = [(picture * 0.45 + classes.colourise(m) * 0.55).astype(np.uint8) for m in masks]
        titles = [f"{why}: {Path(names[index]).name}", "truth"]
        titles += [f"{t}: mIOU {100 * scores[t][index]:.0f} %" for t in students]
        for axis, shown, title in zip(line, [picture, *blends], titles, strict=True):
            axis.imshow(shown)
            axis.set_title(title, fontsize=7)
            axis.set_axis_off()
    handles = [
        Patch(facecolor=f"#{bytes(colour).hex()}", edgecolor="black", label=name)
        for name, colour in zip(classes.names, classes.colours, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    return figure
