"""A run stopped at any moment and started again ends with the weights of one that was not."""

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
  student: {extractor: {name: separable, base: teacher}}
stages:
  mimicry: {max_steps: 40, batch_size: 2, num_views: 2}
  head: {max_steps: 30, batch_size: 2, num_views: 2}
  all: {max_steps: 20, batch_size: 2, ema_decay: 0.9}
evaluation: {latency: false, pictures: 0}
trainer: {progress: false, checkpoint_every_s: 0, accelerator: cpu}
"""

# The run is stopped when the file appears: within a stage, between two, while it measures.
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


def _stop_when(command: list[str], run: Path, pattern: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list(run.glob(pattern)):
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before it could be stopped"
    process.send_signal(number)
    said = process.communicate()[1]
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        return
    code, word = {signal.SIGTERM: (143, "stopped"), signal.SIGINT: (130, "interrupted")}[number]
    assert process.returncode == code, said
    assert said.endswith(f"spiritseg: {word}; the same command continues.\n")


@pytest.mark.timeout(400)
def test_a_stopped_run_continues_to_bit_identical_weights(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    subprocess.run(_command(tmp_path, whole), check=True, capture_output=True)
    signals = [signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
    for number, (moment, how) in enumerate(zip(MOMENTS, signals, strict=True)):
        _stop_when(_command(tmp_path, stopped, workers=number % 2), stopped, moment, how)
        assert not (stopped / "metrics.json").exists()
    subprocess.run(_command(tmp_path, stopped, workers=1), check=True, capture_output=True)
    assert _digest(stopped) == _digest(whole)
    assert (stopped / "per_image.csv").read_text() == (whole / "per_image.csv").read_text()
    assert not list(stopped.rglob("*.part"))
    assert not list(stopped.rglob("step-*.ckpt"))
