"""PSPNet's head against plain functional calls and loops; the trunks that it stands on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritseg.config import Extractor, Head, Network
from spiritseg.evaluation.cost import cost
from spiritseg.models import PyramidHead, build_network, pyramid_head


def _pool(x: Tensor, bins: int) -> Tensor:
    """Average by loops over bins: floor(i h / n) to ceil((i + 1) h / n)."""
    h, w = x.shape[-2:]
    result = x.new_zeros(*x.shape[:2], bins, bins)
    for i in range(bins):
        for j in range(bins):
            rows = slice(i * h // bins, math.ceil((i + 1) * h / bins))
            columns = slice(j * w // bins, math.ceil((j + 1) * w / bins))
            result[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return result


def _reference(state: dict[str, Tensor], x: Tensor, size: tuple[int, int]) -> Tensor:
    """PSPNet's head in eval mode, from its weights."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{key}"].view(1, -1, 1, 1)
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    maps = [x]
    for index, bins in enumerate((1, 2, 3, 6)):
        y = F.conv2d(_pool(x, bins), state[f"branches.{index}.1.weight"])
        y = norm(y, f"branches.{index}.2").clamp(min=0)
        maps.append(F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=False))
    y = F.conv2d(torch.cat(maps, 1), state["bottleneck.0.weight"], padding=1)
    y = norm(y, "bottleneck.1").clamp(min=0)
    logits = F.conv2d(y, state["classifier.weight"], state["classifier.bias"])
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _lively(head: PyramidHead) -> PyramidHead:
    """Give the norms statistics and weights of their own."""
    generator = torch.Generator().manual_seed(3)
    for norm in head.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return head


@pytest.mark.parametrize("grid", [(12, 18), (7, 13), (1, 1), (5, 4)])
def test_the_head_is_psp_nets(grid: tuple[int, int]) -> None:
    head = _lively(pyramid_head(8, 3, 5)).double().eval()
    features = torch.rand(2, 8, *grid, dtype=torch.float64) - 0.5
    size = (grid[0] * 8 - 3, grid[1] * 8 - 5)
    expected = _reference(head.state_dict(), features, size)
    torch.testing.assert_close(head(features, size), expected, rtol=1e-9, atol=1e-9)


def test_one_image_trains_and_leaves_the_single_bins_statistics_alone() -> None:
    head = _lively(pyramid_head(4, 2, 3)).train()
    before = {k: v.clone() for k, v in head.state_dict().items()}
    head.dropout.eval()
    images = torch.rand(1, 4, 6, 6, requires_grad=True)
    torch.autograd.backward(head(images, (12, 12)).sum())
    after = head.state_dict()
    name = "branches.{}.2.running_mean"
    assert torch.equal(after[name.format(0)], before[name.format(0)])
    assert not torch.equal(after[name.format(1)], before[name.format(1)])
    branch = head.branches[0]
    assert isinstance(branch, nn.Sequential)
    trained = branch(images)
    assert torch.equal(trained, branch.eval()(images))
    assert branch[1].weight.grad is not None
    branch.train()(torch.rand(2, 4, 6, 6))  # two images have a variance
    assert not torch.equal(head.state_dict()[name.format(0)], before[name.format(0)])


def test_it_is_exported_for_every_size() -> None:
    head = _lively(pyramid_head(4, 2, 3)).eval()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(x, (x.shape[-2] * 2, x.shape[-1] * 2))
            return logits

    dims = {2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)}
    exported = torch.export.export(Net(), (torch.rand(1, 4, 7, 9),), dynamic_shapes=(dims,))
    for grid in ((7, 9), (12, 5), (6, 20)):
        x = torch.rand(1, 4, *grid)
        expected = head(x, (grid[0] * 2, grid[1] * 2))
        torch.testing.assert_close(exported.module()(x), expected, rtol=1e-5, atol=1e-6)


def test_psp_net_on_a_dilated_resnet() -> None:
    given = Extractor("timm:resnet18", strides=(8,), args={"output_stride": 8})
    network = build_network(Network(given, Head("pyramid", channels=128)), 19, {}, 0).eval()
    assert (network.extractor.channels, network.extractor.stride) == (512, 8)
    assert network(torch.rand(1, 3, 24, 41)).shape == (1, 19, 24, 41)
    names = [n for n, _ in network.extractor.module.named_children()]
    assert names == ["conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    convs = [m for m in network.extractor.modules() if isinstance(m, nn.Conv2d)]
    assert {c.dilation for c in convs} == {(1, 1), (2, 2), (4, 4)}
    # 11.18 M of the trunk without its classifier, 1.45 M of the head.
    found = cost(network, (512, 1024))
    assert found.params == 11_176_512 + 1_445_523
    assert found.gflops == pytest.approx(211.9, abs=0.1)


def test_psp_net_has_the_published_size_with_the_released_stem() -> None:
    # The released networks have a stem of three 3x3 convolutions, and a second classifier on
    # layer3 that serves in training only: with it, SKD's and IFVD's 70.43 M and 13.07 M.
    sizes = {}
    for name, width, third in (("resnet18", 128, 256), ("resnet101", 512, 1024)):
        with torch.device("meta"):
            trunk: Any = timm.create_model(
                name, output_stride=8, stem_type="deep", stem_width=64, num_classes=0
            )
            head = PyramidHead(trunk.num_features, 19, width)
        second = third * width * 9 + width + 2 * width + width * 19 + 19
        parameters = [*trunk.parameters(), *head.parameters()]
        sizes[name] = sum(p.numel() for p in parameters) + second
    assert sizes["resnet18"] / 1e6 == pytest.approx(13.07, abs=0.005)
    assert sizes["resnet101"] / 1e6 == pytest.approx(70.43, abs=0.01)
