from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from reference import naive_losses
from spiritseg.errors import ConfigError, DataError
from spiritseg.losses import mimicry
from spiritseg.losses.channel_statistics import ChannelStatistics
from spiritseg.losses.mimicry import standardise


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    return student, teacher


def test_a_value_by_hand() -> None:
    student = torch.zeros(2, 3, 1, 2)
    teacher = torch.zeros(2, 3, 1, 2)
    teacher[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0])  # 14 at one of 4 positions
    assert float(mimicry(student, teacher)) == pytest.approx(3.5)
    assert float(mimicry(student, teacher, reduction="mean")) == pytest.approx(3.5 / 3)


def test_it_agrees_with_a_loop() -> None:
    student, teacher = drawn()
    expected = naive_losses.mimicry(student, teacher)
    assert float(mimicry(student, teacher)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("reduction", ["channel_sum", "mean"])
def test_gradcheck_and_no_gradient_into_the_teacher(reduction: str) -> None:
    student, teacher = drawn()
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: mimicry(s, teacher, reduction=reduction),  # type: ignore[arg-type]
        (student,),
    )
    teacher.requires_grad_()
    mimicry(student, teacher).backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None
    assert student.grad is not None


def test_equal_features_give_zero_and_copies_change_nothing() -> None:
    student, teacher = drawn()
    assert float(mimicry(teacher, teacher)) == 0
    doubled = mimicry(torch.cat([student] * 2), torch.cat([teacher] * 2))
    assert doubled.item() == pytest.approx(float(mimicry(student, teacher)), rel=1e-12)


def test_a_student_on_another_grid_is_resized_to_the_teachers() -> None:
    student, teacher = drawn()
    coarse = student[:, :, :2, :3]
    resized = F.interpolate(coarse, (4, 5), mode="bilinear", align_corners=False)
    assert float(mimicry(coarse, teacher)) == pytest.approx(float(mimicry(resized, teacher)))


def test_half_precision_is_summed_in_float32() -> None:
    student = torch.full((1, 512, 2, 2), 40.0, dtype=torch.float16)  # 512 * 1600 > 65504
    with torch.autocast("cpu", torch.bfloat16):
        loss = mimicry(student, torch.zeros_like(student))
    assert loss.dtype == torch.float32
    assert loss.item() == 512 * 1600


def test_what_cannot_be_compared_is_named() -> None:
    student, teacher = drawn()
    with pytest.raises(ConfigError, match=r"channels.*\(2, 2, 4, 5\).*\(2, 3, 4, 5\).*1x1"):
        mimicry(student[:, :2], teacher)
    with pytest.raises(ConfigError, match="numbers of images"):
        mimicry(student[:1], teacher)
    with pytest.raises(ConfigError, match="B, C, h, w"):
        mimicry(student[0], teacher)
    with pytest.raises(ConfigError, match=r"'sum'.*channel_sum, mean"):
        mimicry(student, teacher, reduction="sum")  # type: ignore[arg-type]


def test_statistics_over_batches_are_those_of_all_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    # a mean 1e4 times the deviation: squares summed in float32 would fail
    scale = torch.tensor([1.0, 5.0, 0.2]).view(1, 3, 1, 1)
    features = torch.randn(7, 3, 5, 4, generator=generator) * scale + 1e4 * scale
    statistics, other = ChannelStatistics(), ChannelStatistics()
    for batch in torch.split(features[:4], 3):
        statistics.update(batch)
    other.update(features[4:])
    statistics.merge(other)
    statistics.merge(ChannelStatistics())
    mean, std = statistics.compute()
    torch.testing.assert_close(mean, features.double().mean((0, 2, 3)), rtol=1e-12, atol=0)
    expected = features.double().std((0, 2, 3), correction=0)
    torch.testing.assert_close(std, expected, rtol=1e-9, atol=0)


def test_the_deviation_is_clamped_from_below() -> None:
    features = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    features[:, 0] = 2.0  # constant
    features[:, 1] *= 1e-5
    statistics = ChannelStatistics()
    statistics.update(features)
    _, std = statistics.compute()
    varying = features[:, 1:].double().std((0, 2, 3), correction=0)
    assert torch.allclose(std[:2], 1e-2 * varying.median(), rtol=1e-9)
    assert torch.allclose(std[2:], varying[1:], rtol=1e-9)
    constant = ChannelStatistics()
    constant.update(torch.ones(1, 2, 3, 3))
    assert constant.compute()[1].tolist() == [1, 1]


def test_statistics_say_what_is_wrong() -> None:
    statistics = ChannelStatistics()
    with pytest.raises(DataError, match="no features"):
        statistics.compute()
    statistics.update(torch.ones(1, 2, 3, 3))
    with pytest.raises(ConfigError, match="2 channels as before, got 3"):
        statistics.update(torch.ones(1, 3, 3, 3))
    statistics.update(torch.full((1, 2, 3, 3), torch.nan))
    with pytest.raises(DataError, match="not finite"):
        statistics.compute()


def test_standardised_features_have_unit_variance() -> None:
    features = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 7 + 3
    statistics = ChannelStatistics()
    statistics.update(features)
    mean, std = statistics.compute()
    centred = standardise(features, mean, std, centre=True)
    assert centred.dtype == torch.float32
    assert torch.allclose(centred.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(centred.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)
    scaled = standardise(features, mean, std, centre=False)
    assert torch.allclose(scaled, features / std.float()[:, None, None], rtol=1e-5)
    with pytest.raises(ConfigError, match="3 channels"):
        standardise(features, mean[:2], std[:2], centre=True)


@pytest.mark.parametrize("reduction", ["channel_sum", "mean"])
def test_padding_is_left_out(reduction: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(2, 3, 4, 6, generator=generator) for _ in range(2))
    valid = torch.ones(2, 8, 12, dtype=torch.bool)
    valid[:, :, 6:] = False
    inside = mimicry(student[..., :3], teacher[..., :3], reduction)
    assert float(mimicry(student, teacher, reduction, valid)) == pytest.approx(float(inside))
    student[..., 3:] += 100  # changes nothing
    assert float(mimicry(student, teacher, reduction, valid)) == pytest.approx(float(inside))
    assert float(mimicry(student, teacher, reduction, torch.zeros_like(valid))) == 0
