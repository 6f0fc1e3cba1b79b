"""Every shipped recipe runs, a step a stage, to a student that loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spiritseg
from spiritseg.recipes import load_experiment, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_a_step_of_each_stage(name: str, tmp_path: Path) -> None:
    scenes = {"train": 2, "val": 1, "test": 1, "size": [64, 72]}
    fields: dict[str, Any] = {
        "target.dataset": "scenes",
        "target.scenes": scenes,
        "proximity.dataset": "scenes",
        "proximity.scenes": {**scenes, "train": 4},
        "input.crop": 64,
        "evaluation.latency": False,
        "evaluation.pictures": 0,
        "trainer.progress": False,
        "trainer.accelerator": "cpu",
    }
    plain = load_experiment(name, complete=False)
    for stage in plain.stages:
        fields |= {f"stages.{stage}.max_steps": 1, f"stages.{stage}.batch_size": 2}
    for network, config in plain.networks.items():
        if config.extractor.weights not in ("random", "pretrained"):
            fields[f"networks.{network}.extractor.weights"] = "random"  # nothing is downloaded
    result = spiritseg.distill(load_experiment(name, fields), tmp_path / "run")
    assert list(result.metrics["stages"]) == list(plain.stages)
    assert all(stage["steps"] == 1 for stage in result.metrics["stages"].values())
    assert 0 <= result.metrics["test"]["mIOU"] <= 1
    mask = result.student(np.zeros((64, 72, 3), np.uint8))
    assert mask.shape == (64, 72)
    assert mask.max() <= 1
