"""One run on two processes: what it trains, what it measures, what it leaves on disk."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from spiritseg.recipes import load_experiment
from spiritseg.training.run import distill

pytestmark = [
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo"),
    pytest.mark.timeout(300),
]

# Nothing in these networks looks at a whole batch, and no pixel of a scene is ignored: so the
# mean over two processes of the mean over half a batch is the mean over the batch, and in exact
# arithmetic two processes take the very steps of one. The critic has neither spectral norm nor
# the slope penalty, whose random points each process draws for itself.
NETWORKS = """
import os
from pathlib import Path
from timm.layers import BatchNormAct2d
from torch import nn, distributed, is_grad_enabled
from spiritseg import Segmenter
from spiritseg.models.heads import ResizedHead

class Witness(nn.Module):
    def forward(self, x):
        if self.training and is_grad_enabled() and "WITNESS" in os.environ:
            what = f"{distributed.get_rank()} of {distributed.get_world_size()}, {len(x)} images"
            Path(os.environ["WITNESS"], what).touch()
        return x

class Plain(Segmenter):
    def __init__(self, num_classes: int = 11, width: int = 8) -> None:
        trunk = nn.Sequential(
            Witness(), nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 12, 3, 2, 1)
        )
        super().__init__(trunk, ResizedHead(nn.Conv2d(12, num_classes, 3, 1, 1)))

class Normed(Segmenter):
    # One of the batch norms has an activation of its own, as timm's do.
    def __init__(self, num_classes: int = 11) -> None:
        trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            BatchNormAct2d(8),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.BatchNorm2d(12),
        )
        super().__init__(trunk, ResizedHead(nn.Conv2d(12, num_classes, 3, 1, 1)))
"""
NORMED = """
extends: exact.yaml
networks:
  teacher: null
  student: {extractor: {name: plain_networks.Normed}, head: {name: own}}
stages:
  teach: null
  mimicry: null
  inner: null
  distil:
    teacher: null
    losses: {pixelwise: null, pairwise: null, holistic: null}
    optimizer: {lr: 1.0e-1}
"""
EXACT = """
target: {dataset: scenes, classes: all, scenes: {train: 6, val: 3, test: 5, size: [72, 96]}}
input: {crop: 64, jitter: 0.2}
networks:
  teacher: {extractor: {name: plain_networks.Plain, args: {width: 6}}, head: {name: own}}
  student: {extractor: {name: plain_networks.Plain}, head: {name: own}}
stages:
  teach:
    network: teacher
    losses: {cross_entropy: {}}
    optimizer: {name: sgd, lr: 1.0e-2, schedule: constant}
    batch_size: 4
    max_steps: 4
  mimicry:
    trains: extractor
    teacher: teacher
    losses: {mimicry: {normalise: true}}
    optimizer: {name: sgd, lr: 1.0e-2, schedule: constant}
    batch_size: 4
    max_steps: 4
  inner:              # its losses leave the extractor's last layer without a gradient
    trains: extractor
    teacher: teacher
    losses: {mimicry: {layers: {extractor.module.1: extractor.module.1}}}
    optimizer: {name: sgd, lr: 1.0e-3, schedule: constant}
    batch_size: 4
    max_steps: 2
  distil:
    teacher: teacher
    losses:
      cross_entropy: {}
      pixelwise: {weight: 10}
      pairwise: {weight: 10}
      holistic: {kind: hinge, gradient_penalty: 0, width: 8}
    optimizer: {name: sgd, lr: 1.0e-2, schedule: poly}
    batch_size: 4
    max_steps: 4
evaluation: {latency: false, pictures: 1}
trainer: {progress: false, accelerator: cpu}
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "plain_networks.py").write_text(NETWORKS)
    (tmp_path / "exact.yaml").write_text(EXACT)
    (tmp_path / "normed.yaml").write_text(NORMED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def on_two_processes(
    folder: Path, name: str, launcher: list[str], further: list[str], recipe: str = "exact.yaml"
) -> tuple[Path, list[str]]:
    """Distil by the command line; return the run's folder, and what the processes trained on."""
    witness = folder / f"{name}-witness"
    witness.mkdir()
    words = ["distill", recipe, "--run-dir", name, *further]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "spiritseg", *words],
        cwd=folder,
        env={**os.environ, "WITNESS": str(witness)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("student: ") == 1
    assert "DistributedSampler" not in done.stderr
    return folder / name, sorted(path.name for path in witness.iterdir())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "student.safetensors")


def farthest(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def measured(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    for split in ("val", "test"):  # flat, so that they can be compared within a tolerance
        found[split].update(found[split].pop("IoU"))
    return found


def left_files(run: Path) -> list[str]:
    """List what a run left; a logger's file is called after machine and process."""
    paths = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return sorted(p.parent.as_posix() if "tfevents" in p.name else p.as_posix() for p in paths)


def test_two_processes_train_and_measure_as_one_does(here: Path) -> None:
    torch.set_num_threads(1)
    alone = distill(load_experiment(here / "exact.yaml"), here / "alone").run_dir
    two, saw = on_two_processes(here, "torchrun", TORCHRUN, [])  # it says itself how many
    # Without it Lightning starts the second process, with the same command line.
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    started, also_saw = on_two_processes(here, "started", [], devices)

    assert saw == also_saw == ["0 of 2, 2 images", "1 of 2, 2 images"]
    assert farthest(weights(two), weights(alone)) < 1e-5
    assert farthest(weights(two), weights(started)) == 0
    before = weights(alone)
    assert farthest(before, {k: torch.zeros_like(v) for k, v in before.items()}) > 0.1

    for run in (two, started):
        assert left_files(run) == left_files(alone)
        one, both = measured(alone), measured(run)
        for split, count in (("val", 3), ("test", 5)):  # odd: the sampler repeats an image
            assert both[split]["images"] == count
            assert both[split] == pytest.approx(one[split], abs=1e-3, nan_ok=True)
        for name in ("teach", "mimicry", "inner", "distil"):
            assert both["stages"][name]["steps"] == (2 if name == "inner" else 4)
            assert both["stages"][name]["loss"] == pytest.approx(
                one["stages"][name]["loss"], rel=1e-5
            )
        with (run / "per_image.csv").open() as file:
            images = [row["image"] for row in csv.DictReader(file)]
        assert images == [f"test/{i:05d}" for i in range(5)]


def test_synced_norms_make_two_processes_one(here: Path) -> None:
    torch.set_num_threads(1)
    alone = distill(load_experiment(here / "normed.yaml"), here / "alone").run_dir
    synced = ["--trainer.sync_batchnorm", "true"]
    two, _ = on_two_processes(here, "synced", TORCHRUN, synced, "normed.yaml")
    apart, _ = on_two_processes(here, "apart", TORCHRUN, [], "normed.yaml")
    assert any(name.endswith("running_var") for name in weights(alone))
    assert farthest(weights(two), weights(alone)) < 1e-5  # running statistics included
    assert farthest(weights(apart), weights(alone)) > 1e-3
