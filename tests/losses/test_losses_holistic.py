from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reference import naive_gan
from spiritseg.errors import ConfigError
from spiritseg.losses import critic_loss, holistic, maps_of, slope_penalty
from spiritseg.models import critic

Kind = Literal["wgan-gp", "hinge"]
kinds = pytest.mark.parametrize("kind", ["wgan-gp", "hinge"])
module = sys.modules["spiritseg.losses.holistic"]  # the package's name is the function


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads take longer to meet than these tensors to compute
    yield
    torch.set_num_threads(threads)


class Linear(nn.Module):
    """<w, maps> + <v, images>: its slope is |w| everywhere."""

    def __init__(self, maps: torch.Tensor) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        w = torch.randn(maps.shape[1:], generator=generator, dtype=torch.float64)
        self.w = nn.Parameter(0.3 * w)

    def forward(self, maps: torch.Tensor, images: torch.Tensor | None) -> torch.Tensor:
        scores = (maps * self.w.to(maps)).sum((1, 2, 3))
        found: torch.Tensor = scores if images is None else scores + images.mean((1, 2, 3))
        return found


class Smooth(nn.Module):
    """A small critic with a slope that changes from point to point, and with the image."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.hidden = nn.Conv2d(5, 4, 3, padding=1).double()
            self.out = nn.Conv2d(4, 1, 1).double()
            nn.init.normal_(self.out.weight, std=3)

    def forward(self, maps: torch.Tensor, images: torch.Tensor | None) -> torch.Tensor:
        assert images is not None
        x = torch.cat([maps.to(self.out.weight), images.to(self.out.weight)], dim=1)
        scores: torch.Tensor = self.out(self.hidden(x).tanh()).sum((1, 2, 3))
        return scores.to(maps)


def drawn(
    batch: int = 3, size: tuple[int, int] = (3, 4)
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        2 * torch.randn(2, batch, 2, *size, generator=generator, dtype=torch.float64)
    ).softmax(2)
    images = torch.rand(batch, 3, *size, generator=generator, dtype=torch.float64)
    return student, teacher, images


def test_maps_are_probabilities_or_logits_in_float32_at_least() -> None:
    logits = torch.tensor([[0.0, math.log(3)]]).view(1, 2, 1, 1)
    assert maps_of(logits).flatten().tolist() == pytest.approx([0.25, 0.75])
    assert torch.equal(maps_of(logits, "logits"), logits)
    for kind in ("probabilities", "logits"):
        assert maps_of(logits.bfloat16(), kind).dtype == torch.float32
        assert maps_of(logits.double(), kind).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert maps_of(logits).dtype == torch.float32


def test_the_students_term_by_hand() -> None:
    student = torch.tensor([1.0, 2.0, 6.0]).view(3, 1, 1, 1).requires_grad_()
    loss = holistic(lambda maps, _: 4 * maps.sum((1, 2, 3)), student)
    assert loss.item() == pytest.approx(-12)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.flatten().tolist() == pytest.approx([-4 / 3] * 3)


def test_the_critics_losses_by_hand() -> None:
    student = torch.tensor([0.5, -3.0]).view(2, 1, 1, 1)
    teacher = torch.tensor([0.25, 2.0]).view(2, 1, 1, 1)

    def identity(maps: torch.Tensor, images: torch.Tensor | None) -> torch.Tensor:
        return maps.sum((1, 2, 3))  # slope 1: no penalty

    wgan = critic_loss(identity, student, teacher, seed=0)
    assert wgan.item() == pytest.approx(-1.25 - 1.125)
    hinge = critic_loss(identity, student, teacher, kind="hinge", seed=0)
    assert hinge.item() == pytest.approx((0.75 + 0) / 2 + (1.5 + 0) / 2)

    def steep(maps: torch.Tensor, images: torch.Tensor | None) -> torch.Tensor:
        return 3 * identity(maps, images)  # (3 - 1)^2

    plain = critic_loss(steep, student, teacher, gradient_penalty=0, seed=0)
    assert plain.item() == pytest.approx(3 * (-1.25 - 1.125))
    assert critic_loss(steep, student, teacher, gradient_penalty=2.5, seed=0).item() == (
        pytest.approx(plain.item() + 2.5 * 4)
    )


def test_the_penalty_of_a_linear_critic_has_a_closed_form() -> None:
    student, teacher, images = drawn()
    linear = Linear(teacher)
    length = linear.w.detach().square().sum().sqrt()
    found = slope_penalty(linear, student, teacher, images, seed=0)
    assert found.item() == pytest.approx((float(length) - 1) ** 2, rel=1e-12)
    (gradient,) = torch.autograd.grad(found, linear.w)
    expected = 2 * (length - 1) * linear.w.detach() / length
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_a_critic_without_any_slope_has_a_penalty_of_1_and_a_finite_gradient() -> None:
    student, teacher, images = drawn()
    linear = Linear(teacher)
    nn.init.zeros_(linear.w)
    found = slope_penalty(linear, student, teacher, images, seed=0)
    assert found.item() == 1
    assert torch.autograd.grad(found, linear.w)[0].isfinite().all()


@kinds
@pytest.mark.parametrize("seed", [0, 7])
def test_it_agrees_with_finite_differences(kind: Kind, seed: int) -> None:
    student, teacher, images = drawn()
    smooth = Smooth().requires_grad_(False)
    epsilons = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    penalty = naive_gan.slope_penalty(smooth, student, teacher, images, epsilons)
    assert penalty > 0.1
    found = slope_penalty(smooth, student, teacher, images, seed=seed)
    assert found.item() == pytest.approx(penalty, rel=1e-7)
    loss = naive_gan.critic_loss(smooth, student, teacher, images, kind, 10.0, epsilons)
    found = critic_loss(smooth, student, teacher, images, kind, seed=seed)
    assert found.item() == pytest.approx(loss, rel=1e-7)
    expected = -sum(naive_gan.scores(smooth, student, images)) / 3
    assert float(holistic(smooth, student, images)) == pytest.approx(expected, rel=1e-12)


def test_points_are_drawn_from_the_seed_and_leave_the_global_state() -> None:
    student, teacher, images = drawn()
    before = torch.get_rng_state()
    first, same, other = (
        slope_penalty(Smooth(), student, teacher, images, seed=s).item() for s in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first == same != other
    epsilons = module._epsilons(10_000, 0)
    assert float(epsilons.min()) >= 0
    assert float(epsilons.max()) < 1
    assert epsilons.mean().item() == pytest.approx(0.5, abs=0.02)
    assert epsilons.var().item() == pytest.approx(1 / 12, abs=0.005)


@kinds
def test_gradcheck_and_no_gradient_into_student_or_teacher(kind: Kind) -> None:
    student, teacher, images = drawn(batch=2, size=(2, 3))
    smooth = Smooth()
    names = [name for name, _ in smooth.named_parameters()]
    weights = tuple(p.detach().clone().requires_grad_() for p in smooth.parameters())

    def with_weights(*values: torch.Tensor) -> torch.Tensor:
        def called(maps: torch.Tensor, images: torch.Tensor | None) -> torch.Tensor:
            parameters = dict(zip(names, values, strict=True))
            found: torch.Tensor = torch.func.functional_call(smooth, parameters, (maps, images))
            return found

        return critic_loss(called, student, teacher, images, kind, seed=0)

    assert torch.autograd.gradcheck(with_weights, weights)
    student.requires_grad_(), teacher.requires_grad_()
    critic_loss(smooth, student, teacher, images, kind, seed=0).backward()  # type: ignore[no-untyped-call]
    assert student.grad is None
    assert teacher.grad is None
    smooth.requires_grad_(False)
    assert torch.autograd.gradcheck(lambda s: holistic(smooth, s, images), (student,))
    logits = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: holistic(smooth, maps_of(z), images), (logits,))


@kinds
def test_copies_change_nothing(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = drawn()
    s, t, i = (torch.cat([x, x]) for x in batch)
    epsilons = torch.tensor([0.1, 0.5, 0.8] * 2, dtype=torch.float64)
    monkeypatch.setattr(module, "_epsilons", lambda count, seed: epsilons[:count])
    smooth = Smooth()
    once = critic_loss(smooth, *batch, kind, seed=0).item()
    assert critic_loss(smooth, s, t, i, kind, seed=0).item() == pytest.approx(once, rel=1e-12)
    assert holistic(smooth, s, i).item() == pytest.approx(
        holistic(smooth, batch[0], batch[2]).item(), rel=1e-12
    )


def test_a_student_on_another_grid_is_resized_to_the_teachers() -> None:
    student, teacher, images = drawn()
    coarse = student[:, :, :2, :2]
    resized = F.interpolate(coarse, (3, 4), mode="bilinear", align_corners=False)
    smooth = Smooth()
    found = critic_loss(smooth, coarse, teacher, images, seed=0)
    assert found.item() == critic_loss(smooth, resized, teacher, images, seed=0).item()


def test_the_penalty_stays_in_float32_under_autocast() -> None:
    student, teacher, images = (x.float() for x in drawn(2, (32, 32)))
    network = critic(2, width=4)
    expected = slope_penalty(network, student, teacher, images, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        found = slope_penalty(network, student, teacher, images, seed=0)
        half = slope_penalty(network, student.bfloat16(), teacher, images.bfloat16(), seed=0)
        whole = critic_loss(network, student, teacher, images, seed=0)
    assert found.dtype == half.dtype == whole.dtype == torch.float32
    assert found.item() == expected.item()
    assert half.item() == pytest.approx(expected.item(), rel=1e-2)
    whole.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_penalty_can_be_taken_without_a_gradient_around() -> None:
    student, teacher, images = drawn()
    expected = slope_penalty(Smooth(), student, teacher, images, seed=0).item()
    with torch.no_grad():
        assert slope_penalty(Smooth(), student, teacher, images, seed=0).item() == expected


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_a_frozen_critic_gets_no_gradient_from_the_student(spectral_norm: bool) -> None:
    student, _, images = (x.float() for x in drawn(2, (32, 32)))
    network = critic(2, width=4, spectral_norm=spectral_norm).requires_grad_(False)
    holistic(network, student.requires_grad_(), images).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad.any()
    assert all(p.grad is None for p in network.parameters())


@kinds
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_student_and_critic_play_as_they_should(kind: Kind, spectral_norm: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(4, 2, 4, 4, generator=generator)
    teacher = maps_of(6 * F.interpolate(coarse, (32, 32), mode="bilinear"))
    images = torch.cat([teacher, teacher[:, :1]], 1)  # which tell what the teacher sees
    logits = torch.zeros(4, 2, 32, 32, requires_grad=True)
    network = critic(2, width=8, spectral_norm=spectral_norm)
    ours = torch.optim.Adam([logits], 0.1)
    its = torch.optim.Adam(network.parameters(), 2e-3, betas=(0.5, 0.9))

    def critic_step(seed: int) -> None:
        network.requires_grad_(True)
        its.zero_grad()
        loss = critic_loss(network, maps_of(logits), teacher, images, kind, seed=seed)
        loss.backward()  # type: ignore[no-untyped-call]
        its.step()

    def distance() -> float:
        return (maps_of(logits.detach()) - teacher).abs().mean().item()

    for step in range(15):
        critic_step(step)
    with torch.no_grad():
        real, fake = network.eval()(teacher, images), network(maps_of(logits), images)
    assert float(real.min()) > float(fake.max())  # told apart, every one
    before = distance()
    network.train()
    for step in range(15, 65):
        critic_step(step)
        network.requires_grad_(False)
        ours.zero_grad()
        holistic(network, maps_of(logits), images).backward()  # type: ignore[no-untyped-call]
        ours.step()
    assert distance() < 0.6 * before


def test_what_is_wrong_is_named() -> None:
    student, teacher, images = drawn()
    smooth = Smooth()
    with pytest.raises(ConfigError, match=r"'lsgan'.*hinge, wgan-gp"):
        critic_loss(smooth, student, teacher, images, "lsgan", seed=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'labels'.*logits, probabilities"):
        maps_of(student, "labels")  # type: ignore[arg-type]
    for penalty in (-1, math.nan):
        with pytest.raises(ConfigError, match="gradient_penalty: expected"):
            critic_loss(smooth, student, teacher, images, gradient_penalty=penalty, seed=0)
    with pytest.raises(ConfigError, match=r"one score an image, \(3,\), got \(3, 2, 3, 4\)"):
        holistic(lambda maps, _: maps, student)
    with pytest.raises(ConfigError, match="channels"):
        slope_penalty(smooth, student[:, :1], teacher, images, seed=0)
