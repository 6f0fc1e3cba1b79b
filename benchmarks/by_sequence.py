"""mIOU of finished runs by test sequence, mean and standard deviation over seeds.

python benchmarks/by_sequence.py runs/best/first runs/best/even
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from spiritseg.compare import read_runs
from spiritseg.compare.results import Row, rows_of, settings_of
from spiritseg.compare.statistics import sequence_of
from spiritseg.tables import Table, markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--report", type=Path, help="write the tables here")
    options = parser.parse_args()
    runs = read_runs(options.runs)
    parts = []
    for labels in settings_of(runs):
        rows = rows_of(runs, labels).values()
        parts.append(f"## {labels} labels\n\n{markdown(tabulate(list(rows)))}")
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.report:
        options.report.write_text(text)


def tabulate(rows: list[Row]) -> Table:
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


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
