"""A ranking in words: a table, and a few sentences."""

from __future__ import annotations

from spiritseg.errors import listed
from spiritseg.proximity.frechet import Estimate
from spiritseg.proximity.rank import Ranking
from spiritseg.tables import Table

__all__ = ["ranking_table", "summary"]


def ranking_table(ranking: Ranking) -> Table:
    """Tabulate a ranking: distances in percent of the reference's variance, with 95 %."""
    elsewhere = ranking.target is not None
    head = ["folder", "images", "distance %", "diversity"]
    table = [[*head, *(["gain %"] if elsewhere else [])]]
    if ranking.target is not None:
        table.append(["(the target alone)", "", _percent(ranking.target), "1.00", ""])
    for one in ranking.candidates:
        row = [one.name, str(one.images), _percent(one.distance), f"{one.diversity:.2f}"]
        table.append([*row, *([_percent(one.gain)] if one.gain else [])])
    return table


def summary(ranking: Ranking) -> str:
    """Say what the ranking means, and which of its differences are beyond the noise."""
    lines = []
    for one in ranking.candidates:
        own = f"; {one.shared} images left out, they are the target's own" if one.shared else ""
        lines.append(f"{one.name}: {one.advice}{own}")
    pairs = zip(ranking.candidates, ranking.candidates[1:], ranking.apart, strict=False)
    for near, far, apart in pairs:
        said = "farther than" if apart.beyond_noise else "not told apart from"
        lines.append(f"{far.name} is {said} {near.name} ({_percent(apart)} %)")
    best = ranking.best
    if best is not None:
        lines.append(f"most likely to help: {best.name}")
    elif ranking.target is not None:
        lines.append("no folder brings the target nearer, beyond the noise")
    else:
        lines.append("no folder is near the target and new to it")
    if ranking.target is None:
        lines.append(
            "This compares with the labelled images. Where the student will run elsewhere, give "
            "unlabelled images of that place: --toward DIR."
        )
    if ranking.skipped:
        lines.append(f"{len(ranking.skipped)} unreadable files were left out:")
        lines.append(listed(ranking.skipped))
    return "\n".join(lines)


def _percent(one: Estimate) -> str:
    return f"{100 * one.value:.2f} ± {196 * one.error:.2f}"
