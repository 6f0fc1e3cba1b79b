"""Every seed of finished runs in a line each recipe, with the seconds of their training.

    python benchmarks/each_seed.py runs/best/ablation runs/best/opponent
    python benchmarks/each_seed.py runs/best/first --sequences    # mIOU by test sequence instead

The validation columns are what choices are made by; the test columns are looked at afterwards.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from spiritseg.compare import read_runs
from spiritseg.compare.results import Row, rows_of, settings_of
from spiritseg.compare.sequences import sequence_of
from spiritseg.tables import Table, markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--report", type=Path, help="write the tables here")
    parser.add_argument("--sequences", action="store_true", help="mIOU by test sequence")
    options = parser.parse_args()
    table = by_sequence if options.sequences else tabulate
    runs = read_runs(options.runs)
    parts = []
    for labels in settings_of(runs):
        rows = rows_of(runs, labels).values()
        parts.append(f"## {labels} labels\n\n{markdown(table(list(rows)))}")
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.report:
        options.report.write_text(text)


def tabulate(rows: list[Row]) -> Table:
    head = ["recipe", "seeds", "val mIOU %", "mean", "test mIOU %", "HP-Acc %", "Var e-3"]
    table: Table = [[*head, "seconds"]]
    for row in sorted(rows, key=_val):
        runs = [run for _, run in sorted(row.runs.items())]
        seconds = [sum(run.seconds().values()) for run in runs]
        table.append(
            [
                row.title,
                ", ".join(str(run.seed) for run in runs),
                _each([100 * run.metrics["val"]["mIOU"] for run in runs], 1),
                f"{100 * _val(row):.1f}",
                _each([100 * value for value in row.values("mIOU")], 1),
                _each([100 * value for value in row.values("HP-Acc")], 1),
                _each([1000 * value for value in row.values("Var")], 2),
                f"{statistics.mean(seconds):.0f}",
            ]
        )
    return table


def by_sequence(rows: list[Row]) -> Table:
    names = sorted({name for row in rows for name in row.first.per_image})
    sequences = sorted({sequence_of(name) for name in names})
    images = {one: [name for name in names if sequence_of(name) == one] for one in sequences}
    table: Table = [
        ["network", "seeds", *(f"{one} ({len(images[one])} images)" for one in sequences)]
    ]
    for row in rows:
        seeds = row.per_image().values()
        means = (
            [100 * statistics.mean(seed[name] for name in images[one]) for seed in seeds]
            for one in sequences
        )
        table.append([row.title, str(len(row.runs)), *map(_spread, means)])
    return table


def _val(row: Row) -> float:
    return statistics.mean(float(run.metrics["val"]["mIOU"]) for run in row.runs.values())


def _each(figures: list[float], digits: int) -> str:
    return ", ".join(f"{figure:.{digits}f}" for figure in figures)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
