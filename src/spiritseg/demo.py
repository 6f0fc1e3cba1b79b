"""The whole method on the embedded scenes, in a few minutes on two CPU cores."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from spiritseg.recipes import load_experiment

__all__ = ["demo"]

# The same student and the same supervised steps in each; what differs is the stages before.
_NETWORKS: dict[str, dict[str, Any]] = {
    "S": {
        "stages.mimicry": None,
        "stages.head": None,
        "stages.all.optimizer.lr": 2e-3,
    },
    "SD": {"stages.mimicry.images": "target"},
    "ESD": {},
}


def demo(out: str | Path = "demo", seed: int = 0) -> dict[str, dict[str, Any]]:
    """Run S, SD and ESD on the embedded scenes; print a table, draw a picture.

    The labelled scenes have no cast shadows; the unlabelled and the test scenes have.

    Args:
        out: folder of the three runs and of ``predictions.png``.
        seed: of every draw.

    Returns:
        The metrics of the three networks, by name.
    """
    from spiritseg.data.domains import open_domains
    from spiritseg.evaluation.pictures import draw_predictions
    from spiritseg.tables import metrics_table, print_table
    from spiritseg.training.run import distill

    out = Path(out)
    steps = load_experiment("demo").stages
    supervised = steps["head"].max_steps + steps["all"].max_steps
    results = {}
    for name, fields in _NETWORKS.items():
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        budget = {"stages.all.max_steps": supervised} if name == "S" else {}
        experiment = load_experiment("demo", {**fields, **budget, "seed": seed})
        results[name] = distill(experiment, out / name)
        found, seconds = results[name].metrics["test"], time.monotonic() - started
        print(
            f"{name}: mIOU {100 * found['mIOU']:.1f} %, HP-Acc {100 * found['HP-Acc']:.1f} % "
            f"({seconds:.0f} s)",
            flush=True,
        )
    metrics = {name: result.metrics for name, result in results.items()}
    domains = open_domains(load_experiment("demo"), target_only=True)
    students = {name: result.student for name, result in results.items()}
    draw_predictions(students, domains.test, domains.classes, 4, out / "predictions.png")
    print_table(metrics_table(metrics))
    print(f"pictures: {out / 'predictions.png'}")
    return metrics
