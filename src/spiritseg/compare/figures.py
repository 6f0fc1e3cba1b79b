"""The papers' figures from finished runs: matplotlib, colour-blind-safe, no overlap."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiritseg.compare.results import Row

__all__ = [
    "cost_figure",
    "drawn",
    "front_figure",
    "headline",
    "histogram_figure",
    "label_figure",
    "pictures_figure",
    "ratio_figure",
    "steadiness_figure",
    "threshold_figure",
]

# Okabe and Ito's colours, told apart with any colour vision; yellow is too light for lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MOST = 8  # curves that one figure still shows legibly


def headline(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Choose the rows that figures of whole distributions show: of a ratio sweep only one.

    Args:
        rows: by title.

    Returns:
        Eight at the most; of each swept recipe r = 0.5 (the paper's), or what is nearest.
    """
    best: dict[str, str] = {}
    for title, row in rows.items():
        recipe, ratio = row.first.recipe, row.first.ratio
        before = rows[best[recipe]].first.ratio if recipe in best else None
        if before is None or ratio is None or abs(ratio - 0.5) < abs(before - 0.5):
            best[recipe] = title
    return {title: rows[title] for title in rows if title in list(best.values())[:_MOST]}


@contextmanager
def _style() -> Iterator[None]:
    from matplotlib import rc_context

    settings: Any = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.axisbelow": True,
        "svg.hashsalt": "spiritseg",  # the same picture is the same file
    }
    with rc_context(settings):
        yield


def drawn(draw: Callable[[], Any], png: bool = False, dpi: int = 110) -> tuple[bytes, bytes]:
    """Draw a figure.

    Args:
        draw: one of this module's functions, bound to its arguments.
        png: whether the first picture is a PNG too: for photographs.
        dpi: of the PNG.

    Returns:
        The figure as SVG (or PNG), and as PNG.
    """
    with _style():
        figure = draw()
        raster, vector = io.BytesIO(), io.BytesIO()
        figure.savefig(raster, format="png", dpi=dpi)
        if png:
            return raster.getvalue(), raster.getvalue()
        figure.savefig(vector, format="svg", metadata={"Date": None})
    return vector.getvalue(), raster.getvalue()


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **further: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **further)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _spread(values: Sequence[float], gap: float) -> NDArray[np.float64]:
    """Move values apart until neighbours are `gap` from each other, around where they were."""
    order = np.argsort(values, kind="stable")
    places = np.array(values, float)[order]
    for _ in range(200):
        close = np.diff(places) < gap - 1e-9
        if not close.any():
            break
        short = np.where(close, (gap - np.diff(places)) / 2, 0)
        places[:-1] -= short
        places[1:] += short
    found = np.empty_like(places)
    found[order] = places
    return found


def _name_points(axis: Any, xs: Sequence[float], ys: Sequence[float], names: Sequence[str]) -> None:
    """Write names in a column at the right of the axis, each with a line to its point."""
    low, high = axis.get_ylim()
    column = _spread(ys, (high - low) * 0.062)
    column += min(0.0, high - column.max())
    column += max(0.0, low - column.min())
    for number, (x, y, place, name) in enumerate(zip(xs, ys, column, names, strict=True)):
        axis.annotate(
            name,
            (x, y),
            xytext=(1.04, (place - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            color=_colour(number),
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": _colour(number), "lw": 0.7, "shrinkB": 3},
        )


def cost_figure(rows: Mapping[str, Row]) -> Any:
    """Figure 1: mIOU against GFLOPs; the radius is HP-Acc.

    Args:
        rows: by title.
    """
    figure, axes = _figure(8, 4.4)
    axis = axes[0][0]
    xs = [float(row.first.metrics["cost"]["gflops"]) for row in rows.values()]
    ys = [100 * row.mean("mIOU") for row in rows.values()]
    for number, (x, y, row) in enumerate(zip(xs, ys, rows.values(), strict=True)):
        hp_acc = row.mean("HP-Acc")
        radius = 3 + 17 * hp_acc  # points
        axis.plot(x, y, "o", ms=2 * radius, color=_colour(number), alpha=0.35, mew=1.2)
        axis.plot(x, y, ".", ms=4, color=_colour(number))
    _margins(axis, xs, ys)
    axis.set(xlabel="GFLOPs an image", ylabel="mIOU (%)")
    names = [f"{title} (HP-Acc {100 * row.mean('HP-Acc'):.0f} %)" for title, row in rows.items()]
    _name_points(axis, xs, ys, names)
    return figure


def front_figure(settings: Mapping[str, Mapping[str, Row]], latency: Mapping[str, float]) -> Any:
    """Draw mIOU and HP-Acc against latency, with the standard deviation over seeds.

    Args:
        settings: rows by title, by label count: one line of panels each.
        latency: of a recipe's network in ms, by recipe.
    """
    figure, axes = _figure(9.5, 3.4 * len(settings), len(settings), 2, sharex=True)
    recipes = list(
        dict.fromkeys(r.first.recipe for rows in settings.values() for r in rows.values())
    )
    for line, (labels, rows) in zip(axes, settings.items(), strict=True):
        for axis, name in zip(line, ("mIOU", "HP-Acc"), strict=True):
            for title, row in rows.items():
                number = recipes.index(row.first.recipe)
                spread = row.std(name)
                axis.errorbar(
                    latency[row.first.recipe],
                    100 * row.mean(name),
                    yerr=0 if np.isnan(spread) else 100 * spread,
                    fmt=_MARKERS[number % len(_MARKERS)],
                    color=_colour(number),
                    mfc=_colour(number) if number < len(_COLOURS) else "white",
                    capsize=3,
                    label=title,
                )
            axis.set(ylabel=f"{name} (%)", title=f"labels: {labels}")
    for axis in axes[-1]:
        axis.set_xlabel("latency (ms)")
    handles = {
        label: handle
        for line in axes
        for handle, label in zip(*line[1].get_legend_handles_labels(), strict=True)
    }
    axes[0][1].legend(
        handles.values(), handles, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False
    )
    return figure


def _margins(axis: Any, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Leave room for large markers; a logarithmic x where costs differ much."""
    spread = max(max(ys) - min(ys), 2.0)
    axis.set_ylim(min(ys) - 0.3 * spread, max(ys) + 0.3 * spread)
    if min(xs) > 0 and max(xs) > 8 * min(xs):
        axis.set_xscale("log")
        axis.set_xlim(min(xs) / 1.8, max(xs) * 1.8)
    else:
        width = max(max(xs) - min(xs), 0.2 * max(xs), 1e-6)
        axis.set_xlim(min(xs) - 0.35 * width, max(xs) + 0.35 * width)


def histogram_figure(rows: Mapping[str, Row], threshold: float, reference: str | None) -> Any:
    """Figure 5: how the mIOU of single images is distributed, over all seeds.

    Args:
        rows: by title.
        threshold: of HP-Acc.
        reference: the row that is outlined behind the others.
    """
    figure, axes = _figure(7, 0.6 + 1.25 * len(rows), len(rows), sharex=True, sharey=True)
    pooled = {title: _pooled(row) for title, row in rows.items()}
    lowest = min(float(values.min()) for values in pooled.values())
    bins = np.arange(np.floor(lowest * 40) / 40, 1.0001, 0.025)
    for number, (title, values) in enumerate(pooled.items()):
        axis = axes[number][0]
        share = np.full(len(values), 100 / len(values))
        axis.hist(values, bins, weights=share, color=_colour(number), alpha=0.75)
        if reference in pooled and title != reference:
            behind = pooled[reference]
            share = np.full(len(behind), 100 / len(behind))
            axis.hist(behind, bins, weights=share, histtype="step", color="0.25", lw=1.1)
        axis.axvline(threshold, color="0.25", ls=":", lw=1.2)
        axis.set_title(title, loc="left", fontsize=10, pad=2)
    axes[-1][0].set_xlabel(f"mIOU of an image (dotted: HP-Acc's threshold {threshold:g})")
    figure.supylabel("share of the images (%)", fontsize=10)
    return figure


def _pooled(row: Row) -> NDArray[np.float64]:
    return np.array([v for images in row.per_image().values() for v in images.values()])


def ratio_figure(swept: Sequence[Row], others: Mapping[str, Row]) -> Any:
    """Figure 7: HP-Acc and mIOU against r = |Dt| : |Dp|; bars are one standard deviation.

    Args:
        swept: one recipe at several ratios.
        others: rows that are drawn as horizontal lines, such as S and SD.
    """
    figure, axes = _figure(8.5, 3.6, 1, 2)
    swept = sorted(swept, key=lambda row: row.first.ratio or 0)
    ticks = [f"{row.first.ratio:g}" for row in swept]
    for axis, metric in zip(axes[0], ("mIOU", "HP-Acc"), strict=True):
        means = [100 * row.mean(metric) for row in swept]
        errors = [100 * np.nan_to_num(row.std(metric)) for row in swept]
        title = swept[0].title.partition(" r=")[0]
        axis.errorbar(
            range(len(swept)), means, errors, fmt="o-", capsize=3, color=_colour(3), label=title
        )
        for number, (name, row) in enumerate(others.items(), start=1):
            style, colour = _STYLES[number % len(_STYLES)], _colour(2 * (number - 1))
            axis.axhline(100 * row.mean(metric), color=colour, ls=style, label=name)
        axis.set_xticks(range(len(swept)), ticks)
        axis.set(xlabel="r, target : proximity (0: proximity only)", ylabel=f"{metric} (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def steadiness_figure(rows: Mapping[str, Row]) -> Any:
    """Figure 8: HP-Acc against Var; a small dot a seed, a large one their mean.

    Args:
        rows: by title.
    """
    figure, axes = _figure(8, 4.2)
    axis = axes[0][0]
    xs = [1000 * row.mean("Var") for row in rows.values()]
    ys = [100 * row.mean("HP-Acc") for row in rows.values()]
    for number, (x, y, row) in enumerate(zip(xs, ys, rows.values(), strict=True)):
        every = 1000 * np.array(row.values("Var")), 100 * np.array(row.values("HP-Acc"))
        axis.plot(*every, ".", color=_colour(number), alpha=0.5, ms=6)
        axis.plot(x, y, _MARKERS[number % len(_MARKERS)], color=_colour(number), ms=9)
    axis.margins(0.08)
    axis.set(xlabel="Var of the images' mIOU (e-3)", ylabel="HP-Acc (%)")
    axis.set_ylim(*axis.get_ylim())
    _name_points(axis, xs, ys, list(rows))
    return figure


def threshold_figure(rows: Mapping[str, Row], threshold: float) -> Any:
    """HP-Acc over all thresholds from 0 to 1, mean over seeds.

    Args:
        rows: by title.
        threshold: the one that tables use.
    """
    figure, axes = _figure(8, 4)
    axis = axes[0][0]
    grid = np.linspace(0, 1, 401)
    for number, (title, row) in enumerate(rows.items()):
        values = np.sort(_pooled(row))
        above = 100 * (1 - np.searchsorted(values, grid, side="right") / len(values))
        style = _STYLES[number % len(_STYLES)]
        axis.plot(grid, above, style, color=_colour(number), lw=1.8, label=title)
    axis.axvline(threshold, color="0.25", ls=":", lw=1.2)
    axis.set(xlim=(0, 1), ylim=(0, 102), ylabel="HP-Acc (%)")
    axis.set_xlabel(f"threshold of an image's mIOU (dotted: {threshold:g}, as in the tables)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def label_figure(curves: Mapping[str, Mapping[str, Row]], order: Sequence[str]) -> Any:
    """Label efficiency: mIOU and HP-Acc against the number of labelled images.

    Args:
        curves: by recipe's title, by label count.
        order: label counts, from few to all.
    """
    figure, axes = _figure(8.5, 3.7, 1, 2)
    for axis, metric in zip(axes[0], ("mIOU", "HP-Acc"), strict=True):
        for number, (title, points) in enumerate(curves.items()):
            places = [order.index(count) for count in order if count in points]
            chosen = [points[count] for count in order if count in points]
            # Side by side, so that the error bars of equal counts do not hide each other.
            shift = 0.06 * (number - (len(curves) - 1) / 2)
            axis.errorbar(
                np.array(places) + shift,
                [100 * row.mean(metric) for row in chosen],
                [100 * np.nan_to_num(row.std(metric)) for row in chosen],
                fmt=_MARKERS[number % len(_MARKERS)] + _STYLES[number % len(_STYLES)],
                color=_colour(number),
                capsize=3,
                label=title,
            )
        axis.set_xticks(range(len(order)), order)
        axis.set(xlabel="labelled images", ylabel=f"{metric} (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def pictures_figure(
    groups: Mapping[str, Sequence[int]],
    images: Any,
    students: Mapping[str, Callable[[Any], NDArray[np.uint8]]],
    scores: Mapping[str, Mapping[int, float]],
    names: Sequence[str],
    classes: Any,
) -> Any:
    """Figure 6: input, truth and predictions of chosen images.

    Args:
        groups: what was chosen, by why: indices of images.
        images: (3, H, W) uint8 images with their (H, W) labels.
        students: (3, H, W) uint8 to an (H, W) mask, by title.
        scores: of the same, mIOU by image index.
        names: of the images.
        classes: a ClassMap: names and colours.
    """
    from matplotlib.patches import Patch

    chosen = [(why, index) for why, indices in groups.items() for index in indices]
    columns = ["input", "truth", *students]
    picture = _pixels(images[chosen[0][1]][0])
    high = 2.1 * picture.shape[0] / picture.shape[1]
    size = (2.15 * len(columns), (high + 0.28) * len(chosen) + 0.9)
    figure, axes = _figure(*size, len(chosen), len(columns))
    for line, (why, index) in zip(axes, chosen, strict=True):
        image, labels = images[index]
        picture = _pixels(image)
        line[0].imshow(picture)
        line[0].set_title(f"{why}: {Path(names[index]).name}", fontsize=7)
        masks = [labels.numpy(), *(student(image) for student in students.values())]
        said = ["truth", *(f"{t}: mIOU {100 * scores[t][index]:.0f} %" for t in students)]
        for axis, mask, title in zip(line[1:], masks, said, strict=True):
            axis.imshow((picture * 0.45 + classes.colourise(mask) * 0.55).astype(np.uint8))
            axis.set_title(title, fontsize=7)
    for axis in axes.flat:
        axis.set_axis_off()
    handles = [
        Patch(facecolor=tuple(c / 255 for c in colour), edgecolor="black", label=name)
        for name, colour in zip(classes.names, classes.colours, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    return figure


def _pixels(image: Any) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    return found
