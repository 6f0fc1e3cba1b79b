"""The losses of the recipe skd-released against the formulas of the authors' released code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reference import naive_gan, naive_losses
from spiritseg.losses import critic_loss, holistic, maps_of, pairwise, pixelwise, used_losses
from spiritseg.losses.loss import Context, Outputs
from spiritseg.models import Critic, critic
from spiritseg.recipes import load_experiment


@pytest.fixture(scope="module")
def losses() -> dict[str, Any]:
    return load_experiment("skd-released", complete=False).stages["distil"].losses


def drawn(
    channels: tuple[int, int] = (3, 3), size: tuple[int, int] = (4, 6), batch: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        2 * torch.randn(batch, c, *size, generator=generator, dtype=torch.float64) for c in channels
    )
    return student.requires_grad_(), teacher


def gradient(loss: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, student)[0]


def test_the_weights_of_the_recipe(losses: dict[str, Any]) -> None:
    assert losses["cross_entropy"].weight == 1
    assert losses["pixelwise"].weight == 10
    assert losses["pairwise"].weight == 0.5
    game = losses["holistic"]
    assert game is not None
    assert (game.weight, game.kind, game.gradient_penalty) == (0.1, "wgan-gp", 10)
    assert (game.maps, game.conditioned, game.spectral_norm) == ("logits", False, True)


def test_pixelwise_is_the_released_cross_entropy_less_the_teachers_entropy(
    losses: dict[str, Any],
) -> None:
    options = losses["pixelwise"]
    student, teacher = drawn()
    found = pixelwise(
        student, teacher, options.temperature, options.direction, reduction=options.reduction
    )
    released = naive_losses.released_pixelwise(student, teacher)
    entropy = naive_losses.released_pixelwise(teacher, teacher)  # summed over the batch, too
    assert found.item() == pytest.approx((released - entropy).item(), rel=1e-10)
    assert entropy.item() > 0.5  # so that the value tells the two apart
    torch.testing.assert_close(
        gradient(found, student), gradient(released, student), rtol=1e-9, atol=1e-13
    )


@pytest.mark.parametrize(("size", "nodes"), [((4, 6), 4), ((5, 6), 6), ((7, 9), 9)])
def test_pairwise_is_the_released_one(
    losses: dict[str, Any], size: tuple[int, int], nodes: int
) -> None:
    options = losses["pairwise"]
    assert options.connection_range == 0
    student, teacher = drawn((3, 5), size)
    found = pairwise(
        student,
        teacher,
        options.node_size,
        pooling=options.pooling,
        detach_norms=options.detach_norms,
    )
    released = naive_losses.released_pairwise(student, teacher)
    assert found.item() == pytest.approx(released.item(), rel=1e-10)
    expected = gradient(released, student)
    torch.testing.assert_close(gradient(found, student), expected, rtol=1e-9, atol=1e-13)
    # a node's gradient is that of its largest positions, one a channel
    assert expected[0].count_nonzero() <= 3 * nodes
    with_norms = pairwise(student, teacher, options.node_size, pooling=options.pooling)
    assert with_norms.item() == pytest.approx(released.item(), rel=1e-10)
    assert not torch.allclose(gradient(with_norms, student), expected, rtol=1e-2)


def released_critic(seed: int = 0) -> Critic:
    """One whose attention counts, in eval mode: its spectral norms stand still."""
    found = critic(3, conditioned=False, width=4, spectral_norm=True, seed=seed).double().eval()
    with torch.no_grad():
        found.attention3.gamma.fill_(0.5)
        found.attention4.gamma.fill_(-0.8)
    return found


def test_the_critic_is_the_released_one() -> None:
    student, _ = drawn(size=(65, 65))
    network = released_critic()
    expected = naive_gan.released_critic(network.state_dict(), student)
    torch.testing.assert_close(network(student), expected, rtol=1e-9, atol=1e-12)


def test_the_game_is_the_released_one(losses: dict[str, Any]) -> None:
    game = losses["holistic"]
    assert game is not None
    student, teacher = drawn(size=(33, 40))
    network = released_critic()
    weights = dict(network.state_dict())
    fake = naive_gan.released_critic(weights, student)
    # the student's part
    maps = maps_of(student, game.maps)
    found = holistic(network, maps)
    assert found.item() == pytest.approx(-fake.mean().item(), rel=1e-9)
    torch.testing.assert_close(
        gradient(found, student), gradient(-fake.mean(), student), rtol=1e-8, atol=1e-14
    )
    # the critic's
    real = naive_gan.released_critic(weights, teacher)
    e = torch.rand(2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    e = e.view(2, 1, 1, 1)
    points = (e * teacher + (1 - e) * student.detach()).requires_grad_()
    slopes = gradient(naive_gan.released_critic(weights, points).sum(), points)
    penalty = (slopes.square().sum((1, 2, 3)).sqrt() - 1).square().mean()
    expected = fake.mean() - real.mean() + 10 * penalty
    loss = critic_loss(
        network,
        maps,
        maps_of(teacher, game.maps),
        kind=game.kind,
        gradient_penalty=game.gradient_penalty,
        seed=4,
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_recipes_terms_give_the_released_sum(losses: dict[str, Any]) -> None:
    student, teacher = drawn()
    features_s, features_t = drawn((3, 5))
    layers = losses["pairwise"].layers or {"features": "features"}
    outputs = Outputs(
        labels=torch.zeros(2, 4, 6, dtype=torch.int64),
        valid=torch.ones(2, 4, 6, dtype=torch.bool),
        images=torch.zeros(2, 3, 4, 6),
        student={"logits": student, **dict.fromkeys(layers, features_s)},
        teacher={"logits": teacher, **dict.fromkeys(layers.values(), features_t)},
    )
    context = Context(classes=(), channels=lambda of, layers: {}, statistics={}, seed=lambda: 0)
    found = torch.stack(
        [
            options.weight * loss.make(options, context)(outputs)
            for name, loss, options in used_losses(losses)
            if name != "holistic"
        ]
    ).sum()
    labelled = -student.log_softmax(1)[:, 0].mean()
    pixel = naive_losses.released_pixelwise(student, teacher)
    constant = naive_losses.released_pixelwise(teacher, teacher)
    pair = naive_losses.released_pairwise(features_s, features_t)
    expected = labelled + 10 * (pixel - constant) + 0.5 * pair
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
