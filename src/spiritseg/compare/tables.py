"""The report's tables: the papers' own, differences, classes, mimicry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spiritseg.compare import figures
from spiritseg.compare.paper import TABLE_II, TABLE_III, PaperRow, method_of, stands_beside
from spiritseg.compare.results import Row, title_of
from spiritseg.compare.sections import Section
from spiritseg.compare.statistics import Difference
from spiritseg.tables import Table

__all__ = ["tables"]

_DASH = "–"


def tables(section: Section) -> dict[str, Table]:
    """Tabulate a section.

    Args:
        section: rows and statistics.

    Returns:
        II, III, differences, picked, classes and explained; the header first.
    """
    return {
        "II": _table_ii(section),
        "III": _table_iii(section),
        "differences": _difference_table(section.differences),
        "picked": _difference_table(section.picked),
        "classes": _class_table(section.rows),
        "explained": _explained_table(section.rows),
    }


def _spread(values: Sequence[float], factor: float = 100, digits: int = 1) -> str:
    """Write a mean over seeds with its standard deviation."""
    known = [factor * value for value in values if not math.isnan(value)]
    if not known:
        return _DASH
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return f"{mean:.{digits}f}"
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1))
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def _number(value: float | str | None, digits: int = 1) -> str:
    if value is None:
        return _DASH
    return value if isinstance(value, str) else f"{value:.{digits}f}"


def _table_ii(section: Section) -> Table:
    head = ["network", "seeds", "GFLOPs", "params M", "mIOU %", "HP-Acc %", "dataset mIoU %"]
    paper = [f"paper {name}" for name in ("GFLOPs", "params M", "mIOU %", "HP-Acc %")]
    table = [[*head, "latency ms", *paper]]
    chosen = figures.headline(section.rows)
    chosen |= {t: r for t, r in section.rows.items() if r.first.ratio is None}
    ordered = {title: row for title, row in section.rows.items() if title in chosen}
    for title, row in ordered.items():
        name = title
        if method_of(row.recipe) == "ct":
            name = f"{title}, fine-tuned"
            head_rows = [one for _, one in sorted(section.head.get(title, {}).items())]
            table.append(_row_ii(section, f"{title}, head only", row, head_rows))
        tests = [run.metrics["test"] for run in row.runs.values()]
        table.append(_row_ii(section, name, row, tests))
    return table


def _row_ii(section: Section, name: str, row: Row, tests: Sequence[Mapping[str, Any]]) -> list[str]:
    cost, paper = row.first.metrics["cost"], _paper(section, row.recipe)
    measured = section.latency.get(row.title)
    return [
        name,
        str(len(tests)),
        _number(cost["gflops"], 2),
        _number(cost["params"] / 1e6, 3),
        *(_spread([t[key] for t in tests]) for key in ("mIOU", "HP-Acc", "dataset mIoU")),
        _number(measured),
        _number(paper.gflops),
        _number(paper.params),
        _number(paper.miou),
        _number(paper.hp_acc),
    ]


def _table_iii(section: Section) -> Table:
    """Tabulate S, SD and all ratios; those of the paper that were not run have dashes."""
    head = ["network", "seeds", "mIOU %", "HP-Acc %", "Var e-3"]
    table = [[*head, "paper mIOU %", "paper HP-Acc %", "paper Var e-3"]]
    lines: list[tuple[str, float | None, Row | None]] = [
        (row.first.recipe, row.first.ratio, row)
        for row in section.rows.values()
        if row.first.ratio is not None or method_of(row.recipe) in ("baseline", "sd")
    ]
    esd = next(recipe for recipe, method in _beside(section).items() if method == "esd")
    run = {row.first.ratio for row in section.rows.values() if row.recipe == esd}
    lines += [(esd, ratio, None) for ratio in TABLE_III if ratio not in run]

    def order(line: tuple[str, float | None, Row | None]) -> tuple[int, str, float]:
        recipe, ratio, _ = line
        place = {"baseline": 0, "sd": 1}.get(method_of(recipe.partition("~")[0]), 2)
        return place, title_of(recipe, None), -(ratio or 0)

    for recipe, ratio, row in sorted(lines, key=order):
        paper = _paper(section, recipe.partition("~")[0], ratio)
        ours = [_DASH] * 4
        if row is not None:
            figures_ = [_spread(row.values("mIOU")), _spread(row.values("HP-Acc"))]
            ours = [str(len(row.runs)), *figures_, _spread(row.values("Var"), 1000, 2)]
        theirs = [_number(paper.miou), _number(paper.hp_acc), _number(paper.var, 2)]
        table.append([title_of(recipe, ratio), *ours, *theirs])
    return table


def _beside(section: Section) -> dict[str, str]:
    return stands_beside(row.recipe for row in section.rows.values())


def _paper(section: Section, recipe: str, ratio: float | None = None) -> PaperRow:
    """Return what the paper reports of a recipe; of ESD at a ratio."""
    method = _beside(section).get(recipe, "")
    if method == "esd" and ratio is not None:
        return TABLE_III.get(ratio, PaperRow())
    return TABLE_II.get(method, PaperRow())


def _difference_table(differences: Sequence[Difference]) -> Table:
    head = ["network", "metric", "difference", "95 % interval", "p", "p, Holm", "seeds"]
    table = [[*head, "units", "verdict"]]
    for one in differences:
        factor, digits = (1000, 2) if one.metric == "Var" else (100, 1)
        interval = _DASH
        if math.isfinite(one.low):
            interval = (
                f"{_signed(factor * one.low, digits)} to {_signed(factor * one.high, digits)}"
            )
        table.append(
            [
                one.name,
                f"{one.metric} {'e-3' if one.metric == 'Var' else 'points'}",
                _signed(factor * one.value, digits),
                interval,
                _probability(one.p),
                _probability(one.p_holm),
                _seeds(one),
                str(one.units),
                one.verdict,
            ]
        )
    return table


def _seeds(one: Difference) -> str:
    if one.seeds == one.reference_seeds:
        return str(one.seeds)
    return f"{one.seeds} and {one.reference_seeds}"


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # adding 0.0 takes the sign of a zero away


def _probability(p: float) -> str:
    if math.isnan(p):
        return _DASH
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _class_table(rows: Mapping[str, Row]) -> Table:
    names = list(next(iter(rows.values())).first.metrics["test"]["IoU"])
    table = [["network", *(f"{name} %" for name in names)]]
    for title, row in rows.items():
        table.append([title, *(_spread(row.values(f"IoU {name}")) for name in names)])
    return table


def _explained_table(rows: Mapping[str, Row]) -> Table:
    table = [["network", "R² target", "R² proximity", "seconds by stage"]]
    for title, row in rows.items():
        every = [run.explained() for run in row.runs.values()]
        domains = (
            [one[domain] for one in every if one.get(domain) is not None]
            for domain in ("target", "proximity")
        )
        seconds = [run.seconds() for run in row.runs.values()]
        mean = {stage: sum(s[stage] for s in seconds) / len(seconds) for stage in seconds[0]}
        spent = ", ".join(f"{stage} {value:.0f}" for stage, value in mean.items())
        table.append([title, *(_spread(values, 1, 2) for values in domains), spent])
    return table
