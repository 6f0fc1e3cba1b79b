from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch.nn import functional as F

from reference import naive_losses
from spiritseg.errors import ConfigError
from spiritseg.losses import pixelwise

Direction = Literal["teacher_student", "student_teacher"]
both = pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, 2, 4, 3, 5, generator=generator, dtype=torch.float64)
    return student, teacher


def mask() -> torch.Tensor:
    valid = torch.ones(2, 3, 5, dtype=torch.bool)
    valid[0, 1:], valid[1, :, 4] = False, False
    return valid


def test_a_value_by_hand() -> None:
    student = torch.zeros(1, 2, 1, 1)  # 1/2, 1/2
    teacher = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1)  # 3/4, 1/4
    assert float(pixelwise(student, teacher)) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    )
    assert float(pixelwise(student, teacher, direction="student_teacher")) == pytest.approx(
        0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    )


@both
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_agrees_with_a_loop(direction: Direction, temperature: float) -> None:
    student, teacher = drawn()
    p, q = (teacher, student) if direction == "teacher_student" else (student, teacher)
    expected = naive_losses.pixelwise(p, q, temperature, mask())
    found = pixelwise(student, teacher, temperature, direction, valid=mask())
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_only_pixels_of_which_the_teacher_is_sure_count() -> None:
    student, teacher = drawn()
    sure = teacher.softmax(dim=1).amax(dim=1) >= 0.8
    assert 0 < int(sure.sum()) < sure.numel()
    found = pixelwise(student, teacher, valid=mask(), min_confidence=0.8)
    assert float(found) == pytest.approx(float(pixelwise(student, teacher, valid=mask() & sure)))
    assert float(pixelwise(student, teacher, min_confidence=1.0)) == 0
    with pytest.raises(ConfigError, match=r"confidence: expected 1 or less, got 2"):
        pixelwise(student, teacher, min_confidence=2)


@both
def test_gradcheck_and_no_gradient_into_the_teacher(direction: Direction) -> None:
    student, teacher = drawn()
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: pixelwise(s, teacher, 2.0, direction, valid=mask()), (student,)
    )
    teacher.requires_grad_()
    pixelwise(student, teacher, direction=direction).backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None


def test_the_default_has_the_gradient_of_the_released_cross_entropy() -> None:
    student, teacher = drawn()
    student.requires_grad_()
    (found,) = torch.autograd.grad(pixelwise(student, teacher, reduction="batch_sum"), student)
    released = -(teacher.softmax(1) * student.log_softmax(1)).sum() / (3 * 5)
    (expected,) = torch.autograd.grad(released, student)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@both
def test_padding_changes_neither_value_nor_gradient(direction: Direction) -> None:
    student, teacher = drawn()
    student2, teacher2 = drawn(1)
    valid = mask()[:, None]
    student2, teacher2 = student2.where(~valid, student), teacher2.where(~valid, teacher)
    values, gradients = [], []
    for s, t in ((student, teacher), (student2, teacher2)):
        s = s.clone().requires_grad_()
        loss = pixelwise(s, t, direction=direction, valid=mask())
        values.append(loss.item())
        gradients.append(torch.autograd.grad(loss, s)[0])
    assert values[0] == values[1]
    assert torch.equal(gradients[0], gradients[1])
    assert not gradients[0].masked_select(~valid).any()


@both
def test_equal_logits_give_exactly_zero(direction: Direction) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        logits = drawn()[1].to(dtype)
        assert float(pixelwise(logits.clone(), logits, 3.0, direction)) == 0


@both
def test_it_is_never_negative_and_keeps_its_gradient_near_the_minimum(
    direction: Direction,
) -> None:
    teacher = 30 * drawn()[1].float()
    student = (teacher + 100).requires_grad_()  # the same distribution, other rounding
    loss = pixelwise(student, teacher, direction=direction)
    assert 0 <= loss.item() < 1e-4
    close = (drawn()[1] + 1e-9 * drawn()[0]).requires_grad_()
    (gradient,) = torch.autograd.grad(pixelwise(close, drawn()[1], direction=direction), close)
    assert gradient.flatten(2).any(1).all()  # cut nowhere


def test_no_valid_pixel_gives_zero_with_zero_gradient() -> None:
    student, teacher = drawn()
    student.requires_grad_()
    loss = pixelwise(student, teacher, valid=torch.zeros(2, 3, 5, dtype=torch.bool))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, student)[0].any()


def test_copies_change_the_mean_not_and_the_batch_sum_twofold() -> None:
    student, teacher = drawn()
    twice = (torch.cat([student] * 2), torch.cat([teacher] * 2))
    mean, total = pixelwise(student, teacher), pixelwise(student, teacher, reduction="batch_sum")
    assert float(pixelwise(*twice)) == pytest.approx(mean.item(), rel=1e-12)
    assert total.item() == pytest.approx(2 * mean.item(), rel=1e-12)
    assert float(pixelwise(*twice, reduction="batch_sum")) == pytest.approx(2 * total.item())


def test_student_and_mask_come_to_the_teachers_grid() -> None:
    student, teacher = drawn()
    coarse = student[:, :, :2, :3]
    resized = F.interpolate(coarse, (3, 5), mode="bilinear", align_corners=False)
    valid = torch.ones(2, 6, 10, dtype=torch.bool)
    valid[:, :2] = False
    small = torch.ones(2, 3, 5, dtype=torch.bool)
    small[:, :1] = False
    found = pixelwise(coarse, teacher, valid=valid)
    assert found.item() == pytest.approx(float(pixelwise(resized, teacher, valid=small)))


def test_autocast_and_a_class_without_any_probability() -> None:
    student, teacher = drawn()
    with torch.autocast("cpu", torch.bfloat16):
        loss = pixelwise(student.float(), teacher.float())
        half = pixelwise(student.bfloat16(), teacher.bfloat16())
    assert loss.dtype == half.dtype == torch.float32
    assert loss.item() == pytest.approx(float(pixelwise(student, teacher)), rel=1e-5)
    teacher[:, 0] = -torch.inf
    student.requires_grad_()
    loss = pixelwise(student, teacher)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_what_is_wrong_is_named() -> None:
    student, teacher = drawn()
    with pytest.raises(ConfigError, match=r"both.*teacher_student"):
        pixelwise(student, teacher, direction="both")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"batch_sum, mean"):
        pixelwise(student, teacher, reduction="sum")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="temperature: expected more than 0, got 0"):
        pixelwise(student, teacher, temperature=0)
    with pytest.raises(ConfigError, match="channels"):
        pixelwise(student[:, :2], teacher)
    with pytest.raises(ConfigError, match="bool mask"):
        pixelwise(student, teacher, valid=torch.ones(2, 3, 5))
