"""The report's tables: the papers' own, differences, classes, mimicry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spiritseg.compare.conclusions import Setting
from spiritseg.compare.figures import headline
from spiritseg.compare.paper import DASH, is_paper, method_of, paper_row
from spiritseg.compare.results import Row
from spiritseg.compare.statistics import Difference
from spiritseg.tables import Table

__all__ = ["tables"]


def tables(setting: Setting) -> dict[str, Table]:
    """Tabulate a setting; a table without rows is left out."""
    found = {
        "cost": _cost_table(setting),
        "ratios": _ratio_table(setting.rows),
        "differences": _difference_table(setting.differences),
        "picked": _difference_table(setting.picked),
        "classes": _class_table(setting.rows),
        "explained": _explained_table(setting.rows),
    }
    return {name: table for name, table in found.items() if len(table) > 1}


def _spread(values: Sequence[float], factor: float = 100, digits: int = 1) -> str:
    """Format a mean over seeds with its standard deviation."""
    known = [factor * value for value in values if not math.isnan(value)]
    if not known:
        return DASH
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return f"{mean:.{digits}f}"
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1))
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def _has_paper(rows: Mapping[str, Row]) -> bool:
    return any(is_paper(row.recipe) for row in rows.values())


def _accuracy(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format mIOU, HP-Acc and Var over seeds."""
    percent = [_spread([test[key] for test in tests]) for key in ("mIOU", "HP-Acc")]
    return [*percent, _spread([test["Var"] for test in tests], 1000, 2)]


def _cost_table(setting: Setting) -> Table:
    """The paper's Table II, of each recipe's ratios only the one that figures show."""
    own = ["GFLOPs", "params M", "mIOU %", "HP-Acc %"]
    paper = [f"paper {name}" for name in own] if _has_paper(setting.rows) else []
    head = ["network", "seeds", *own, "Var e-3", "dataset mIoU %"]
    table = [[*head, *(["latency ms"] if setting.latency else []), *paper]]
    shown = headline(setting.rows, most=len(setting.rows))
    for title, row in shown.items():
        lines = {title: [run.metrics["test"] for run in row.runs.values()]}
        if method_of(row.recipe) == "ct":
            measured = [test for _, test in sorted(setting.head_only.get(title, {}).items())]
            lines = {f"{title}, head only": measured, f"{title}, fine-tuned": lines[title]}
        for name, tests in lines.items():
            cost, theirs = row.first.metrics["cost"], paper_row(row.recipe, row.first.ratio)
            line = [name, str(len(tests)), f"{cost['gflops']:.2f}", f"{cost['params'] / 1e6:.3f}"]
            line += [*_accuracy(tests), _spread([test["dataset mIoU"] for test in tests])]
            line += [f"{setting.latency[title]:.1f}"] if setting.latency else []
            numbers = [theirs.gflops, theirs.params, theirs.miou, theirs.hp_acc]
            table.append([*line, *(numbers if paper else [])])
    return table


def _ratio_table(rows: Mapping[str, Row]) -> Table:
    """The paper's Table III: S, SD and every ratio that was run."""
    own = ["mIOU %", "HP-Acc %", "Var e-3"]
    paper = [f"paper {name}" for name in own] if _has_paper(rows) else []
    table = [["network", "seeds", *own, *paper]]
    if all(row.first.ratio is None for row in rows.values()):
        return table
    for title, row in rows.items():
        if row.first.ratio is None and method_of(row.recipe) not in ("baseline", "sd"):
            continue
        theirs = paper_row(row.recipe, row.first.ratio)
        tests = [run.metrics["test"] for run in row.runs.values()]
        numbers = [theirs.miou, theirs.hp_acc, theirs.var] if paper else []
        table.append([title, str(len(tests)), *_accuracy(tests), *numbers])
    return table


def _difference_table(differences: Sequence[Difference]) -> Table:
    head = ["network", "metric", "difference", "95 % interval", "p", "p, Holm", "seeds"]
    table = [[*head, "units", "verdict"]]
    for one in differences:
        factor, digits, unit = (1000, 2, "e-3") if one.metric == "Var" else (100, 1, "points")
        value, low, high = (
            _signed(factor * number, digits) for number in (one.value, one.low, one.high)
        )
        seeds = dict.fromkeys(map(str, (one.seeds, one.reference_seeds)))
        table.append(
            [
                one.name,
                f"{one.metric} {unit}",
                value,
                f"{low} to {high}" if math.isfinite(one.low) else DASH,
                _probability(one.p),
                _probability(one.p_holm),
                " and ".join(seeds),
                str(one.units),
                one.verdict,
            ]
        )
    return table


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # adding 0.0 removes the sign of a zero


def _probability(p: float) -> str:
    if math.isnan(p):
        return DASH
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
