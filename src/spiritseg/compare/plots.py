"""Plots of rows: matplotlib, colour-blind-safe, no overlap."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spiritseg.compare.measured import student_of
from spiritseg.compare.results import Row

if TYPE_CHECKING:
    from spiritseg.data.domains import Domains

__all__ = [
    "COLOURS",
    "MARKERS",
    "cost_figure",
    "curves_figure",
    "drawn",
    "histogram_figure",
    "predictions_figure",
    "steadiness_figure",
    "threshold_figure",
]

# Okabe and Ito's colours, told apart with any colour vision; yellow is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLES = ("-", "--", "-.", ":")


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


def drawn(draw: Callable[[], Any], is_photo: bool = False) -> tuple[bytes, bytes]:
    """Return a matplotlib figure as SVG (of photographs again a PNG), and as PNG."""
    with _style():
        figure = draw()
        raster, vector = io.BytesIO(), io.BytesIO()
        figure.savefig(raster, format="png", dpi=110)
        if is_photo:
            return raster.getvalue(), raster.getvalue()
        figure.savefig(vector, format="svg", metadata={"Date": None})
    return vector.getvalue(), raster.getvalue()


def _axes(width: float, height: float, rows: int = 1, columns: int = 1, **further: Any) -> Any:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **further)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def cost_figure(rows: Mapping[str, Row]) -> Any:
    """mIOU against GFLOPs; the radius of a circle is HP-Acc."""
    figure, ((axis,),) = _axes(8, 4.4)
    xs = [float(row.first.metrics["cost"]["gflops"]) for row in rows.values()]
    ys = [100 * row.mean("mIOU") for row in rows.values()]
    for number, (x, y, (title, row)) in enumerate(zip(xs, ys, rows.items(), strict=True)):
        share, colour = row.mean("HP-Acc"), _colour(number)
        axis.plot(x, y, "o", ms=6 + 34 * share, color=colour, alpha=0.35, mew=1.2)
        label = f"{title} (HP-Acc {100 * share:.0f} %)"
        axis.plot(x, y, MARKERS[number % len(MARKERS)], ms=5, color=colour, label=label)
    spread = max(max(ys) - min(ys), 2.0)  # room for large circles
    axis.set_ylim(min(ys) - 0.3 * spread, max(ys) + 0.3 * spread)
    if min(xs) > 0 and max(xs) > 8 * min(xs):
        axis.set_xscale("log")
        axis.set_xlim(min(xs) / 1.8, max(xs) * 1.8)
    else:
        width = max(max(xs) - min(xs), 0.2 * max(xs), 1e-6)
        axis.set_xlim(min(xs) - 0.35 * width, max(xs) + 0.35 * width)
    axis.set(xlabel="GFLOPs per image", ylabel="mIOU (%)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def histogram_figure(rows: Mapping[str, Row], threshold: float, reference: str) -> Any:
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


def curves_figure(
    curves: Mapping[str, Mapping[str, Row]],
    order: Sequence[str],
    label: str,
    lines: Mapping[str, Row],
) -> Any:
    """mIOU and HP-Acc against ratios or label counts; `lines` are horizontal."""
    figure, (axes,) = _axes(8.5, 3.7, 1, 2)
    for axis, metric in zip(axes, ("mIOU", "HP-Acc"), strict=True):
        for number, (title, row) in enumerate(lines.items()):
            style = _STYLES[(number + 1) % len(_STYLES)]
            axis.axhline(100 * row.mean(metric), color=_colour(number), ls=style, label=title)
        for number, (title, points) in enumerate(curves.items(), start=len(lines)):
            chosen = {place: points[x] for place, x in enumerate(order) if x in points}
            # Side by side, so that the error bars at equal places do not hide each other.
            shift = 0.06 * (number - len(lines) - (len(curves) - 1) / 2)
            axis.errorbar(
                np.array(list(chosen)) + shift,
                [100 * row.mean(metric) for row in chosen.values()],
                [100 * np.nan_to_num(row.std(metric)) for row in chosen.values()],
                fmt=MARKERS[number % len(MARKERS)] + _STYLES[(number - len(lines)) % len(_STYLES)],
                color=_colour(number),
                capsize=3,
                label=title,
            )
        axis.set_xticks(range(len(order)), order)
        axis.set(xlabel=label, ylabel=f"{metric} (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def steadiness_figure(rows: Mapping[str, Row]) -> Any:
    """HP-Acc against Var; a small dot per seed, a large marker for their mean."""
    figure, ((axis,),) = _axes(8, 4.2)
    for number, (title, row) in enumerate(rows.items()):
        xs, ys = 1000 * np.array(row.values("Var")), 100 * np.array(row.values("HP-Acc"))
        axis.plot(xs, ys, ".", color=_colour(number), alpha=0.5, ms=6)
        marker: Any = {"marker": MARKERS[number % len(MARKERS)], "ls": "", "ms": 9}
        axis.plot(xs.mean(), ys.mean(), color=_colour(number), label=title, **marker)
    axis.set(xlabel="Var of the images' mIOU (e-3)", ylabel="HP-Acc (%)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def threshold_figure(rows: Mapping[str, Row], threshold: float) -> Any:
    """HP-Acc over all thresholds up to 1, mean over seeds."""
    figure, ((axis,),) = _axes(8, 4)
    pooled = {title: np.sort(_pooled(row)) for title, row in rows.items()}
    lowest = np.floor(min(values[0] for values in pooled.values()) * 20) / 20
    grid = np.linspace(lowest, 1, 401)
    for number, (title, values) in enumerate(pooled.items()):
        above = 100 * (1 - np.searchsorted(values, grid, side="right") / len(values))
        style = _STYLES[number % len(_STYLES)]
        axis.plot(grid, above, style, color=_colour(number), lw=1.8, label=title)
    axis.axvline(threshold, color="0.25", ls=":", lw=1.2)
    axis.set(xlim=(lowest, 1), ylim=(0, 102), ylabel="HP-Acc (%)")
    axis.set_xlabel(f"threshold of an image's mIOU (dotted: {threshold:g}, as in the tables)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def predictions_figure(
    rows: Mapping[str, Row],
    groups: Mapping[str, Sequence[int]],
    scores: Mapping[str, Mapping[int, float]],
    images: Domains,
) -> Any:
    """Input, truth and predictions of chosen images, under each row's first seed."""
    from matplotlib.patches import Patch

    students = {title: student_of(row.first) for title, row in rows.items()}
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
