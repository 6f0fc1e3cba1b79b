"""Kept outputs of frozen parts: the same numbers as computing them each time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from spiritseg.data.cache import Budget
from spiritseg.training.cache import FrozenOutputs

KEYS = [(0, 0, 0), (0, 1, 0), (1, 0, 2)]


def _network() -> nn.Module:
    return nn.Conv2d(3, 4, 3, stride=2, padding=1).eval()


def _cache(compute: Callable[[Tensor], Tensor], budget_mib: float) -> FrozenOutputs:
    return FrozenOutputs(lambda images: {"y": compute(images)}, Budget(budget_mib))


def _images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 10)


def test_kept_outputs_equal_computed_ones_bit_for_bit() -> None:
    network, images = _network(), _images()
    kept, never = _cache(network, 1), _cache(network, 0)
    first = kept(images, KEYS)["y"]
    # Another batch composition, all of it kept.
    order = [2, 0]
    second = kept(images[order], [KEYS[row] for row in order])["y"]
    assert torch.equal(second, first[order])
    again = never(images[order], [KEYS[row] for row in order])["y"]
    assert torch.equal(again, first[order])
    assert (kept.computed, never.computed) == (3, 2)


def test_outputs_pass_through_half_precision_and_are_close() -> None:
    network, images = _network(), _images()
    found = _cache(network, 1)(images, KEYS)["y"]
    wanted = network(images)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found, wanted.detach().half().float())


def test_memory_is_bounded_and_what_came_first_stays() -> None:
    images = torch.rand(3, 3, 512, 512)
    size = 4 * 256 * 256 * 2
    cache = _cache(_network(), budget_mib=1)
    cache(images, KEYS)
    assert cache.bytes == 2 * size <= 2**20
    assert cache.computed == 3
    cache(images, KEYS)
    assert cache.computed == 4  # only the third is computed again


def test_large_features_stay_finite_in_half_precision() -> None:
    cache = _cache(lambda images: images * 1e6, 1)
    assert torch.isfinite(cache(_images(), KEYS)["y"]).all()


def test_keys_that_differ_in_one_part_are_not_mixed_up() -> None:
    cache = _cache(lambda images: images * 2, 1)
    images = _images()
    cache(images, KEYS)
    other = _images(1)
    assert torch.equal(cache(other, [(0, 0, 1)])["y"], (other * 2).half().float())


def test_several_outputs_are_kept_together_and_count_towards_the_budget() -> None:
    cache = FrozenOutputs(lambda images: {"a": images, "b": images.sum((1, 2, 3))}, Budget(1))
    images = _images()
    found = cache(images, KEYS)
    assert set(found) == {"a", "b"}
    assert torch.equal(found["a"], images.half().float())
    assert found["b"].shape == (3,)
    assert cache.bytes == 3 * (3 * 8 * 10 + 1) * 2


def test_two_caches_share_one_budget() -> None:
    images, budget = _images(), Budget(3 * 3 * 8 * 10 * 2 / 2**20)  # three images in half
    first, second = (FrozenOutputs(lambda x: {"y": x}, budget) for _ in range(2))
    first(images[:2], KEYS[:2])
    second(images, KEYS)
    assert (first.bytes, second.bytes) == (2 * 3 * 8 * 10 * 2, 3 * 8 * 10 * 2)
    assert budget.left == 0
