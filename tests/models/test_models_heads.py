"""The student head of Table V, and the small extractor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from spiritseg.config import Convolution
from spiritseg.errors import ConfigError
from spiritseg.models import Extractor, project, pyramid_head, separable, student_head
from spiritseg.models.separable import SeparableTrunk


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_table_5() -> None:
    head = student_head(2048, 2)
    assert _params(head) == 53_762  # 0.0538 M
    convs = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert [c.kernel_size[0] for c in convs] == [3] * 7 + [1]
    assert [c.groups for c in convs] == [512] * 7 + [2]


def test_resolutions_of_table_5() -> None:
    head = student_head(8, 2, 8).eval()
    seen: list[tuple[int, ...]] = []
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, out: seen.append(tuple(out.shape[-2:])))
    assert head(torch.rand(1, 8, 5, 7), (37, 51)).shape == (1, 2, 37, 51)
    assert seen == [(10, 14)] * 3 + [(20, 28)] * 5


@pytest.mark.parametrize("convolution", ["grouped", "separable", "dense"])
def test_every_convolution_kind(convolution: Convolution) -> None:
    head = student_head(12, 3, 16, convolution)
    logits = head(torch.rand(2, 12, 4, 5), (30, 40))
    assert logits.shape == (2, 3, 30, 40)
    logits.mean().backward()
    assert all(p.grad is not None for p in head.parameters())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in head.modules()) == 7


def test_pointwise_and_upsampling_commute() -> None:
    head = student_head(12, 2, 8, "separable").double()
    x = torch.rand(1, 12, 5, 6, dtype=torch.float64)
    reduce = head.at_quarter.reduce
    assert isinstance(reduce, nn.Conv2d)
    early = F.interpolate(reduce(x), scale_factor=2.0, mode="bilinear")
    late = reduce(F.interpolate(x, scale_factor=2.0, mode="bilinear"))
    torch.testing.assert_close(early, late, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [student_head, pyramid_head])
def test_head_is_a_function_of_its_seed(make: Callable[..., nn.Module]) -> None:
    draws = torch.random.get_rng_state()
    one, again, other = (make(8, 2, 8, seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: student_head(8, 2, 8, "depthwise"), "unknown convolution 'depthwise'.*separable"),  # type: ignore[arg-type]
        (lambda: student_head(8, 0), "num_classes of 1 or more, got 0"),
        (lambda: pyramid_head(3, 2, 4), "in_channels of 4"),
        (lambda: pyramid_head(4, 0, 4), "num_classes"),
        (lambda: pyramid_head(4, 2, 20_000), "channels up to 16384"),
        (lambda: separable(8, 32), "separable.stride: unknown value '32'. Choices: 16, 4, 8"),
        (lambda: separable(8, widths=(1, 2)), "separable.widths: expected"),  # type: ignore[arg-type]
        (lambda: separable(8, depths=(1, 1, 101)), "depths: expected 100 or less, got 101"),
    ],
)
def test_what_is_out_of_range_is_named(call: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_separable_gives_the_stride_and_ends_linearly(stride: int) -> None:
    extractor = separable(20, stride).eval()
    features = extractor(torch.rand(2, 3, 64, 96))
    assert features.shape == (2, 20, 64 // stride, 96 // stride)
    assert features.min() < 0 < features.max()
    assert extractor(torch.rand(1, 3, 61, 75)).shape[1] == 20
    extractor.train()(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in extractor.parameters())


def test_separable_projects_before_resizing() -> None:
    trunk = separable(6, 8).module
    assert isinstance(trunk, SeparableTrunk)
    maps: list[torch.Tensor] = []
    for stage in trunk.stages:
        stage.register_forward_hook(lambda m, i, out: maps.append(out))
    trunk.eval().double()
    result = trunk(torch.rand(1, 3, 64, 64, dtype=torch.float64))
    fine, coarse = maps[1:]
    up = F.interpolate(coarse, fine.shape[-2:], mode="bilinear")
    expected = trunk.projections[1](fine) + trunk.projections[2](up)
    torch.testing.assert_close(result, expected)


def test_separable_is_small() -> None:
    extractor = separable(152)
    assert 0.3e6 < _params(extractor) < 0.9e6
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        extractor.to("meta").eval()(torch.empty(1, 3, 192, 256, device="meta"))
    assert counter.get_total_flops() < 0.5e9


def test_project_is_a_1x1_convolution_on_top() -> None:
    source = Extractor(nn.Conv2d(3, 5, 3, 2, 1), 5, 2, (0.1, 0.1, 0.1), (2.0, 2.0, 2.0))
    result = project(source, 7)
    assert (result.channels, result.stride) == (7, 2)
    assert (result.mean, result.std) == (source.mean, source.std)
    images = torch.rand(2, 3, 8, 8)
    assert isinstance(result.module, nn.Sequential)
    torch.testing.assert_close(result(images), result.module[-1](source(images)))
    with pytest.raises(ConfigError, match="1 or more"):
        project(source, 0)
