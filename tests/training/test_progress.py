"""What a progress bar says, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from spiritseg.geometry import resize
from spiritseg.models import Segmenter
from spiritseg.recipes import load_experiment
from spiritseg.training.measure import score
from spiritseg.training.trainer import StageProgress


class _Network(Segmenter):
    """Calls everything the first class."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        images = resize(images, size or images.shape[-2:])
        return torch.stack([images[:, 0] * 0 + 1, images[:, 0] * 0], 1)


def test_a_measurement_says_of_how_many_images(capsys: pytest.CaptureFixture[str]) -> None:
    one = {"image": torch.zeros(3, 4, 4), "labels": torch.zeros(8, 8, dtype=torch.uint8)}
    data: Any = [{**one, "index": number} for number in range(3)]
    experiment = load_experiment("demo", {"trainer.accelerator": "cpu"})
    found = score(_Network(), data, ["background", "road"], experiment)
    assert found.hp_acc == 1
    shown = capsys.readouterr().out
    assert "measuring 3 images" in shown
    assert "Testing" not in shown


def test_a_stage_is_named() -> None:
    assert StageProgress("1-mimicry")._get_train_description(4) == "1-mimicry, epoch 5"
