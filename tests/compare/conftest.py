"""Finished runs with planted results: folders as `spiritseg.distill` writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spiritseg.compare.matrix import Cell
from spiritseg.config import Experiment
from spiritseg.recipes import load_experiment, to_yaml

# Experiments that take a second: scenes of a few pixels, a step or two.
TINY: dict[str, Any] = {
    "target.dataset": "scenes",
    "target.scenes": {"train": 4, "val": 1, "test": 2, "size": [64, 72]},
    "proximity.dataset": "scenes",
    "proximity.scenes": {"train": 4, "val": 1, "test": 2, "size": [64, 72]},
    "input.crop": 64,
    "evaluation.latency": False,
    "evaluation.pictures": 0,
    "trainer.progress": False,
    "trainer.accelerator": "cpu",
}
# The same on the command line.
WORDS = [
    *("compare", "baseline", "--target.dataset", "scenes", "--target.scenes.size", "64", "72"),
    *("--target.scenes.train", "4", "--target.scenes.val", "1", "--target.scenes.test", "2"),
    *("--input.crop", "64", "--stages.supervised.batch_size", "2", "--evaluation.latency", "false"),
    *("--evaluation.pictures", "0", "--trainer.accelerator", "cpu"),
]
COSTS = {"ct": (3_400_000, 1.9), "finetune-pretrained": (3_400_000, 1.9)}
SIZES = [14, 9, 20, 11, 17, 8, 12, 15, 10, 13, 19, 16]  # frames of each sequence
NAMES = [f"test/drive{q:02d}_{i:05d}.png" for q, n in enumerate(SIZES) for i in range(n)]

Planted = Callable[..., Path]


def steps(count: int, *stages: str) -> dict[str, int]:
    """Return fields that let stages take some steps of two images."""
    return {
        f"stages.{stage}.{field}": value
        for stage in stages
        for field, value in (("max_steps", count), ("batch_size", 2))
    }


def per_image(gain: float, seed: int, recipe: int) -> np.ndarray:
    """Plant mIOU_i: what a sequence, a seed, both with a recipe, and a frame add."""
    of = np.repeat(np.arange(len(SIZES)), SIZES)
    sequences = np.random.default_rng(5).normal(0, 0.06, len(SIZES))
    own = np.random.default_rng([6, recipe])
    effects = own.normal(0, 0.006, len(SIZES))
    seeds = own.normal(0, 0.006, 20)
    frames = np.random.default_rng([7, recipe, seed]).normal(0, 0.03, len(of))
    values: np.ndarray = 0.74 + gain + (sequences + effects)[of] + seeds[seed] + frames
    return values.clip(0.05, 0.99)


def write_run(folder: Path, recipe: str, experiment: Experiment, values: np.ndarray) -> Path:
    """Write a run as it looks when it is finished, but for its weights."""
    run = folder / Cell(recipe, experiment).folder
    run.mkdir(parents=True)
    params, gflops = COSTS.get(recipe, (510_426, 0.81))
    test = {
        "mIOU": values.mean(),
        "HP-Acc": (values > 0.75).mean(),
        "Var": values.var(),
        "dataset mIoU": values.mean() - 0.01,
        "IoU": {"background": values.mean() + 0.1, "road": values.mean() - 0.1},
        "images": len(values),
    }
    stages: dict[str, Any] = {
        name: {"seconds": 12.5, "steps": stage.max_steps, "loss": 0.1}
        | ({"explained variance": {"target": 0.4, "proximity": 0.3}} if stage.teacher else {})
        for name, stage in experiment.stages.items()
    }
    cost = {"size": [144, 192], "params": params, "gflops": gflops}
    metrics = {"test": test, "val": test, "stages": stages, "cost": cost, "skipped": []}
    (run / "config.yaml").write_text(to_yaml(experiment))
    (run / "run.json").write_text(json.dumps({"versions": {"torch": "2"}, "machine": "a machine"}))
    lines = [f"{name},{value:.6f}" for name, value in zip(NAMES, values, strict=True)]
    (run / "per_image.csv").write_text("\n".join(["image,mIOU", *lines, ""]))
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    """Write runs of recipes with planted gains, under seeds 0 to seeds - 1."""

    def plant(gains: Mapping[str, float], seeds: int = 5, **fields: Any) -> Path:
        for number, (name, gain) in enumerate(gains.items()):
            recipe, _, ratio = name.partition("@")
            further = {"stages.mimicry.ratio": float(ratio)} if ratio else {}
            common = {"target.dataset": "scenes", "proximity.dataset": "scenes"}
            plain = load_experiment(recipe, {**common, **fields, **further})
            for seed in range(seeds):
                experiment = replace(plain, seed=seed)
                write_run(tmp_path / "runs", recipe, experiment, per_image(gain, seed, number))
        return tmp_path / "runs"

    return plant
