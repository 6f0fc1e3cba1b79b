"""Frechet distances: closed forms, an independent matrix square root, bias and its removal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from spiritseg.errors import DataError
from spiritseg.proximity.frechet import (
    Moments,
    basis,
    distance,
    frechet,
    gain,
    jackknife,
    moments,
)


def _set(
    n: int, seed: int, mean: float = 0.0, std: float = 1.0, d: int = 6, positions: int = 20
) -> Moments:
    """Images whose positions share a part of the image's own: what makes small sets look far."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, 1, d, generator=generator, dtype=torch.float64)
    inner = torch.randn(n, positions, d, generator=generator, dtype=torch.float64)
    x = mean + std * (common + inner) / math.sqrt(2)
    return Moments(x.mean(1), x.mT @ x / positions)


def _means(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    return mean, covariance + torch.outer(mean, mean)


def test_frechet_of_diagonal_gaussians_has_a_closed_form() -> None:
    one = _means(torch.tensor([1.0, 2.0]).double(), torch.diag(torch.tensor([4.0, 9.0])).double())
    two = _means(torch.tensor([0.0, 4.0]).double(), torch.diag(torch.tensor([1.0, 1.0])).double())
    assert float(frechet(one, two)) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 1) ** 2)
    assert float(frechet(one, one)) == pytest.approx(0, abs=1e-12)


def test_frechet_is_the_formula_with_another_square_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    generator = np.random.default_rng(0)
    means = generator.normal(size=(2, 5))
    factors = generator.normal(size=(2, 5, 9))
    covariances = factors @ factors.transpose(0, 2, 1)
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(
        covariances[0] + covariances[1] - 2 * root.real
    )
    one, two = (
        _means(torch.from_numpy(m), torch.from_numpy(c))
        for m, c in zip(means, covariances, strict=True)
    )
    assert float(frechet(one, two)) == pytest.approx(expected, rel=1e-9)


def test_moments_are_those_of_all_positions() -> None:
    features = torch.randn(5, 4, 7, generator=torch.Generator().manual_seed(1))
    on = basis(features, directions=4)
    found = moments(features, on)
    flat = (features.double() - on.mean[:, None]).permute(0, 2, 1).reshape(-1, 4) @ on.directions
    assert torch.allclose(found.first.mean(0), flat.mean(0), atol=1e-12)
    assert torch.allclose(found.second.mean(0), flat.T @ flat / len(flat))
    # the reference has in its own basis no mean, and the scale as its variance
    assert torch.allclose(flat.mean(0), torch.zeros(4).double(), atol=1e-6)
    assert float(flat.var(0).sum()) == pytest.approx(on.scale, rel=0.05)


def test_jackknife_takes_the_bias_of_a_variance_off() -> None:
    # of the plain variance (divided by n) it makes the unbiased one exactly, a textbook case
    x = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)[:, None]
    found = jackknife(
        lambda one: (one[1] - one[0][..., :, None] * one[0][..., None, :])[..., 0, 0],
        Moments(x, x[:, :, None] * x[:, None, :]),
    )
    assert found.raw == pytest.approx(float(x.var(correction=0)))
    assert found.value == pytest.approx(float(x.var()))


def test_jackknife_error_of_a_mean_is_the_textbook_one() -> None:
    x = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)[:, None]
    found = jackknife(lambda one: one[0][..., 0], Moments(x, x[:, :, None] * x[:, None, :]))
    assert found.value == pytest.approx(4.0)
    assert found.error == pytest.approx(float(x.std()) / 2)


def test_small_sets_do_not_look_far() -> None:
    """16 and 128 images of the reference's distribution; fails on the uncorrected figures."""
    corrected: dict[int, list[float]] = {16: [], 128: []}
    raw: dict[int, list[float]] = {16: [], 128: []}
    for trial in range(8):
        reference = _set(64, 1000 + trial)
        for n in (16, 128):
            found = distance(reference, _set(n, 10 * trial + n))
            corrected[n].append(found.value)
            raw[n].append(found.raw)
    small, large = np.mean(raw[16]), np.mean(raw[128])
    assert small > 2 * large  # the plain estimate ranks by size
    for n in (16, 128):
        assert abs(np.mean(corrected[n])) < 0.25 * np.mean(raw[n])
    assert abs(np.mean(corrected[16]) - np.mean(corrected[128])) < 0.2 * (small - large)


def test_error_is_the_spread_over_samples() -> None:
    found = [distance(_set(40, 2 * i), _set(40, 2 * i + 1, mean=0.7)) for i in range(40)]
    values = np.array([f.value for f in found])
    errors = np.array([f.error for f in found])
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.35)
    assert values.mean() == pytest.approx(6 * 0.7**2, rel=0.1)


def test_same_distribution_is_seldom_beyond_noise() -> None:
    hits = [distance(_set(32, 3 * i), _set(32, 3 * i + 1)).beyond_noise for i in range(40)]
    assert sum(hits) <= 6


def test_gain_says_whether_a_mixture_comes_nearer() -> None:
    toward, target = _set(64, 0, mean=1.0), _set(64, 1)
    helping = gain(toward, target, _set(64, 2, mean=1.0), ratio=0.5)
    leading_away = gain(toward, target, _set(64, 3, mean=-2.0), ratio=0.5)
    assert helping.value > 0
    assert helping.beyond_noise
    assert leading_away.value < 0
    alone = distance(toward, target)
    only = gain(toward, target, _set(64, 2, mean=1.0), ratio=0)  # the other set alone
    replaced = distance(toward, _set(64, 2, mean=1.0))
    assert only.value == pytest.approx(alone.value - replaced.value, rel=1e-6)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="2 or more"):
        distance(_set(8, 0), _set(1, 1))
    with pytest.raises(DataError, match="2 or more"):
        basis(torch.zeros(1, 3, 4))
    with pytest.raises(DataError, match="same at all positions"):
        basis(torch.zeros(2, 3, 4))
