"""A run killed at any moment and started again ends with the weights of one that was not."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """
extends: esd
target: {dataset: scenes, scenes: {train: 6, val: 2, test: 2, size: [72, 96]}}
proximity: {dataset: scenes, scenes: {train: 8, val: 2, size: [72, 96]}}
input: {crop: 64}
networks:
  teacher: {extractor: {weights: random}}
stages:
  mimicry: {max_steps: 40, batch_size: 2, views: 2}
  head: {max_steps: 30, batch_size: 2, views: 2}
  all: {max_steps: 20, batch_size: 2, average: 0.9}
evaluation: {latency: false, pictures: 0}
trainer: {progress: false, checkpoint_every_s: 0, accelerator: cpu}
"""

# The run is killed when the file appears: within a stage, between two, while it measures.
MOMENTS = [
    "stages/1-mimicry/step-*.ckpt",
    "stages/1-mimicry/stage.json",
    "stages/2-head/step-*.ckpt",
    "stages/3-all/stage.json",
]


def _command(folder: Path, run: Path, workers: int = 0) -> list[str]:
    words = ["distill", str(folder / "tiny.yaml"), "--run-dir", str(run)]
    return [sys.executable, "-m", "spiritseg", *words, "--trainer.workers", str(workers)]


def _digest(run: Path) -> str:
    return hashlib.sha256((run / "student" / "student.safetensors").read_bytes()).hexdigest()


def _kill_when(command: list[str], run: Path, pattern: str) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(run.glob(pattern)):
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.timeout(400)
def test_a_killed_run_continues_to_bit_identical_weights(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(_command(tmp_path, whole), check=True, capture_output=True)
    for number, moment in enumerate(MOMENTS):
        _kill_when(_command(tmp_path, killed, workers=number % 2), killed, moment)
        assert not (killed / "metrics.json").exists()
    subprocess.run(_command(tmp_path, killed, workers=1), check=True, capture_output=True)
    assert _digest(killed) == _digest(whole)
    assert (killed / "per_image.csv").read_text() == (whole / "per_image.csv").read_text()
    assert not list(killed.rglob("*.part"))
    assert not list(killed.rglob("step-*.ckpt"))
