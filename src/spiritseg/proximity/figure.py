"""A figure of a ranking: distances with their noise, and what mixing in would gain."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from spiritseg.files import write_atomically
from spiritseg.proximity.ranking import Ranking

__all__ = ["draw"]

# Okabe and Ito: distinguishable for colour-blind readers.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#666666"
_MOST = 34  # characters of a name


def draw(ranking: Ranking, path: str | Path) -> None:
    """Draw the candidates' distances with 95 % intervals.

    Args:
        ranking: from `proximity`.
        path: the image file, such as proximity.png; it is written atomically.
    """
    from matplotlib.figure import Figure

    found = ranking.candidates
    panels = {f"distance to {_short(ranking.reference)}": [one.distance for one in found]}
    gains = [one.gain for one in found if one.gain is not None]
    if gains:
        panels["gain when mixed in"] = gains
    size = (4.4 + 3.4 * len(panels), 1.7 + 0.42 * len(found))
    figure = Figure(figsize=size, layout="constrained")
    axes: list[Any] = list(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0])
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        axis.axvline(0, color=_GREY, lw=0.8)
        centres, errors = [100 * v.value for v in values], [196 * v.error for v in values]
        label = "corrected, 95 %" if axis is axes[0] else None
        places = range(len(values))
        axis.errorbar(centres, places, xerr=errors, fmt="o", color=_BLUE, capsize=3, label=label)
        axis.set_xlabel(f"{title}\n(% of its variance)" if axis is axes[0] else f"{title}\n(%)")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.3)
    raw = [100 * one.distance.raw for one in found]
    axes[0].plot(raw, range(len(found)), "x", color=_ORANGE, label="uncorrected")
    if ranking.target is not None:
        axes[0].axvline(100 * ranking.target.value, color=_GREY, ls="--", label="the target alone")
    axes[0].set_yticks(range(len(found)), [f"{_short(c.name)} ({c.images})" for c in found])
    axes[0].set_ylim(len(found) - 0.4, -0.6)  # the closest on top
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix.lstrip(".") or "png", dpi=140)
    write_atomically(Path(path), buffer.getvalue())


def _short(name: str) -> str:
    return name if len(name) <= _MOST else f"...{name[-_MOST + 3 :]}"
