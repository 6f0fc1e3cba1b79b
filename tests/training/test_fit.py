"""A stage taken up after its last checkpoint, or before: it ends as one that was not stopped."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from spiritseg.config import Experiment
from spiritseg.data.sampling import StageData
from spiritseg.errors import RunError
from spiritseg.recipes import load_experiment
from spiritseg.training import measure
from spiritseg.training.checkpoint import AtomicCheckpointIO, EpochCheckpoint, latest
from spiritseg.training.run import Result, distill
from spiritseg.training.trainer import _epochs_done

NETWORK = """
from torch import nn
from spiritseg import Segmenter
from spiritseg.models.heads import ResizedHead

class Tiny(Segmenter):
    def __init__(self, num_classes: int = 11) -> None:
        trunk = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        super().__init__(trunk, ResizedHead(nn.Conv2d(4, num_classes, 1)))
"""
RECIPE = """
target: {dataset: scenes, scenes: {train: 4, val: 1, test: 1, size: [64, 64]}}
input: {crop: 32}
networks:
  student: {extractor: {name: tiny_networks.Tiny}, head: {name: own}}
stages:
  all: {batch_size: 2, losses: {cross_entropy: {}}, ema_decay: 0.5}
evaluation: {latency: false, pictures: 0}
trainer: {progress: false, checkpoint_every_s: 0, accelerator: cpu}
"""
ENDS: dict[str, dict[str, Any]] = {
    "max_steps": {"max_steps": 5},  # an epoch has two
    "max_epochs": {"max_steps": 0, "max_epochs": 3},
    "patience": {"max_steps": 40, "patience": 2, "min_delta": 1e9},  # the first epoch is the best
}
STEPS = {"max_steps": 5, "max_epochs": 6, "patience": 6}


class KilledError(Exception):
    """Stands for the end of the process."""


def _dies(*args: Any) -> NoReturn:
    raise KilledError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny_networks.py").write_text(NETWORK)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def _experiment(folder: Path, end: str) -> Experiment:
    experiment = load_experiment(folder / "tiny.yaml")
    stage = dataclasses.replace(experiment.stages["all"], **ENDS[end])
    return dataclasses.replace(experiment, stages={"all": stage})


def _left(result: Result) -> tuple[dict[str, Any], bytes]:
    """Return what a stage reports, but for the time it took, and the weights."""
    report = {k: v for k, v in result.metrics["stages"]["all"].items() if k != "seconds"}
    return report, (result.run_dir / "student" / "student.safetensors").read_bytes()


@pytest.mark.parametrize("end", ENDS)
def test_a_stage_taken_up_ends_as_one_that_was_not_stopped(
    end: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = _experiment(here, end)
    whole = _left(distill(experiment, here / "whole"))
    assert whole[0]["steps"] == STEPS[end]
    assert whole[0]["epochs"] == 3
    assert whole[0]["converged"] == (end == "patience")

    save = EpochCheckpoint.on_train_epoch_end

    def saves_and_dies(*args: Any) -> None:
        save(*args)
        raise KilledError

    moments = [
        (EpochCheckpoint, "on_train_epoch_end", saves_and_dies),  # after the first epoch
        (EpochCheckpoint, "on_train_epoch_end", saves_and_dies),  # the second
        (measure, "score", _dies),  # after the last, before the stage's report
        (measure, "score", _dies),
    ]
    for number, moment in enumerate(moments, start=1):
        with monkeypatch.context() as patch:
            patch.setattr(*moment)
            with pytest.raises(KilledError):
                distill(experiment, here / "killed")
        newest = latest(here / "killed" / "stages" / "1-all")
        assert _epochs_done(newest) == min(number, 3)
    assert _left(distill(experiment, here / "killed")) == whole


def _os_error(number: int, name: str | None) -> OSError:
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("error", "writing", "said"),
    [
        (_os_error(errno.EACCES, "STAGE/csv/metrics.csv"), True, "Permission denied"),
        (_os_error(errno.ENOSPC, None), True, "No space left on device"),
        (_os_error(errno.EIO, "/images/a.png"), False, "/images/a.png: Input/output error"),
        (_os_error(errno.ENOSPC, "/scratch/x"), False, "/scratch/x: No space left on device"),
        (_os_error(errno.EMFILE, None), False, "Too many open files"),
        (ConnectionError("Caught it.\n  File 3\nConnectionError: reset\n"), False,
         ": ConnectionError: reset. Mend"),
    ],
)  # fmt: skip
def test_only_what_the_run_writes_is_called_so(
    error: OSError, writing: bool, said: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = here / "run" / "stages" / "1-all"
    if isinstance(error.filename, str):
        error.filename = error.filename.replace("STAGE", str(stage))

    def fails(*args: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(StageData, "__getitem__", fails)
    with pytest.raises(RunError) as caught:
        distill(_experiment(here, "max_steps"), here / "run")
    message = str(caught.value)
    assert message.startswith(f"cannot write to {stage}: ") == writing
    assert "cannot write" not in message or writing
    assert said in message
    assert message.endswith("start the same command again: it continues.")


def test_a_checkpoint_of_another_device_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = {"epoch_progress": {"current": {"processed": 3}}}
    state = torch.arange(4.0)
    checkpoint = {"loops": {"fit_loop": progress}, "state": state}
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:99")
        AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "step-00000006.ckpt")
    newest = latest(tmp_path)
    assert newest is not None
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(newest, weights_only=True)
    assert _epochs_done(newest) == 3
    found = AtomicCheckpointIO().load_checkpoint(newest, weights_only=True)
    assert found["state"].device.type == "cpu"
    assert torch.equal(found["state"], state)
