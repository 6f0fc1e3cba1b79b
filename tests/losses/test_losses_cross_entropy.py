from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reference import naive_losses
from spiritseg.errors import ConfigError, DataError
from spiritseg.losses import cross_entropy
from spiritseg.losses.cross_entropy import near_boundary


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


@pytest.mark.parametrize("boundary", [0.0, 3.0])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("class_weights", [None, (1.0, 0.5, 4.0), (0.0, 2.0, 1.0)])
def test_weights_agree_with_a_loop(
    class_weights: tuple[float, ...] | None, boundary: float, width: int
) -> None:
    logits, labels = drawn(3)
    labels[1, :, :3] = 1  # a class with an inside
    options: Any = {
        "class_weights": class_weights,
        "boundary": boundary,
        "boundary_width": width,
    }
    expected = naive_losses.cross_entropy(logits, labels, **options)
    assert float(cross_entropy(logits, labels, **options)) == pytest.approx(expected, rel=1e-12)


@given(
    labels=arrays(np.int64, (2, 5, 6), elements=st.sampled_from([0, 1, 2, 255])),
    width=st.integers(1, 7),
)
def test_the_boundary_is_what_a_loop_over_neighbours_finds(labels: Any, width: int) -> None:
    found = near_boundary(torch.from_numpy(labels), width)
    expected = [
        [[naive_losses.near(image, y, x, width) for x in range(6)] for y in range(5)]
        for image in torch.from_numpy(labels)
    ]
    assert found.tolist() == expected


def test_the_scale_of_class_weights_does_not_count_and_equal_ones_change_nothing() -> None:
    logits, labels = drawn()
    plain = float(cross_entropy(logits, labels))
    assert float(cross_entropy(logits, labels, class_weights=[7, 7, 7])) == pytest.approx(plain)
    one = float(cross_entropy(logits, labels, class_weights=[1, 2, 3]))
    assert float(cross_entropy(logits, labels, class_weights=[3, 6, 9])) == pytest.approx(one)


def test_gradcheck_with_weights() -> None:
    logits, labels = drawn()
    logits.requires_grad_()
    weights = (0.3, 1.0, 2.0)
    assert torch.autograd.gradcheck(
        lambda z: cross_entropy(z, labels, class_weights=weights, boundary=2.0), (logits,)
    )


@pytest.mark.parametrize("class_weights", [(0.0, 1.0, 1.0), None])
def test_no_weight_at_all_gives_zero_with_zero_gradient(class_weights: Any) -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    labels = torch.full((1, 2, 2), 0 if class_weights else 255)
    loss = cross_entropy(logits, labels, class_weights=class_weights, boundary=1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"class_weights": (1.0, 2.0)}, r"expected 3 class weights .* got \[1\.0, 2\.0\]"),
        ({"class_weights": (1.0, 2.0, -1.0)}, "0 or more"),
        ({"class_weights": (1.0, 2.0, math.nan)}, "0 or more"),
        ({"boundary": -1.0}, "boundary: expected 0 or more, got -1"),
        ({"boundary": 1.0, "boundary_width": 0}, "boundary_width: expected 1 or more, got 0"),
    ],
)
def test_weights_that_make_no_sense_are_named(options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cross_entropy(*drawn(), **options)
