"""S, fine-tuning, CT, SD, ESD and SD-SKD on CamVid-64: every recipe, protocol, teacher and seed.

    python benchmarks/camvid64.py --data ../shared/data --weights ../shared/weights \
        --seeds 0 1 2 --out runs/camvid64                        # runs what is missing
    python benchmarks/camvid64.py ... --report docs/results/camvid64.md   # and tabulates

Road against background. Training images: the first 64 of CamVid's training set by name, or 64
evenly spaced ones; the proximity images are KITTI's. Every recipe takes 300 supervised steps;
"S, same time" takes as many as fit into the wall time of SD. A finished run is kept, so an
interrupted matrix continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import spiritseg
from spiritseg.evaluation import latencies_ms
from spiritseg.tables import Table, markdown

PROTOCOLS = {"first": "first:64", "even": "even:64"}
TEACHERS: dict[str, dict[str, Any]] = {
    "EfficientNet-Lite0": {},
    "VGG16": {
        "networks.teacher.extractor.name": "vgg16",
        "networks.teacher.extractor.strides": [],
    },
}
# Rows of a table: recipe, whether it has a teacher that can be changed, further fields.
ROWS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "S": ("baseline", True, {}),
    "S, same time": ("baseline", True, {"stages.supervised.max_steps": 900}),
    "fine-tuned pretrained": ("finetune-pretrained", False, {}),
    "CT": ("ct", True, {}),
    "SD": ("sd", True, {}),
    "ESD r=0.5": ("esd", True, {}),
    "ESD, then SKD from CT": ("sd-skd", True, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of camvid/ and kitti/")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the VGG16 weights")
    parser.add_argument("--out", type=Path, default=Path("runs/camvid64"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--report", type=Path, help="write the tables here")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    if not options.report_only:
        for cell in cells(options):
            run(options, *cell)
    if options.report:
        options.report.write_text(report(options))


def cells(options: argparse.Namespace) -> Iterable[tuple[str, str, str, int]]:
    """The essential cells first: protocol by protocol, seed by seed."""
    for teacher in options.teachers:
        for protocol in options.protocols:
            for seed in options.seeds:
                for row in options.rows:
                    if ROWS[row][1] or teacher == next(iter(TEACHERS)):
                        yield protocol, teacher, row, seed


def run_dir(options: argparse.Namespace, protocol: str, teacher: str, row: str, seed: int) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in f"{protocol}-{teacher}-{row}-{seed}".lower())
    return Path(options.out) / name


def run(options: argparse.Namespace, protocol: str, teacher: str, row: str, seed: int) -> None:
    recipe, _, fields = ROWS[row]
    overrides: dict[str, Any] = {
        "seed": seed,
        "target.root": str(options.data / "camvid"),
        "target.subset": PROTOCOLS[protocol],
        "trainer.progress": False,
        "evaluation.pictures": 0,
        **fields,
    }
    if recipe in ("esd", "sd-skd"):
        overrides["proximity.root"] = str(options.data / "kitti")
    if ROWS[row][1]:
        overrides |= TEACHERS[teacher]
        if teacher == "VGG16" and recipe != "baseline":
            weights = options.weights / "vgg16_hed_bsds500.safetensors"
            overrides["networks.teacher.extractor.weights"] = str(weights)
    experiment = spiritseg.load_experiment(recipe, overrides)
    start = time.monotonic()
    folder = run_dir(options, protocol, teacher, row, seed)
    test = spiritseg.distill(experiment, folder).metrics["test"]
    print(
        f"{folder.name:45} mIOU {100 * test['mIOU']:.1f}  HP-Acc {100 * test['HP-Acc']:.1f}  "
        f"Var {test['Var']:.4f}  {time.monotonic() - start:.0f} s",
        flush=True,
    )


def report(options: argparse.Namespace) -> str:
    parts = []
    for teacher in options.teachers:
        for protocol in options.protocols:
            title = f"## {PROTOCOLS[protocol]}, teacher {teacher}"
            parts.append(f"{title}\n\n{section(options, protocol, teacher)}")
    return "\n\n".join(parts) + "\n"


def section(options: argparse.Namespace, protocol: str, teacher: str) -> str:
    head = [
        "network",
        "seeds",
        "mIOU %",
        "HP-Acc %",
        "Var e-3",
        "dataset mIoU %",
        "mIOU - S",
        "HP-Acc - S",
        "R2 target",
        "R2 proximity",
        "seconds by stage",
        "params M",
        "GFLOPs",
        "latency ms",
    ]
    table: Table = [head]
    each: Table = [["network", "seed", "mIOU %", "HP-Acc %", "Var e-3", "val mIOU %"]]
    latency = latencies(options, protocol, teacher)
    base = metrics(options, protocol, teacher, "S")
    for row in options.rows:
        owner = teacher if ROWS[row][1] else next(iter(TEACHERS))
        found = metrics(options, protocol, owner, row)
        if found:
            table.append([*summary(row, found, base), f"{latency.get(row, float('nan')):.1f}"])
        for seed, one in found.items():
            test = one["test"]
            each.append(
                [
                    row,
                    str(seed),
                    percent(test["mIOU"]),
                    percent(test["HP-Acc"]),
                    f"{1000 * test['Var']:.2f}",
                    percent(one["val"]["mIOU"]),
                ]
            )
    return f"{markdown(table)}\n\nEvery seed:\n\n{markdown(each)}"


def metrics(
    options: argparse.Namespace, protocol: str, teacher: str, row: str
) -> dict[int, dict[str, Any]]:
    found = {}
    for seed in options.seeds:
        path = run_dir(options, protocol, teacher, row, seed) / "metrics.json"
        if path.exists():
            found[seed] = json.loads(path.read_text())
    return found


def summary(row: str, found: dict[int, Any], base: dict[int, Any]) -> list[str]:
    def spread(values: list[float], unit: float = 100, digits: int = 1) -> str:
        if not values:
            return "-"
        mean = unit * statistics.mean(values)
        if len(values) == 1:
            return f"{mean:.{digits}f}"
        return f"{mean:.{digits}f} ± {unit * statistics.stdev(values):.{digits}f}"

    def column(key: str) -> list[float]:
        return [one["test"][key] for one in found.values()]

    def paired(key: str) -> list[float]:
        if row == "S":
            return []
        both = found.keys() & base.keys()
        return [found[s]["test"][key] - base[s]["test"][key] for s in sorted(both)]

    def explained(domain: str) -> list[float]:
        stages = [one["stages"].get("mimicry", {}) for one in found.values()]
        return [
            s["explained variance"][domain]
            for s in stages
            if domain in s.get("explained variance", {})
        ]

    one = next(iter(found.values()))
    seconds = ", ".join(
        f"{name} {statistics.mean(m['stages'][name]['seconds'] for m in found.values()):.0f}"
        for name in one["stages"]
    )
    cost = one["cost"]
    return [
        row,
        str(len(found)),
        spread(column("mIOU")),
        spread(column("HP-Acc")),
        spread(column("Var"), 1000, 2),
        spread(column("dataset mIoU")),
        spread(paired("mIOU")),
        spread(paired("HP-Acc")),
        spread(explained("target"), 1, 2),
        spread(explained("proximity"), 1, 2),
        seconds,
        f"{cost['params'] / 1e6:.3f}",
        f"{cost['gflops']:.2f}",
    ]


def latencies(options: argparse.Namespace, protocol: str, teacher: str) -> dict[str, float]:
    """Latency of one network a row, all in one run, turn by turn."""
    networks = {}
    size = (0, 0)
    for row in options.rows:
        owner = teacher if ROWS[row][1] else next(iter(TEACHERS))
        for seed, one in metrics(options, protocol, owner, row).items():
            size = tuple(one["cost"]["size"])
            folder = run_dir(options, protocol, owner, row, seed)
            network = spiritseg.load(folder).network
            networks[row] = network.to(memory_format=torch.channels_last)
            break
    if not networks:
        return {}
    times = latencies_ms(networks, size, rounds=25)
    return {row: statistics.median(found) for row, found in times.items()}


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
