from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spiritseg.errors import ConfigError
from spiritseg.evaluation import cost, latencies_ms


@pytest.mark.parametrize(
    ("module", "size", "params", "multiply_adds"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (6, 10), 224, 6 * 10 * 8 * 27),
        (nn.Conv2d(3, 9, 3, stride=2, groups=3, bias=False), (7, 9), 81, 3 * 4 * 9 * 9),
        (nn.Conv2d(3, 3, 3, padding=1, groups=3), (5, 5), 30, 25 * 3 * 9),
        (nn.ConvTranspose2d(3, 6, 2, stride=2, groups=3), (4, 4), 30, 16 * 3 * 2 * 4),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), (4, 4), 245, 48 * 5),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), (4, 4), 6, 0),
    ],
)
def test_counts_agree_with_formulas(
    module: nn.Module, size: tuple[int, int], params: int, multiply_adds: int
) -> None:
    found = cost(module, size)
    assert found.params == params
    assert found.gflops * 1e9 == pytest.approx(2 * multiply_adds)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = nn.functional.pixel_unshuffle(images, 2).flatten(2).mT
        return self.attention(tokens, tokens, tokens)[0]  # type: ignore[no-any-return]


def test_attention_is_counted() -> None:
    n, d = 16, 12  # projections in and out, and the two products with the N x N weights
    expected = 2 * (n * d * 3 * d + n * d * d + 2 * n * n * d)
    assert cost(Attention(), (8, 8)).gflops * 1e9 == pytest.approx(expected)


class Choosy(nn.Module):
    """Cannot run without values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.conv(images)
        return out * 2 if out.sum().item() > 0 else out


def test_a_network_that_needs_values_is_counted_by_a_real_pass() -> None:
    assert cost(Choosy(), (5, 6)).gflops * 1e9 == pytest.approx(2 * 30 * 12)


class Keeping(nn.Module):
    """Keeps a grid from its first pass."""

    grid: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = torch.ones(images.shape[-2:], device=images.device)
        return images * self.grid


def test_a_network_that_keeps_what_it_saw_still_runs() -> None:
    module = Keeping()
    cost(module, (4, 4))
    assert module(torch.ones(1, 3, 4, 4)).sum() == 48


def test_shared_parameters_count_once() -> None:
    conv = nn.Conv2d(3, 3, 1, bias=False)
    found = cost(nn.Sequential(conv, conv), (4, 4))
    assert found.params == 9
    assert found.gflops * 1e9 == pytest.approx(2 * 2 * 16 * 9)


def test_the_module_stays_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU())
    module.train()
    module[1].eval()  # frozen
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    found = cost(module, (8, 8))
    assert found.latency_ms > 0
    assert [part.training for part in module] == [True, False, True, True]
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.device.type == "cpu" and p.requires_grad for p in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_latency_is_measured_once_and_only_when_asked() -> None:
    passes = []

    class Counted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if images.device.type != "meta":
                passes.append(
                    (tuple(images.shape), self.training, torch.is_inference_mode_enabled())
                )
            return images

    found = cost(Counted(), (4, 6))
    assert passes == []
    first = found.latency_ms
    count = len(passes)
    assert set(passes) == {((1, 3, 4, 6), False, True)}
    assert count > 3
    assert found.latency_ms == first
    assert len(passes) == count


def test_several_networks_are_timed_in_turn() -> None:
    order: list[str] = []

    class Named(nn.Module):
        def __init__(self, name: str, channels: int) -> None:
            super().__init__()
            self.name = name
            self.conv = nn.Conv2d(3, channels, 3)

        def forward(self, images: Tensor) -> Tensor:
            order.append(self.name)
            out: Tensor = self.conv(images)
            return out

    times = latencies_ms({"big": Named("big", 256), "small": Named("small", 2)}, (64, 64), rounds=6)
    assert {name: len(each) for name, each in times.items()} == {"big": 6, "small": 6}
    measured = order[-12:]
    assert all(set(measured[i : i + 2]) == {"big", "small"} for i in range(0, 12, 2))
    assert measured[:4] == ["big", "small", "small", "big"]  # the order rotates
    assert sorted(times["big"])[3] > sorted(times["small"])[3]


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ConfigError, match=r"size \(H, W\)"):
        cost(nn.Identity(), (0, 4))
    with pytest.raises(ConfigError, match="rounds"):
        latencies_ms({}, (4, 4), rounds=0)
