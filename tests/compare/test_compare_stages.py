"""A stage's key changes with whatever its result depends on, and with nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import spiritseg
from compare.conftest import TINY, steps
from spiritseg.compare.shared_stages import share_stages, stage_folders, stage_keys
from spiritseg.config import Experiment
from spiritseg.recipes import experiment_from_dict, load_experiment

FIELDS: dict[str, Any] = {
    **TINY,
    **steps(2, "mimicry", "head", "all"),
    "networks.teacher.extractor.weights": "random",
}


def _sd(recipe: str = "sd", **fields: Any) -> Experiment:
    changes = {key.replace("__", "."): value for key, value in fields.items()}
    return load_experiment(recipe, {**FIELDS, **changes})


MIMICRY = [
    {"seed": 1},
    {"stages__mimicry__max_steps": 3},
    {"stages__mimicry__optimizer__lr": 0.5},
    {"stages__mimicry__num_views": 3},
    {"input__crop": 32},
    {"input__flip": 0.0},
    {"target__subset": "first:2"},
    {"target__classes": "all"},
    {"proximity__held_out": 0.25},  # explained variance is measured on it
    {"networks__teacher__extractor__weights": "pretrained"},
    {"networks__student__extractor__args": {"width": 8}},
    {"trainer__precision": "bf16-mixed"},
]
NOT_MIMICRY = [
    {"stages__head__optimizer__lr": 0.5},
    {"stages__all__max_steps": 9},
    {"stages__mimicry__cache_mib": 1},
    {"trainer__workers": 3},
    {"trainer__progress": True},
    {"evaluation__pictures": 2},
    {"networks__other": {"extractor": {"name": "efficientnet_lite0"}}},
]


@pytest.mark.parametrize("change", [*MIMICRY, *NOT_MIMICRY], ids=str)
def test_what_decides_the_first_stage_changes_its_key(change: dict[str, Any]) -> None:
    changed = stage_keys(_sd(**change))["mimicry"] != stage_keys(_sd())["mimicry"]
    assert changed == (change in MIMICRY)


def test_a_stage_depends_on_those_before_it_and_not_on_those_after() -> None:
    plain, changed = stage_keys(_sd()), stage_keys(_sd(stages__head__optimizer__lr=0.5))
    assert plain["mimicry"] == changed["mimicry"]
    assert plain["head"] != changed["head"]
    assert plain["all"] != changed["all"]
    assert len(set(plain.values())) == 3


def test_names_enter_the_draws_and_the_key() -> None:
    fields = dataclasses.asdict(_sd())
    fields["stages"] = {
        "imitation" if name == "mimicry" else name: stage
        for name, stage in fields["stages"].items()
    }
    key = stage_keys(_sd())["mimicry"]
    assert stage_keys(experiment_from_dict(fields))["imitation"] != key
    fields = dataclasses.asdict(_sd())
    fields["networks"]["pupil"] = fields["networks"].pop("student")
    fields["result"] = "pupil"
    for stage in fields["stages"].values():
        stage["network"] = "pupil"
    assert stage_keys(experiment_from_dict(fields))["mimicry"] != key


def test_proximity_counts_only_where_it_is_used() -> None:
    ct, other = (load_experiment("ct", {**TINY, "proximity.held_out": x}) for x in (0.1, 0.5))
    assert stage_keys(ct) == stage_keys(other)


def test_ratios_share_nothing_and_sd_is_not_esd() -> None:
    found = [_sd(), _sd("esd"), _sd("esd", stages__mimicry__ratio=5.0)]
    assert len({stage_keys(one)["mimicry"] for one in found}) == 3


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_equal_keys_are_equal_weights_and_a_shared_stage_is_not_run_again(tmp_path: Path) -> None:
    one, other = _sd(), _sd(stages__head__optimizer__lr=5e-3)
    spiritseg.distill(one, tmp_path / "one")
    spiritseg.distill(other, tmp_path / "alone")
    key = "stages/1-mimicry/network.safetensors"
    assert _digest(tmp_path / "one" / key) == _digest(tmp_path / "alone" / key)

    sources = {
        "mimicry": [tmp_path / "no such run", stage_folders(one, tmp_path / "one")["mimicry"]]
    }
    assert share_stages(other, tmp_path / "shared", sources) == ["mimicry"]
    assert share_stages(other, tmp_path / "shared", sources) == []
    result = spiritseg.distill(other, tmp_path / "shared")
    assert not (tmp_path / "shared/stages/1-mimicry/csv").exists()  # it was not trained
    assert result.metrics["stages"]["mimicry"]["shared with"] == "one"
    student = "student/student.safetensors"
    assert _digest(tmp_path / "shared" / student) == _digest(tmp_path / "alone" / student)
    alone = json.loads((tmp_path / "alone/metrics.json").read_text())
    assert result.metrics["test"] == alone["test"]
