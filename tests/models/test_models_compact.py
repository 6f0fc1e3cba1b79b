"""The student of Table II: its costs, which convolutions become compact, fresh weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spiritseg.config import Policy
from spiritseg.errors import ConfigError
from spiritseg.models import Segmenter, compact, separable, student, student_head, teacher


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _gflops(module: nn.Module) -> float:
    meta = copy.deepcopy(module).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta(torch.empty(1, 3, 512, 1024, device="meta"))
    return float(counter.get_total_flops()) / 1e9


@pytest.fixture(scope="module")
def deeplab() -> Segmenter:
    return teacher("deeplabv3_resnet50")


@pytest.mark.parametrize(
    ("policy", "params", "gflops"), [("spatial", 9.513e6, 169.1), ("all", 0.182e6, 10.5)]
)
def test_table_2_students(deeplab: Segmenter, policy: Policy, params: float, gflops: float) -> None:
    network = student(deeplab, 2, policy)
    assert _params(network) == pytest.approx(params, rel=5e-3)
    assert _gflops(network) == pytest.approx(gflops, rel=5e-3)
    assert all(p.requires_grad for p in network.parameters())


def test_table_2_ct(deeplab: Segmenter) -> None:
    ct = Segmenter(copy.deepcopy(deeplab.extractor), student_head(2048, 2))
    assert _params(ct) == pytest.approx(23.562e6, rel=5e-4)
    assert _gflops(ct) == pytest.approx(405.45, rel=5e-4)


class Residual(nn.Module):
    """No telling names; the projection sits in a sequence, the addition is in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16))
        self.b = nn.Conv2d(8, 4, 1)
        self.c = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.d = nn.Conv2d(4, 16, 1)
        self.e = nn.Conv2d(16, 16, 1)
        self.f = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.d(self.c(self.b(x).relu()).relu())
        y += self.a(x)
        y = self.e(y)  # pointwise, and on no branch at all
        return torch.add(y, self.f(y))


def test_spatial_finds_shortcuts_in_the_graph() -> None:
    block = compact(Residual(), "spatial")
    groups = {n: m.groups for n, m in block.named_modules() if isinstance(m, nn.Conv2d)}
    assert groups == {"a.1": 8, "b": 1, "c": 4, "d": 1, "e": 1, "f": 16}


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:resnet26d"])
def test_spatial_on_timm_residual_networks(name: str) -> None:
    trunk = teacher(name).extractor
    for key, conv in compact(trunk).named_modules():
        if isinstance(conv, nn.Conv2d):
            covered = conv.kernel_size != (1, 1) or "downsample" in key
            gcd = math.gcd(conv.in_channels, conv.out_channels)
            assert conv.groups == (gcd if covered else 1), key


def test_convolutions_that_have_groups_stay() -> None:
    trunk = teacher("efficientnet_lite0").extractor
    result = compact(trunk, "spatial")
    assert _params(result) == _params(trunk)
    assert compact(nn.Conv2d(8, 8, 3, groups=2), "all").groups == 2
    single: Any = compact(nn.Conv2d(8, 12, 3), "all")  # no norm anywhere: one is added
    assert single[0].groups == 4
    assert isinstance(single[1], nn.BatchNorm2d)
    images = torch.rand(2, 3, 64, 64)
    assert result(images).shape == trunk(images).shape  # timm's "same" padding is kept


def test_separable_mixes_channels_and_keeps_the_stem_dense() -> None:
    net = nn.Sequential(nn.Conv2d(3, 48, 3), nn.Conv2d(48, 32, 3, stride=2, dilation=2))
    result: Any = compact(net, "separable")
    depthwise, pointwise, norm = result[1]
    assert result[0][0].groups == 1
    assert (depthwise.groups, depthwise.out_channels) == (48, 48)
    assert (depthwise.stride, depthwise.dilation) == ((2, 2), (2, 2))
    assert pointwise.weight.shape == (32, 48, 1, 1)
    assert norm.num_features == 32


def test_batch_norm_is_added_only_where_there_is_none() -> None:
    def norms(module: nn.Module) -> int:
        return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())

    vgg, resnet = teacher("vgg16").extractor, teacher("timm:resnet18").extractor
    assert norms(compact(vgg, "spatial")) == 10  # convolutions to conv4_3
    assert norms(compact(resnet)) == norms(resnet)
    whole = compact(Segmenter(vgg, student_head(512, 2, 16)), "all")
    assert norms(whole.extractor) == 10
    assert whole.head is not None
    assert norms(whole.head) == 7


def test_the_source_stays_and_the_weights_are_fresh() -> None:
    source = teacher("timm:resnet18").extractor
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.fill_(7.0)
    before = copy.deepcopy(source.state_dict())
    draws = torch.random.get_rng_state()
    one, again, other = compact(source), compact(source), compact(source, seed=1)
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())
    assert not any(p.requires_grad for p in source.parameters())
    for (name, a), b, c in zip(
        one.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert not (a == 7.0).any(), name
        assert a.ndim < 4 or not torch.equal(a, c), name


def test_fresh_weights_keep_the_scale_of_activations() -> None:
    deep = nn.Sequential(*(m for _ in range(8) for m in (nn.Conv2d(64, 64, 1), nn.ReLU())))
    with torch.no_grad():
        for parameter in deep.parameters():
            parameter.zero_()
    result = compact(nn.Sequential(deep, nn.BatchNorm2d(64)), "spatial")[0]
    out = result(torch.randn(4, 64, 16, 16))
    assert 0.2 < out.pow(2).mean().sqrt() < 5


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"unknown policy 'space'.*spatial"):
        compact(nn.Conv2d(3, 4, 3), "space")  # type: ignore[arg-type]
    head = student_head(8, 2, 8, "separable")
    with pytest.raises(ConfigError, match="which need no dry run"):
        compact(head)
    trunk = Segmenter(separable(8, widths=(32, 48, 64, 96)), None)
    assert _params(compact(trunk)) == _params(trunk)
