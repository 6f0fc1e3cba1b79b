"""The extrapolation from a few steps: counts of steps, the cache, decoding, memory."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from spiritseg import scenes
from spiritseg.config import Stage
from spiritseg.data.cache import Budget
from spiritseg.doctor import Examination, training_steps
from spiritseg.doctor.findings import Known
from spiritseg.doctor.images import examine_images
from spiritseg.doctor.training_steps import StageCost, examine_training, measure_stage
from spiritseg.doctor.weights import examine_weights
from spiritseg.errors import DivergedError
from spiritseg.recipes import load_experiment
from spiritseg.training.cache import FrozenOutputs
from spiritseg.training.stage import StageModule

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("stage", "steps"),
    [
        (Stage(max_steps=100), 100),
        (Stage(max_steps=0, max_epochs=3, batch_size=8), 24),
        (Stage(max_steps=10, max_epochs=3, batch_size=8), 10),
    ],
)
def test_steps_of_a_stage(stage: Stage, steps: int) -> None:
    assert training_steps._steps(stage, 64) == steps


def _cost(**fields: Any) -> StageCost:
    """300 steps of 4 of 12 images in 4 views."""
    given = {"steps": 300, "batch_size": 4, "different": 48, "repeats": True, "cache": 2**20}
    return StageCost(**{**given, "kept": 0, "new_s": 0.0, "again_s": 0.0, **fields})


@pytest.mark.parametrize("cache_images", [0, 10, 32, 1000])
def test_computed_images_are_those_of_the_cache(cache_images: int) -> None:
    """Twelve images in four views, shown 25 times over: against the real cache."""
    size = 512 * 2048 // max(1, cache_images)
    cost = _cost(kept=size) if cache_images else _cost(repeats=False)
    budget = Budget(1 if cache_images else 0)
    cache = FrozenOutputs(lambda x: {"f": x.expand(len(x), size // 2)}, budget)
    for epoch in range(100):
        for index in range(12):
            cache(torch.zeros(1, 1), [(0, index, epoch % 4)])
    assert cost.computed == pytest.approx(cache.computed, rel=0.03)
    assert (cost.kept_share == 1) == (cache_images >= 48)


def test_time_of_a_stage_by_hand() -> None:
    times = {"new_s": 3.0, "again_s": 0.25, "around_s": 7.0}
    around = 7 + training_steps._STAGE_S
    for kept in (0, 1):  # 48 views make 12 new steps, whether or not anything is frozen
        assert _cost(kept=kept, **times).seconds == 12 * 3 + 288 * 0.25 + around
    assert _cost(repeats=False, **times).seconds == 300 * 3 + around


def test_extrapolation_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def action(count: int) -> str:
        now[0] += 0.1 + 0.02 * count
        return "done"

    result, seconds = training_steps._extrapolated(action, lambda _: 100)
    assert result == "done"
    assert seconds == pytest.approx(0.1 + 0.02 * 100)


SLOW_S = 0.3


@pytest.fixture(scope="module")
def known() -> Known:
    few = {"train": 4, "val": 1, "test": 1, "size": [40, 48]}
    fields = {"subset": "all", "dataset": "scenes", "val": "auto", "scenes": few}
    near = {"dataset": "scenes", "scenes": {"size": [40, 48], "train": 30}}
    overrides: dict[str, Any] = {"target": fields, "proximity": near, "input.crop": 32}
    for name, images in (("mimicry", "proximity"), ("head", "target"), ("all", "target")):
        overrides[f"stages.{name}.images"] = images
        overrides[f"stages.{name}.batch_size"] = 2
        overrides[f"stages.{name}.max_steps"] = 20
    overrides |= {"stages.mimicry.num_views": 2, "trainer.accelerator": "cpu"}
    overrides |= {"trainer.progress": False, "evaluation.latency": False}
    overrides["networks.teacher.extractor.cut_at"] = "blocks.2"
    known = Known(load_experiment("esd", overrides))
    for look in (examine_images, examine_weights):
        look(Examination(""), known)
    return known


def test_decoding_is_counted_once_an_image_not_each_step(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scenes.render(0, 0, (40, 48), scenes.SceneStyle())

    def slow(*given: Any) -> Any:
        time.sleep(SLOW_S)
        return scene

    monkeypatch.setattr(scenes, "render", slow)
    monkeypatch.setattr(training_steps, "_train", lambda *given: (0.0, 0.0))
    again = Known(known.experiment, networks=known.networks)
    examine_images(Examination(""), again)
    assert again.read_s == pytest.approx(36 * SLOW_S, rel=0.3)  # 6 labelled ones, 30 others
    for name in ("mimicry", "all"):
        cost = measure_stage(name, again, CPU)
        assert cost.new_s < 2 * SLOW_S  # a batch of 2
    assert again.domains is not None
    small = dataclasses.replace(known.experiment.input, cache_mib=0)
    experiment = dataclasses.replace(known.experiment, input=small)
    unkept = Known(experiment, networks=known.networks)
    examine_images(Examination(""), unkept)
    assert measure_stage("mimicry", unkept, CPU).new_s > 2 * SLOW_S


def test_a_stage_that_fails_or_diverges_is_a_problem_with_advice(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StageModule.training_step

    def step(self: StageModule, *given: Any) -> Any:
        if self.name == "mimicry":
            raise DivergedError("the loss is not finite")
        if self.name == "head":
            raise MemoryError("out of memory\nand more")
        return real(self, *given)

    monkeypatch.setattr(StageModule, "training_step", step)
    found = Examination("Training steps")
    examine_training(found, known)
    diverged, failed = (one for one in found.findings if one.level == "problem")
    assert diverged.where == "stages.mimicry"
    assert diverged.what == "it does not run: the loss is not finite"
    assert (failed.where, failed.what) == ("stages.head", "it does not run: out of memory")
    assert failed.do.startswith("--stages.head.batch_size 1")
    (rows,) = found.tables.values()
    assert rows[1][:2] == ["all", "20"]
    assert any("the measured stages take" in one.what for one in found.findings)


def test_too_little_memory_and_a_small_cache_are_warnings(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = _cost(kept=2**16, host=2**30)
    monkeypatch.setattr(training_steps, "measure_stage", lambda *given: cost)
    monkeypatch.setattr(training_steps, "_free_bytes", lambda device: 2**30)
    found = Examination("Training steps")
    examine_training(found, known)
    warnings = {one.where: one for one in found.findings if one.level == "warning"}
    assert "33 % of the views fit" in warnings["stages.mimicry.cache_mib"].what
    assert warnings["stages.mimicry.cache_mib"].do.startswith("--stages.mimicry.cache_mib 3,")
    assert "1024 MiB are free" in warnings["memory"].what


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_peak_memory_starts_anew() -> None:
    def peak() -> int:
        return training_steps._proc("self/status", "VmHWM")

    training_steps._reset_peak(CPU)
    before = peak()
    block = torch.ones(2**26)  # 256 MiB
    assert peak() > before + 200 * 2**20
    assert training_steps._free_bytes(CPU) > block.nbytes
    del block
    training_steps._reset_peak(CPU)
    assert peak() < before + 100 * 2**20
