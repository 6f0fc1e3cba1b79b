"""NaN and infinity pass through every loss: what hides them saves a student of NaN."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spiritseg.losses.cross_entropy import cross_entropy
from spiritseg.losses.holistic import critic_loss, holistic, maps_of
from spiritseg.losses.mimicry import mimicry
from spiritseg.losses.pairwise import pairwise
from spiritseg.losses.pixelwise import pixelwise

Loss = Callable[[Tensor, Tensor], Tensor]
LABELS = torch.randint(0, 3, (2, 8, 10), generator=torch.Generator().manual_seed(0))
VALID = torch.ones(2, 8, 10, dtype=torch.bool)


def _critic(maps: Tensor, images: Tensor | None) -> Tensor:
    return maps.square().sum((1, 2, 3))


LOSSES: dict[str, Loss] = {
    "cross_entropy": lambda s, t: cross_entropy(s, LABELS),
    "cross_entropy, same grid": lambda s, t: cross_entropy(s, LABELS[:, ::2, ::2]),
    "cross_entropy, weights": lambda s, t: cross_entropy(s, LABELS, class_weights=[1, 2, 3]),
    "mimicry": lambda s, t: mimicry(s, t),
    "mimicry, valid": lambda s, t: mimicry(s, t, valid=VALID),
    "pixelwise": lambda s, t: pixelwise(s, t),
    "pixelwise, student_teacher": lambda s, t: pixelwise(s, t, direction="student_teacher"),
    "pixelwise, valid": lambda s, t: pixelwise(s, t, valid=VALID),
    "pixelwise, confidence": lambda s, t: pixelwise(s, t, min_confidence=0.9),
    "pairwise, direct": lambda s, t: pairwise(s, t, form="direct"),
    "pairwise, linear": lambda s, t: pairwise(s, t, form="linear"),
    "pairwise, max": lambda s, t: pairwise(s, t, node_size=2, pooling="max"),
    "holistic": lambda s, t: holistic(_critic, maps_of(s)),
    "critic": lambda s, t: critic_loss(_critic, maps_of(s), maps_of(t), seed=0).detach(),
}


def _maps() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    return student, teacher


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_of_nan_gives_nan(name: str) -> None:
    student, teacher = _maps()
    student[0, 1, 2, 3] = torch.nan
    assert math.isnan(float(LOSSES[name](student, teacher)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", [n for n in LOSSES if "entropy" not in n and n != "holistic"])
def test_a_teacher_that_is_not_finite_gives_no_number(name: str, value: float) -> None:
    student, teacher = _maps()
    teacher[0, 1, 2, 3] = value
    assert not math.isfinite(float(LOSSES[name](student, teacher)))


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_a_class_that_cannot_be_is_no_nan(direction: str) -> None:
    student, teacher = _maps()
    for logits in (student, teacher):
        logits[:, 2] = -torch.inf  # 0 log 0 = 0
    student.requires_grad_()
    loss = pixelwise(student, teacher, direction=direction)  # type: ignore[arg-type]
    two = pixelwise(student[:, :2], teacher[:, :2], direction=direction)  # type: ignore[arg-type]
    assert float(loss.detach()) == pytest.approx(float(two.detach()))
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
