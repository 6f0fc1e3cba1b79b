"""The front of accuracy against latency: finished runs, all through onnxruntime in one run.

    python benchmarks/front.py runs/best/first runs/best/even --opponent finetune-pretrained \
        --report front.md --figure front.png

Latency is of the network alone at the size of the evaluation (an image of 480x360 after its
max-pool), batch 1, float32, the median of runs in turn. A recipe's networks are one
architecture, so that one seed of each is timed; recipes of one architecture, by its parameters
and FLOPs, share their mean.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from spiritseg.compare import Run, read_runs
from spiritseg.compare.plots import COLOURS, MARKERS, drawn
from spiritseg.compare.results import Row, rows_of, settings_of
from spiritseg.deploy.bench import bench
from spiritseg.tables import Table, markdown

METRICS = {"mIOU": (100, 1), "HP-Acc": (100, 1), "Var": (1000, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--opponent", default="finetune-pretrained", help="latency 1.00")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480), help="image, H W")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--report", type=Path, help="write the tables here")
    parser.add_argument("--figure", type=Path, help="write the figure here")
    options = parser.parse_args()
    runs = read_runs(options.runs)
    latency = latencies(runs, (options.size[0], options.size[1]), options.threads, options.rounds)
    parts = []
    for labels in settings_of(runs):
        rows = rows_of(runs, labels)
        parts.append(f"## {labels}\n\n{markdown(tabulate(rows, latency, options.opponent))}")
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.report:
        options.report.write_text(text)
    if options.figure:
        rows_by_labels = {labels: rows_of(runs, labels) for labels in sorted(settings_of(runs))}
        _, png = drawn(lambda: front_figure(rows_by_labels, latency))
        options.figure.write_bytes(png)


def latencies(
    runs: list[Run], size: tuple[int, int], threads: int, rounds: int
) -> dict[str, float]:
    """Return the latency in ms of each recipe's network, by recipe."""
    one = {run.recipe: run for run in runs}
    folders = [run.folder for run in one.values()]
    found = bench(folders, [size], ["onnxruntime"], threads=threads, rounds=rounds, budget_s=120)
    shape = {
        name: (r.metrics["cost"]["params"], r.metrics["cost"]["gflops"]) for name, r in one.items()
    }
    medians: dict[tuple[int, float], list[float]] = {}
    for name, row in zip(one, found, strict=True):
        medians.setdefault(shape[name], []).append(statistics.median(row.network_ms))
    return {name: statistics.mean(medians[shape[name]]) for name in one}


def front_figure(settings: Mapping[str, Mapping[str, Row]], latency: Mapping[str, float]) -> Any:
    """Draw mIOU and HP-Acc against latency: a line of panels per label count."""
    figure = Figure(figsize=(9.5, 3.4 * len(settings)), layout="constrained")
    axes = figure.subplots(len(settings), 2, squeeze=False, sharex=True)
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
                    fmt=MARKERS[number % len(MARKERS)],
                    color=COLOURS[number % len(COLOURS)],
                    mfc=COLOURS[number % len(COLOURS)] if number < len(COLOURS) else "white",
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


def tabulate(rows: dict[str, Row], latency: dict[str, float], opponent: str) -> Table:
    head = ["network", "seeds", "mIOU %", "HP-Acc %", "Var e-3", "params M", "GFLOPs"]
    table: Table = [[*head, "latency ms", f"latency / {opponent}"]]
    for title, row in rows.items():
        cost = row.first.metrics["cost"]
        own = latency[row.first.recipe]
        figures = [spread(row, name, unit, digits) for name, (unit, digits) in METRICS.items()]
        size = [f"{cost['params'] / 1e6:.3f}", f"{cost['gflops']:.2f}"]
        relative = f"{own / latency[opponent]:.2f}" if opponent in latency else "-"
        table.append([title, str(len(row.runs)), *figures, *size, f"{own:.1f}", relative])
    return table


def spread(row: Row, name: str, unit: float, digits: int) -> str:
    mean = f"{unit * row.mean(name):.{digits}f}"
    return mean if len(row.runs) == 1 else f"{mean} ± {unit * row.std(name):.{digits}f}"


if __name__ == "__main__":
    main()
