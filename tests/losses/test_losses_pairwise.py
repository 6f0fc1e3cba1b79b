from __future__ import annotations

import sys
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from reference import naive_losses
from spiritseg.errors import ConfigError
from spiritseg.losses import pairwise

Form = Literal["auto", "direct", "linear"]
forms = pytest.mark.parametrize("form", ["auto", "direct", "linear"])


def drawn(
    seed: int = 0,
    batch: int = 2,
    channels: tuple[int, int] = (3, 5),
    grid: tuple[int, int] = (3, 4),
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(batch, c, *grid, generator=generator, dtype=torch.float64) for c in channels
    )
    return student, teacher


def value_and_gradient(
    student: torch.Tensor, teacher: torch.Tensor, form: Form, node_size: int = 1
) -> tuple[float, torch.Tensor]:
    student = student.clone().requires_grad_()
    loss = pairwise(student, teacher, node_size, form=form)
    return loss.item(), torch.autograd.grad(loss, student)[0]


@forms
def test_a_value_by_hand(form: Form) -> None:
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]]).view(1, 2, 1, 2)  # parallel: 1
    teacher = torch.tensor([[3.0, 0.0], [0.0, 7.0]]).view(1, 2, 1, 2)  # orthogonal: 0
    # of the 4 pairs, the two of different nodes differ by 1
    assert float(pairwise(student, teacher, form=form)) == pytest.approx(0.5, rel=1e-6)


@forms
@pytest.mark.parametrize("node_size", [1, 2, 3, 9])
def test_it_agrees_with_a_loop(form: Form, node_size: int) -> None:
    student, teacher = drawn()
    expected = naive_losses.pairwise(student.requires_grad_(), teacher, node_size)
    (gradient,) = torch.autograd.grad(expected, student)
    found = pairwise(student, teacher, node_size, form=form)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-14)
    (found_gradient,) = torch.autograd.grad(found, student)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("alpha", [1, 2, 5, 11, 12, 99])
def test_a_connection_range_agrees_with_a_loop(alpha: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["spiritseg.losses.pairwise"]  # the package's name is the function
    monkeypatch.setattr(module, "CHUNK_ENTRIES", 30)  # two rows a chunk
    module._nearest_on_grid.cache_clear()
    student, teacher = drawn()
    expected = naive_losses.pairwise(student, teacher, 1, alpha)
    found = pairwise(student, teacher, connection_range=alpha)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-14)


def test_a_first_call_in_inference_mode_spoils_no_later_gradient() -> None:
    student, teacher = drawn(grid=(4, 3))  # a grid of its own, not yet kept
    with torch.inference_mode():
        pairwise(student, teacher, connection_range=7)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(pairwise(student, teacher, connection_range=7), student)
    assert gradient.any()


def test_one_nearest_node_is_the_node_itself() -> None:
    assert float(pairwise(*drawn(), connection_range=1)) == pytest.approx(0, abs=1e-14)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    node_size=st.integers(1, 3),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_both_forms_agree_on_any_shape(
    seed: int,
    batch: int,
    channels: tuple[int, int],
    grid: tuple[int, int],
    node_size: int,
    scale: float,
) -> None:
    student, teacher = drawn(seed, batch, channels, grid)
    student = student * scale
    direct, by_direct = value_and_gradient(student, teacher, "direct", node_size)
    linear, by_linear = value_and_gradient(student, teacher, "linear", node_size)
    assert linear >= 0
    assert linear == pytest.approx(direct, rel=1e-5, abs=1e-13)
    torch.testing.assert_close(by_linear * scale, by_direct * scale, rtol=1e-5, atol=1e-10)
    # in float32: within 1e-5 of the teacher's own term, which is at most 1
    single, _ = value_and_gradient(student.float(), teacher.float(), "linear", node_size)
    assert single >= 0
    assert single == pytest.approx(direct, abs=1e-5)


def test_the_symmetric_products_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["spiritseg.losses.pairwise"], "BLOCK_CHANNELS", 3)
    student, teacher = drawn(channels=(4, 8))  # two and three blocks, the last ones smaller
    direct, by_direct = value_and_gradient(student, teacher, "direct")
    linear, by_linear = value_and_gradient(student, teacher, "linear")
    assert linear == pytest.approx(direct, rel=1e-10)
    torch.testing.assert_close(by_linear, by_direct, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("form", "alpha"), [("direct", None), ("linear", None), ("auto", None), ("direct", 4)]
)
def test_gradcheck_and_no_gradient_into_the_teacher(form: Form, alpha: int | None) -> None:
    student, teacher = drawn(batch=1)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: pairwise(s, teacher, 1, alpha, form), (student,), atol=1e-6
    )
    teacher.requires_grad_()
    pairwise(student, teacher, 1, alpha, form).backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None


@forms
@pytest.mark.parametrize("node_size", [1, 2])
def test_equal_features_give_zero_in_any_layout(form: Form, node_size: int) -> None:
    teacher = drawn()[1].float().relu()
    assert float(pairwise(teacher.clone(), teacher, node_size, form=form)) == 0
    other = teacher.contiguous(memory_format=torch.channels_last)
    assert 0 <= float(pairwise(other, teacher, node_size, form=form)) < 1e-7
    # scale is no part of a cosine
    assert 0 <= float(pairwise(3 * other, teacher, node_size, form=form)) < 1e-7


@pytest.mark.parametrize("alpha", [None, 3])
def test_copies_change_nothing(alpha: int | None) -> None:
    student, teacher = drawn()
    once = pairwise(student, teacher, connection_range=alpha)
    twice = pairwise(torch.cat([student] * 2), torch.cat([teacher] * 2), connection_range=alpha)
    assert twice.item() == pytest.approx(once.item(), rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"form": "linear"}, {"connection_range": 3}])
@pytest.mark.parametrize("node_size", [1, 2])
def test_padding_changes_neither_value_nor_gradient(
    node_size: int, options: dict[str, object]
) -> None:
    student, teacher = drawn(grid=(5, 6))
    student2, teacher2 = drawn(1, grid=(5, 6))
    valid = torch.ones(2, 5, 6, dtype=torch.bool)
    valid[0, 3:], valid[1, :, 1] = False, False
    keep = valid[:, None]
    student2, teacher2 = student2.where(~keep, student), teacher2.where(~keep, teacher)
    found = []
    for s, t in ((student, teacher), (student2, teacher2)):
        s = s.clone().requires_grad_()
        loss = pairwise(s, t, node_size, valid=valid, **options)  # type: ignore[arg-type]
        found.append((loss.item(), torch.autograd.grad(loss, s)[0]))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert not found[0][1].masked_select(~keep).any()
    alpha = options.get("connection_range")
    assert alpha is None or isinstance(alpha, int)
    expected = naive_losses.pairwise(student, teacher, node_size, alpha, valid)
    assert found[0][0] == pytest.approx(expected.item(), rel=1e-9)


def test_an_image_of_padding_only_is_left_out() -> None:
    student, teacher = drawn()
    valid = torch.ones(2, 3, 4, dtype=torch.bool)
    valid[1] = False
    alone = pairwise(student[:1], teacher[:1])
    assert float(pairwise(student, teacher, valid=valid)) == pytest.approx(alone.item())
    student.requires_grad_()
    nothing = pairwise(student, teacher, valid=torch.zeros_like(valid))
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, student)[0].any()


@forms
def test_dead_nodes_have_no_similarity_and_no_gradient(form: Form) -> None:
    student, teacher = drawn()
    student[:, :, 0, 0] = 0
    teacher[:, :, 1, 1] = 0
    value, gradient = value_and_gradient(student, teacher, form)
    assert 0 < value < 2
    assert gradient.abs().max() < 10
    assert not gradient[:, :, 0, 0].any()


def test_a_student_on_another_grid_is_resized_to_the_teachers() -> None:
    student, teacher = drawn()
    coarse = student[:, :, :2, :2]
    resized = F.interpolate(coarse, (3, 4), mode="bilinear", align_corners=False)
    found = pairwise(coarse, teacher, 2)
    assert found.item() == pytest.approx(float(pairwise(resized, teacher, 2)))


@pytest.mark.parametrize("form", ["direct", "linear"])
def test_autocast_computes_in_float32(form: Form) -> None:
    student, teacher = drawn()
    expected = float(pairwise(student, teacher, form=form))
    with torch.autocast("cpu", torch.bfloat16):
        loss = pairwise(student.float(), teacher.float(), form=form)
        half = pairwise(student.bfloat16(), teacher.float(), form=form)
    assert loss.dtype == half.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)  # bfloat16 would give 1e-2


def test_the_released_variant() -> None:
    student, teacher = drawn(grid=(4, 6))

    def released(f_s: torch.Tensor, f_t: torch.Tensor) -> torch.Tensor:
        def similarity(f: torch.Tensor) -> torch.Tensor:
            f = F.max_pool2d(f, (2, 3), ceil_mode=True)
            f = f / f.square().sum(1, keepdim=True).sqrt().detach()
            return torch.einsum("icm,icn->imn", f.flatten(2), f.flatten(2))

        return (similarity(f_t) - similarity(f_s)).square().sum() / 4**2 / len(f_s)

    student.requires_grad_()
    expected = released(student, teacher)
    found = pairwise(student, teacher, 0.5, pooling="max", detach_norms=True)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(
        torch.autograd.grad(found, student)[0], torch.autograd.grad(expected, student)[0]
    )


def test_auto_takes_the_cheaper_form() -> None:
    from spiritseg.losses.pairwise import cheaper_form

    assert cheaper_form(8192, 128, 512) == "linear"
    assert cheaper_form(16, 512, 2048) == "direct"
    assert cheaper_form(20_000, 20_000, 20_000) == "linear"  # 1.6 GB otherwise


def test_what_is_wrong_is_named() -> None:
    student, teacher = drawn()
    with pytest.raises(ConfigError, match=r"'quick'.*auto, direct, linear"):
        pairwise(student, teacher, form="quick")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'sum'.*average, max"):
        pairwise(student, teacher, pooling="sum")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="full range of 12 nodes"):
        pairwise(student, teacher, connection_range=3, form="linear")
    with pytest.raises(ConfigError, match="connection_range: expected 0 or more, got -1"):
        pairwise(student, teacher, connection_range=-1)
    for size in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="node_size"):
            pairwise(student, teacher, node_size=size)
    with pytest.raises(ConfigError, match="numbers of images"):
        pairwise(student[:1], teacher)
