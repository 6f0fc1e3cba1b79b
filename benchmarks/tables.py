"""Write the tables of docs/results/road.md and the README from the runs of benchmarks/tables.sh.

    python benchmarks/tables.py runs/tables --pages docs/results/road.md README.md

A table of the page stands between ``<!-- NAME -->`` and ``<!-- end -->``; what is between is
replaced, and nothing else is touched. Groups without a finished run are left as they are.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from spiritseg.compare import read_runs
from spiritseg.compare.results import Row, Run, rows_of, settings_of
from spiritseg.compare.statistics import compare_all
from spiritseg.tables import Table, markdown

# What is compared with what: learnt from scratch with S, else with fine-tuning at its best.
COMPARED = {
    "S": ["SD", "ESD r=0.5", "best-scratch", "logits"],
    "SD": ["ESD r=0.5"],
    "finetune-long": ["best", "best-long", "best-scratch"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="the folder of the groups")
    parser.add_argument("--pages", type=Path, nargs="+", required=True)
    options = parser.parse_args()
    found: dict[str, str] = {}
    for folder in sorted(path for path in options.runs.iterdir() if path.is_dir()):
        if any(folder.glob("*/metrics.json")):
            runs = read_runs([folder])
            rows = _rows(runs)
            found[f"{folder.name} short"] = markdown(short(rows))
            found[folder.name] = "\n\n".join(map(markdown, tables(rows)))
            found[f"{folder.name} seeds"] = markdown(each_seed(rows))
    for page in options.pages:
        text = page.read_text()
        for name, table in found.items():
            text = filled(text, name, table)
        page.write_text(text)


def filled(text: str, name: str, table: str) -> str:
    """Put a table between its marks, where the page has them."""
    mark = re.escape(f"<!-- {name} -->")
    return re.sub(
        rf"({mark}\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{table}\n\n{found[2]}",
        text,
        flags=re.DOTALL,
    )


def _rows(runs: Sequence[Run]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for labels in settings_of(runs):
        found |= rows_of(runs, labels)
    return found


def tables(rows: dict[str, Row]) -> list[Table]:
    found = [results(rows)]
    if (gains := differences(rows))[1:]:
        found.append(gains)
    return found


def short(rows: dict[str, Row]) -> Table:
    table: Table = [["recipe", "network", "seeds", "mIOU %", "HP-Acc %", "Var e-3", "seconds"]]
    for title, row in rows.items():
        runs = list(row.runs.values())
        table.append(
            [
                f"`{row.recipe}`",
                title,
                str(len(runs)),
                _spread([100 * value for value in row.values("mIOU")]),
                _spread([100 * value for value in row.values("HP-Acc")]),
                _spread([1000 * value for value in row.values("Var")], 2),
                f"{min(sum(run.seconds().values()) for run in runs):.0f}",
            ]
        )
    return table


def results(rows: dict[str, Row]) -> Table:
    head = ["network", "seeds", "val mIOU %", "test mIOU %", "HP-Acc %", "Var e-3", "R2 target"]
    table: Table = [[*head, "R2 unlabelled", "params M", "GFLOPs", "seconds"]]
    for title, row in rows.items():
        runs = list(row.runs.values())
        explained = [run.explained() for run in runs]
        table.append(
            [
                title,
                str(len(runs)),
                _spread([100 * run.metrics["val"]["mIOU"] for run in runs]),
                _spread([100 * value for value in row.values("mIOU")]),
                _spread([100 * value for value in row.values("HP-Acc")]),
                _spread([1000 * value for value in row.values("Var")], 2),
                *(
                    _spread([one[domain] for one in explained if domain in one], 2)
                    for domain in ("target", "proximity")
                ),
                f"{runs[0].metrics['cost']['params'] / 1e6:.3f}",
                f"{runs[0].metrics['cost']['gflops']:.2f}",
                f"{min(sum(run.seconds().values()) for run in runs):.0f}",
            ]
        )
    return table


def differences(rows: dict[str, Row]) -> Table:
    """The paired differences, by `spiritseg compare`'s own statistics, Holm over each group."""
    head = ["difference", "metric", "seeds", "drives or blocks", "value", "95 % interval"]
    table: Table = [[*head, "p after Holm", "verdict"]]
    for reference, names in COMPARED.items():
        given = {name: rows[name].per_image() for name in (reference, *names) if name in rows}
        if reference not in given or len(given) < 2:
            continue
        for one in compare_all(given, reference):
            if one.metric == "HP-Acc":
                continue
            unit, by = ("points", 100) if one.metric == "mIOU" else ("e-3", 1000)
            table.append(
                [
                    f"{one.name} - {reference}",
                    f"{one.metric}, {unit}",
                    f"{one.seeds} and {one.reference_seeds}",
                    str(one.units),
                    f"{by * one.value:+.2f}",
                    f"[{by * one.low:+.2f}, {by * one.high:+.2f}]",
                    f"{one.p_holm:.3f}",
                    one.verdict,
                ]
            )
    return table


def each_seed(rows: dict[str, Row]) -> Table:
    table: Table = [["network", "seeds", "val mIOU %", "test mIOU %", "HP-Acc %", "Var e-3"]]
    for title, row in rows.items():
        ordered = [run for _, run in sorted(row.runs.items())]
        figures = [
            ("val", "mIOU", 100, 1),
            ("test", "mIOU", 100, 1),
            ("test", "HP-Acc", 100, 1),
            ("test", "Var", 1000, 2),
        ]
        table.append(
            [
                title,
                ", ".join(str(run.seed) for run in ordered),
                *(
                    ", ".join(f"{by * run.metrics[split][key]:.{digits}f}" for run in ordered)
                    for split, key, by, digits in figures
                ),
            ]
        )
    return table


def _spread(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
