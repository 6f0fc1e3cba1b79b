from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from reference import naive_gan
from spiritseg.errors import ConfigError
from spiritseg.models.critic import Critic, SelfAttention, critic


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads take longer to meet than these tensors to compute
    yield
    torch.set_num_threads(threads)


def drawn(
    batch: int = 2, size: tuple[int, int] = (32, 32), classes: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(batch, classes, *size, generator=generator).softmax(1)
    return maps, torch.rand(batch, 3, *size, generator=generator)


def attentive(network: Critic) -> Critic:
    """Let the attention count, which a fresh critic does not."""
    with torch.no_grad():
        network.attention3.gamma.fill_(0.7)
        network.attention4.gamma.fill_(-0.4)
    return network


def test_five_convolutions_of_stride_2_and_attention_before_the_last_two() -> None:
    network = critic(2)
    seen: list[tuple[str, int, tuple[int, ...]]] = []
    for part in network.modules():
        if isinstance(part, SelfAttention) or (isinstance(part, nn.Conv2d) and part.stride[0] > 1):
            part.register_forward_hook(
                lambda m, _, out: seen.append((type(m).__name__, out.shape[1], out.shape[2:]))
            )
    maps, images = drawn(1, (64, 128), 2)
    assert network(maps, images).shape == (1,)
    assert seen == [
        ("Conv2d", 64, (32, 64)),
        ("Conv2d", 128, (16, 32)),
        ("Conv2d", 256, (8, 16)),
        ("SelfAttention", 256, (8, 16)),
        ("Conv2d", 512, (4, 8)),
        ("SelfAttention", 512, (4, 8)),
        ("Conv2d", 1, (2, 4)),
    ]
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


def test_attention_agrees_with_a_loop_and_starts_as_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 3, 2, generator=generator, dtype=torch.float64)
    attention = SelfAttention(16).double()
    assert attention.query.weight.shape == (2, 16, 1, 1)
    assert torch.equal(attention(x), x)
    nn.init.constant_(attention.gamma, 0.6)
    for part in (attention.query, attention.key):
        nn.init.normal_(part.weight)  # a softmax that is far from flat
    parts = [attention.query, attention.key, attention.value]
    matrices = [part.weight.detach()[:, :, 0, 0] for part in parts]
    biases = [part.bias.detach() for part in parts if part.bias is not None]
    for b in range(2):
        expected = naive_gan.self_attention(x[b], matrices, biases, 0.6)
        torch.testing.assert_close(attention(x)[b], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((32, 32), (32, 32)),
        ((33, 47), (33, 47)),
        ((65, 65), (65, 65)),
        ((64, 128), (64, 128)),
        ((20, 50), (32, 80)),
        ((1, 1), (32, 32)),
        ((180, 240), (90, 120)),
        ((257, 300), (86, 100)),
        ((40, 900), (40, 900)),
    ],
)
def test_maps_of_any_size_come_to_a_sane_one(size: tuple[int, int], seen: tuple[int, int]) -> None:
    network = attentive(critic(3, width=4))
    maps, images = drawn(2, size)
    assert network._input(maps, images).shape[2:] == seen
    maps.requires_grad_()
    scores = network(maps, images[:, :, : size[0] // 2 + 1])  # images on a grid of their own
    assert scores.shape == (2,)
    (gradient,) = torch.autograd.grad(scores.sum(), maps, create_graph=True)
    assert gradient.flatten(1).any(dim=1).all()
    gradient.square().sum().backward()  # type: ignore[no-untyped-call]


def test_large_maps_are_averaged_over_blocks() -> None:
    maps, _ = drawn(1, (256, 256))
    network = critic(3, conditioned=False, width=4)
    blocks = maps.view(1, 3, 128, 2, 128, 2).mean((3, 5))
    torch.testing.assert_close(network(maps), network(blocks), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_each_image_has_its_own_score(spectral_norm: bool) -> None:
    network = attentive(critic(3, width=4, spectral_norm=spectral_norm)).double().eval()
    maps, images = (x.double() for x in drawn(3))
    together = network(maps, images)
    for b in range(3):
        alone = network(maps[b : b + 1], images[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-10, atol=1e-12)
    assert together.unique().numel() == 3


def test_the_image_matters_only_to_a_conditioned_critic() -> None:
    maps, images = drawn()
    network = critic(3, width=4)
    assert not torch.allclose(network(maps, images), network(maps, images.flip(3)), atol=1e-7)
    blind = critic(3, conditioned=False, width=4)
    assert torch.equal(blind(maps, images), blind(maps))


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_the_seed_makes_the_weights_and_global_state_stays(spectral_norm: bool) -> None:
    before = torch.get_rng_state()
    first, same, other = (
        critic(3, width=4, spectral_norm=spectral_norm, seed=s).state_dict() for s in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert not torch.equal(first["score.weight"], other["score.weight"])
    assert not any(
        torch.equal(first[k], other[k]) for k in first if k.endswith(("original", "._u"))
    )


def test_spectral_norm_is_on_all_but_the_last_convolution() -> None:
    network = critic(3, width=4, spectral_norm=True)
    maps, images = drawn()
    for _ in range(60):  # each pass is a step of the power iteration
        network(maps, images)
    for stage in (network.stage1, network.stage2, network.stage3, network.stage4):
        convolution = stage[0]
        assert isinstance(convolution, nn.Conv2d)
        matrix = convolution.weight.detach().flatten(1)
        assert float(torch.linalg.matrix_norm(matrix, 2)) == pytest.approx(1, rel=2e-2)
    plain = nn.Conv2d(32, 1, 4)
    assert network.score.state_dict().keys() == plain.state_dict().keys()


def test_a_restored_critic_goes_on_as_it_would_have() -> None:
    network = critic(3, width=4, spectral_norm=True)
    maps, images = drawn()
    network(maps, images)
    state = copy.deepcopy(network.state_dict())
    restored = critic(3, width=4, spectral_norm=True, seed=9)
    restored.load_state_dict(state)
    runs = []
    for one in (network, restored, copy.deepcopy(network)):
        optimizer = torch.optim.Adam(one.parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            one(maps, images).sum().backward()
            optimizer.step()
        runs.append(one.state_dict())
    assert all(torch.equal(runs[0][k], run[k]) for run in runs[1:] for k in runs[0])


def test_what_is_wrong_is_named() -> None:
    maps, images = drawn()
    network = critic(3, width=4)
    with pytest.raises(ConfigError, match=r"maps \(B, 3, H, W\), got \(2, 2, 32, 32\)"):
        network(maps[:, :2], images)
    with pytest.raises(ConfigError, match=r"2 RGB images .* got none"):
        network(maps)
    with pytest.raises(ConfigError, match=r"2 RGB images .* got \(1, 3, 32, 32\)"):
        network(maps, images[:1])
    with pytest.raises(ConfigError, match="width of 1 or more, got 0"):
        critic(3, width=0)
    with pytest.raises(ConfigError, match="num_classes of 1 or more, got 0"):
        critic(0)
