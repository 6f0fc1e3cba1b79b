from __future__ import annotations

import math

import pytest
import torch

from reference import naive_losses
from spiritseg.errors import DataError
from spiritseg.losses import cross_entropy


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    labels[0, :2] = 255
    return logits, labels


def test_a_value_by_hand() -> None:
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1)
    assert float(cross_entropy(logits, torch.tensor([[[1]]]))) == pytest.approx(math.log(4 / 3))
    assert float(cross_entropy(logits, torch.tensor([[[0]]]))) == pytest.approx(math.log(4))


@pytest.mark.parametrize("size", [(4, 5), (8, 10), (7, 3), (2, 9)])
def test_it_agrees_with_a_loop_on_labels_of_any_size(size: tuple[int, int]) -> None:
    logits, _ = drawn()
    labels = torch.randint(0, 3, (2, *size), generator=torch.Generator().manual_seed(1))
    labels[:, 0, 0] = 255
    expected = naive_losses.cross_entropy(logits, labels)
    assert float(cross_entropy(logits, labels)) == pytest.approx(expected, rel=1e-12)


def test_gradcheck() -> None:
    logits, labels = drawn()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, labels), (logits,))


def test_ignored_pixels_change_neither_value_nor_gradient() -> None:
    logits, labels = drawn()
    other = logits.clone()
    other[0, :, :2] += 50 * torch.randn(3, 2, 5, dtype=torch.float64)
    found = []
    for z in (logits.requires_grad_(), other.requires_grad_()):
        loss = cross_entropy(z, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        found.append((loss.item(), z.grad))
    assert found[0][0] == found[1][0]
    assert found[0][1] is not None
    assert found[1][1] is not None
    assert torch.equal(found[0][1], found[1][1])
    assert not found[1][1][0, :, :2].any()
    assert found[1][1][1].any()


def test_all_ignored_gives_zero_with_zero_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 2, 2), 255))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_certain_and_right_prediction_costs_nothing() -> None:
    _, labels = drawn()
    right = torch.nn.functional.one_hot(labels.clamp(max=2), 3).movedim(-1, 1) * 100.0
    assert float(cross_entropy(right, labels)) == pytest.approx(0, abs=1e-12)


def test_doubling_the_batch_with_copies_changes_nothing() -> None:
    logits, labels = drawn()
    doubled = cross_entropy(torch.cat([logits] * 2), torch.cat([labels] * 2))
    assert doubled.item() == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-12)


def test_uint8_labels_and_half_precision_give_float32() -> None:
    logits, labels = drawn()
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(logits.float(), labels.to(torch.uint8))
        half = cross_entropy(logits.bfloat16(), labels)
    assert loss.dtype == half.dtype == torch.float32
    assert loss.item() == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-6)


@pytest.mark.parametrize("foreign", [3, -1, 254])
def test_a_foreign_label_is_named(foreign: int) -> None:
    logits, labels = drawn()
    labels[1, 2, 3] = foreign
    with pytest.raises(DataError, match=rf"0\.\.2 .*\[{foreign}\]"):
        cross_entropy(logits, labels)


def test_shapes_that_do_not_fit_are_named() -> None:
    logits, labels = drawn()
    with pytest.raises(DataError, match=r"\(2, 3, 4, 5\) and \(1, 4, 5\)"):
        cross_entropy(logits, labels[:1])
