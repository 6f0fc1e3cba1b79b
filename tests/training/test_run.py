"""What a run reports of its stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spiritseg import distill, load_experiment

SCENES = {"train": 4, "val": 3, "test": 2, "size": [96, 128]}


def test_the_validation_figures_are_those_after_the_results_last_stage(tmp_path: Path) -> None:
    stage = {"losses": {"cross_entropy": {}}, "max_steps": 8, "optimizer": {"lr": 1e-2}}
    extractor = {"name": "efficientnet_lite0", "cut_at": "blocks.1"}
    small = {"extractor": extractor, "head": {"channels": 8}}
    fields: dict[str, Any] = {
        "target.dataset": "scenes",
        "target.scenes": SCENES,
        "target.subset": "all",
        "input.crop": 64,
        "networks": {"student": small, "other": small},
        "stages.supervised": None,
        "stages.first": stage,
        "stages.second": stage,
        "stages.third": {**stage, "network": "other"},
        "evaluation": {"latency": False, "pictures": 0},
        "trainer.progress": False,
    }
    metrics = distill(load_experiment("baseline", fields), tmp_path / "run").metrics
    val = {name: one["val"]["mIOU"] for name, one in metrics["stages"].items()}
    assert val["first"] != val["second"]
    assert metrics["val"]["mIOU"] == val["second"]
