from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from spiritseg.errors import ConfigError, DataError
from spiritseg.evaluation.evaluate import ExplainedVariance


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(5, 3, 4, 6, generator=generator, dtype=torch.float64)
    teacher = teacher * torch.tensor([1.0, 4.0, 0.1]).view(3, 1, 1) + 1000
    student = teacher + torch.randn(teacher.shape, generator=generator, dtype=torch.float64)
    return student, teacher


def r2(student: torch.Tensor, teacher: torch.Tensor) -> float:
    return measured(student, teacher).compute().item()


def measured(student: torch.Tensor, teacher: torch.Tensor, size: int = 2) -> ExplainedVariance:
    metric = ExplainedVariance()
    for s, t in zip(torch.split(student, size), torch.split(teacher, size), strict=True):
        metric.update(s, t)
    return metric


def test_known_values() -> None:
    _, teacher = drawn()
    assert r2(teacher, teacher) == 1
    mean = teacher.mean((0, 2, 3), keepdim=True).expand_as(teacher)
    assert r2(mean, teacher) == pytest.approx(0, abs=1e-9)
    assert r2(2 * mean - teacher, teacher) == pytest.approx(-3)  # an error twice the deviation


def test_it_agrees_with_the_definition_over_all_batches() -> None:
    student, teacher = drawn()
    error = (student - teacher).square().sum()
    total = (teacher - teacher.mean((0, 2, 3), keepdim=True)).square().sum()
    for size in (1, 2, 5):
        found = measured(student, teacher, size).compute().item()
        assert found == pytest.approx((1 - error / total).item(), rel=1e-8)


def test_a_student_on_another_grid_is_resized() -> None:
    student, teacher = drawn()
    coarse = student[:, :, :2, :3]
    resized = F.interpolate(coarse, (4, 6), mode="bilinear", align_corners=False)
    assert r2(coarse, teacher) == pytest.approx(r2(resized, teacher), rel=1e-12)


def test_reset_forgets() -> None:
    student, teacher = drawn()
    metric = measured(student, teacher)
    metric.reset()
    metric.update(teacher[:, :2], teacher[:, :2])
    assert metric.compute() == 1


def test_what_is_wrong_is_named() -> None:
    student, teacher = drawn()
    assert math.isnan(r2(student[:, :, :1, :1], torch.ones(5, 3, 1, 1)))
    metric = measured(student, teacher)
    with pytest.raises(DataError, match="3 channels as before, got 2"):
        metric.update(student[:, :2], teacher[:, :2])
    with pytest.raises(ConfigError, match="channels"):
        metric.update(student[:, :2], teacher)
    metric.reset()
    metric.update(student[:0], teacher[:0])
    with pytest.raises(DataError, match="no features"):
        metric.compute()
