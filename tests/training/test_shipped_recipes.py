"""Every shipped recipe runs, a step a stage, to a student that loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spiritseg
from spiritseg.errors import ConfigError
from spiritseg.recipes import load_experiment, recipe_names

SCENES = {"train": 2, "val": 1, "test": 1, "size": [64, 72]}
COMMON: dict[str, Any] = {
    "target.dataset": "scenes",
    "target.scenes": SCENES,
    "proximity.dataset": "scenes",
    "proximity.scenes": {**SCENES, "train": 4},
    "input.crop": 64,
    "evaluation.latency": False,
    "evaluation.pictures": 0,
    "trainer.progress": False,
    "trainer.accelerator": "cpu",
}


def _one_step(name: str) -> dict[str, Any]:
    """Fields that make a recipe small and keep it from downloading."""
    plain = load_experiment(name, complete=False)
    fields = dict(COMMON)
    for stage in plain.stages:
        fields |= {f"stages.{stage}.max_steps": 1, f"stages.{stage}.batch_size": 2}
    for network, config in plain.networks.items():
        timm = config.extractor.name.startswith("timm:")
        if timm or config.extractor.weights not in ("random", "pretrained"):
            fields[f"networks.{network}.extractor.weights"] = "random"
    return fields


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small trained teachers by the name of their head: bundles, as a user has them."""
    found = {}
    small = {"student": "efficientnet_lite0", "pyramid": "timm:resnet18"}
    for head, extractor in small.items():
        recipe = "teacher" if head == "student" else "teacher-pspnet"
        network = "networks.teacher"
        fields = {
            **_one_step(recipe),
            f"{network}.extractor.name": extractor,
            f"{network}.extractor.weights": "random",
            f"{network}.head.channels": 8,
        }
        run = tmp_path_factory.mktemp(head) / "run"
        spiritseg.distill(load_experiment(recipe, fields), run)
        found[head] = str(run / "student")
    return found


@pytest.mark.parametrize("name", recipe_names())
def test_a_step_of_each_stage(name: str, tmp_path: Path, teachers: dict[str, str]) -> None:
    plain, fields = load_experiment(name, complete=False), _one_step(name)
    if name.startswith("skd"):
        fields["networks.teacher.bundle"] = teachers[plain.networks["teacher"].head.name]
    result = spiritseg.distill(load_experiment(name, fields), tmp_path / "run")
    assert list(result.metrics["stages"]) == list(plain.stages)
    assert all(stage["steps"] == 1 for stage in result.metrics["stages"].values())
    assert 0 <= result.metrics["test"]["mIOU"] <= 1
    mask = result.student(np.zeros((64, 72, 3), np.uint8))
    assert mask.shape == (64, 72)
    assert mask.max() < len(result.student.classes)


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.startswith("skd")])
def test_a_teacher_that_nothing_trained_is_refused(name: str) -> None:
    if load_experiment(name, complete=False).stages["distil"].teacher is None:
        load_experiment(name, COMMON)
        return
    with pytest.raises(ConfigError, match=r"head of 'teacher' is untrained.*bundle RUN/student"):
        load_experiment(name, COMMON)
