"""A picture of a ranking: distances with their noise, and what mixing in would gain."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from spiritseg.files import write_atomically
from spiritseg.proximity.frechet import Estimate
from spiritseg.proximity.rank import Ranking

__all__ = ["draw"]

# Okabe and Ito: told apart by colour-blind readers.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#666666"
_MOST = 34  # characters of a name


def draw(ranking: Ranking, path: str | Path) -> None:
    """Draw the candidates' distances with 95 % intervals.

    Args:
        ranking: from `proximity`.
        path: the picture, such as proximity.png; it is written atomically.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 2 if ranking.target is not None else 1
    rows = len(ranking.candidates)
    figure = Figure(figsize=(4.4 + 3.4 * panels, 1.7 + 0.42 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Any] = list(figure.subplots(1, panels, squeeze=False, sharey=True)[0])
    names = [_label(c.name, c.images) for c in ranking.candidates]
    _panel(axes[0], [c.distance for c in ranking.candidates], [c.distance.raw for c in
           ranking.candidates])  # fmt: skip
    axes[0].set_yticks(range(rows), names)
    axes[0].set_xlabel(f"distance to {_short(ranking.reference)}\n(% of its variance)")
    if ranking.target is not None:
        axes[0].axvline(100 * ranking.target.value, color=_GREY, ls="--", label="the target alone")
        _panel(axes[1], [c.gain for c in ranking.candidates if c.gain is not None], None)
        axes[1].set_xlabel("gain when mixed in\n(% of the same variance)")
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.75 / (rows + 1)), ncols=3,
                   frameon=False, fontsize="small")  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix.lstrip(".") or "png", dpi=140)
    write_atomically(Path(path), buffer.getvalue())


def _panel(axis: Any, values: list[Estimate], raw: list[float] | None) -> None:
    places = range(len(values))
    centres = [100 * v.value for v in values]
    errors = [196 * v.error for v in values]
    axis.axvline(0, color=_GREY, lw=0.8)
    axis.errorbar(
        centres, places, xerr=errors, fmt="o", color=_BLUE, capsize=3, label="corrected, 95 %"
    )
    if raw is not None:
        plain = [100 * v for v in raw]
        axis.plot(plain, places, "x", color=_ORANGE, label="uncorrected")
    axis.set_ylim(len(values) - 0.4, -0.6)  # the nearest on top
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.3)


def _label(name: str, images: int) -> str:
    return f"{_short(name)} ({images})"


def _short(name: str) -> str:
    return name if len(name) <= _MOST else f"...{name[-_MOST + 3 :]}"
