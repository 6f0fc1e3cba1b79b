"""SKD on CamVid's 11 classes: a teacher on all labels, then a small student four times.

    python benchmarks/camvid11.py --camvid ../shared/data/camvid --seeds 0 1 --out runs/camvid11 \
        --report camvid11.md

The student is trained alone, with the pixel-wise loss, with the pair-wise one added, and with the
holistic one added: the same network, images and steps. All students distil from one teacher. A
finished run is kept, so an interrupted matrix continues; further words are fields of every
student's recipe, such as --stages.distil.max_steps 500.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import spiritseg
from spiritseg.cli.words import read_fields
from spiritseg.tables import Table, markdown

SKD = Path(__file__).parent / "skd"  # recipes
ROWS = {
    "alone": f"{SKD}/skd-alone.yaml",
    "+ pixel": f"{SKD}/skd-pixel.yaml",
    "+ pixel + pair": f"{SKD}/skd-pixel-pair.yaml",
    "+ pixel + pair + holistic": "skd",
}
FIGURES = ("dataset mIoU", "mIOU", "HP-Acc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/camvid11"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--report", type=Path, help="write the tables here")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    options, rest = parser.parse_known_args()
    if not options.report_only:
        run_missing(options, read_fields(rest))
    if options.report:
        options.report.write_text(report(options))


def run_missing(options: argparse.Namespace, further: dict[str, Any]) -> None:
    common = {
        "target.root": str(options.camvid),
        "trainer.progress": False,
        "evaluation.latency": False,
    }
    run("teacher", common, options.out / "teacher")
    fields = {
        **common,
        **further,
        "networks.teacher.bundle": str(options.out / "teacher" / "student"),
    }
    for seed in options.seeds:
        for row in options.rows:
            recipe = ROWS[row]
            run(recipe, {**fields, "seed": seed}, options.out / f"{recipe}-{seed}")


def run(recipe: str, fields: dict[str, Any], folder: Path) -> None:
    start = time.monotonic()
    experiment = spiritseg.load_experiment(recipe, fields)
    found = spiritseg.distill(experiment, folder).metrics
    figures = "  ".join(f"{name} {100 * found['test'][name]:.1f}" for name in FIGURES)
    print(
        f"{folder.name:24} {figures}  val {100 * found['val']['dataset mIoU']:.1f}  "
        f"{time.monotonic() - start:.0f} s",
        flush=True,
    )


def report(options: argparse.Namespace) -> str:
    """Tabulate the figures, every seed's too, and the IoU of each class."""
    found = {row: read(options, ROWS[row]) for row in options.rows}
    teacher = {0: json.loads((options.out / "teacher" / "metrics.json").read_text())}
    rows = {"teacher": teacher, **{row: runs for row, runs in found.items() if runs}}
    alone = found.get("alone", {})
    head = ["network", "seeds", *(f"{name} %" for name in FIGURES)]
    table: Table = [[*head, "dataset mIoU - alone", "each seed", "params M", "GFLOPs", "seconds"]]
    for row, by_seed in rows.items():
        runs = list(by_seed.values())
        gain = []
        if row not in ("teacher", "alone"):  # paired by seed
            both = sorted(by_seed.keys() & alone.keys())
            pairs = [(by_seed[s]["test"], alone[s]["test"]) for s in both]
            gain = [one["dataset mIoU"] - other["dataset mIoU"] for one, other in pairs]
        stage = [next(iter(one["stages"].values()))["seconds"] for one in runs]
        table.append(
            [
                row,
                str(len(runs)),
                *(spread([one["test"][name] for one in runs]) for name in FIGURES),
                spread(gain),
                ", ".join(f"{100 * one['test']['dataset mIoU']:.1f}" for one in runs),
                f"{runs[0]['cost']['params'] / 1e6:.3f}",
                f"{runs[0]['cost']['gflops']:.2f}",
                f"{statistics.mean(stage):.0f}",
            ]
        )
    classes: Table = [["IoU %", *rows]]
    for name in teacher[0]["test"]["IoU"]:
        columns = ([one["test"]["IoU"][name] for one in runs.values()] for runs in rows.values())
        classes.append(
            [name, *(spread([v for v in values if v is not None]) for values in columns)]
        )
    return f"{markdown(table)}\n\n{markdown(classes)}\n"


def read(options: argparse.Namespace, recipe: str) -> dict[int, dict[str, Any]]:
    """Return the metrics of a recipe's finished runs, by seed."""
    paths = {seed: options.out / f"{recipe}-{seed}" / "metrics.json" for seed in options.seeds}
    return {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}


def spread(values: list[float]) -> str:
    if not values:
        return "-"
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
