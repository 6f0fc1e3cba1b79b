"""Tables: what a comparison prints, and classes that nothing shows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from spiritseg.config import Evaluation
from spiritseg.data.class_map import named
from spiritseg.evaluation.evaluate import EvaluationModule
from spiritseg.files import json_bytes
from spiritseg.models import Segmenter
from spiritseg.tables import class_table, markdown, metrics_table, print_table

CAMVID = list(named("camvid").names)


class Says(Segmenter):
    """Predicts the class that the first channel of an image holds."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, images: torch.Tensor, size: Sequence[int] | None = None) -> torch.Tensor:
        classes = torch.arange(11.0).view(1, 11, 1, 1)
        return -(images[:, :1] - classes).abs()


def scored(labels: list[int], predictions: list[int]) -> dict[str, Any]:
    """Measure one image of a row of pixels, as a run does."""
    module = EvaluationModule(Says(), CAMVID, Evaluation().threshold, 1)
    image = torch.tensor(predictions).float().expand(3, 1, -1).clone()
    sample = {"image": image, "labels": torch.tensor([labels]), "index": torch.tensor(0)}
    module.test_step([sample], 0)
    module.on_test_epoch_end()
    return module.scores.as_dict()


def run(val: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    return {"val": val, "test": test, "cost": {"params": 1_500_000, "gflops": 2.0}}


def test_every_class_has_an_iou_and_an_absent_one_is_no_zero() -> None:
    # Sky two of three, Building one of two, Road whole; the pixel of 255 does not count.
    val = scored([0, 0, 0, 1, 3, 255], [0, 0, 1, 1, 3, 7])
    assert list(val["IoU"]) == CAMVID
    assert val["IoU"]["Sky"] == pytest.approx(2 / 3)
    assert val["IoU"]["Building"] == pytest.approx(1 / 2)
    assert val["IoU"]["Road"] == 1
    assert math.isnan(val["IoU"]["Car"])
    assert math.isnan(val["IoU"]["Fence"])  # predicted on an ignored pixel alone
    assert val["dataset mIoU"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_metrics_read_from_disk_make_the_same_tables() -> None:
    result = run(scored([0, 0, 3, 3], [0, 3, 3, 3]), scored([0, 1, 3, 3], [0, 1, 3, 3]))
    stored = json.loads(json_bytes(result))  # NaN has become null
    assert stored["val"]["IoU"]["Car"] is None
    for split in ("val", "test"):
        assert class_table(stored[split]) == class_table(result[split])
    assert metrics_table({"a": stored}) == metrics_table({"a": result})


def test_a_network_s_own_table_and_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    table = class_table(scored([0, 0, 3, 3], [0, 3, 3, 3]))
    assert ["images", "1"] in table
    assert ["IoU Sky %", "50.0"] in table
    assert ["IoU Car %", "-"] in table
    lines = markdown(table).splitlines()
    assert lines[:2] == ["| measure | value |", "| --- | ---: |"]
    assert len(lines) == len(table) + 1
    print_table(table)
    assert "IoU Bicyclist %" in capsys.readouterr().out
