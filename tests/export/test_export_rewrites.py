"""Rewritten parts compute the same, and onnxruntime keeps its layout behind them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from spiritseg import Segmenter, compact
from spiritseg.export.engines import ExportInfo
from spiritseg.export.module import DeployedNetwork
from spiritseg.export.onnx import to_onnx
from spiritseg.export.rewrites import make_dense, return_to_blocks, slice_head
from spiritseg.models import student_head

SHORTCUTS = [
    nn.Conv2d(32, 128, 1, groups=32),
    nn.Conv2d(64, 32, 1, groups=32, bias=False),
    nn.Conv2d(32, 64, 1, stride=2, groups=16),
    nn.Conv2d(32, 64, 1, stride=(1, 2), padding=1, groups=32),
]
OTHERS = [
    nn.Conv2d(32, 32, 1, groups=32),  # depthwise
    nn.Conv2d(32, 32, 1),
    nn.Conv2d(64, 64, 1, groups=4),  # 16 channels a group: there is a kernel
    nn.Conv2d(32, 128, 3, groups=32),
    nn.Conv2d(8, 24, 1, groups=8),  # 24 are not whole blocks
]


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    trunk = ResNet(Bottleneck, [2, 2, 1, 1])
    rows = compact(nn.Sequential(trunk.layer1, trunk.layer2), "spatial")
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), rows).eval()


@pytest.mark.parametrize("conv", SHORTCUTS)
def test_both_forms_compute_the_same(conv: nn.Conv2d) -> None:
    images = torch.randn(2, conv.in_channels, 7, 9)
    plain, dense = nn.Sequential(copy.deepcopy(conv)), nn.Sequential(copy.deepcopy(conv))
    assert (return_to_blocks(plain), make_dense(dense)) == (1, 1)
    with torch.no_grad():
        wanted = conv(images)
        assert torch.equal(plain(images), wanted)
        torch.testing.assert_close(dense(images), wanted)
    assert {module.groups for module in dense.modules() if isinstance(module, nn.Conv2d)} == {1}


@pytest.mark.parametrize("conv", OTHERS)
def test_other_convolutions_stay(conv: nn.Conv2d) -> None:
    network = nn.Sequential(conv)
    assert (return_to_blocks(network), make_dense(network)) == (0, 0)
    assert network[0] is conv


def _operations(network: nn.Module, folder: Path) -> list[str]:
    """Name the operations that onnxruntime makes of a network, and check what they compute."""
    image, path = torch.randn(1, 3, 16, 24), folder / "network.onnx"
    program = torch.onnx.export(network, (image,), dynamo=True, input_names=["x"], verbose=False)
    assert program is not None
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3  # that such a file fits this machine only is the point
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = network(image).numpy()
    np.testing.assert_allclose(session.run(None, {"x": image.numpy()})[0], wanted, atol=1e-4)
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def test_sums_are_taken_along_in_the_blocked_layout(tmp_path: Path) -> None:
    network = _network()
    before = _operations(network, tmp_path)
    if "ReorderInput" not in before:
        pytest.skip("onnxruntime has no blocked layout on this processor")
    assert before.count("Add") == 4
    assert return_to_blocks(network) == 2
    after = _operations(network, tmp_path)
    assert after.count("Add") == 0
    reorders = ("ReorderInput", "ReorderOutput")
    assert sum(map(after.count, reorders)) < sum(map(before.count, reorders))


@pytest.mark.parametrize(("channels", "classes"), [(256, 2), (128, 3), (512, 4)])
def test_slices_add_up_to_the_head(channels: int, classes: int) -> None:
    head = student_head(2 * channels, classes, 128, "grouped").train()
    features = torch.randn(2, 2 * channels, 5, 6)
    with torch.no_grad():
        for _ in range(30):
            head(features, (40, 48))  # statistics that a fold must take in
        head.eval()
        wanted = head(features, (39, 47))
        network = Segmenter(nn.Identity(), head)
        assert slice_head(network) == 2 * (2 * (2 * channels // 128) + 7)
        assert network.head is not None
        found = network.head(features, (39, 47))
    torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-5)


@pytest.mark.parametrize(
    ("channels", "convolution"),
    [(64, "grouped"), (96, "grouped"), (128, "separable"), (128, "dense")],
)
def test_other_heads_stay_whole(channels: int, convolution: str) -> None:
    head = student_head(256, 2, channels, convolution)  # type: ignore[arg-type]
    network = Segmenter(nn.Identity(), head)
    assert slice_head(network) == 0
    assert network.head is head


class _Same(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Conv2dSame(3, 4, 3, stride=2), Conv2dSame(4, 2, 5, stride=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(torch.relu(self.first(images)))
        return found


@pytest.mark.parametrize("dynamic", [True, False])
def test_same_padding_is_exported_without_arithmetic(dynamic: bool) -> None:
    network, colours = _Same().eval(), ((0, 0, 0), (9, 9, 9))
    info = ExportInfo(
        "same", ("a", "b"), colours, 1, False, "logits", "fp32", (37, 50), dynamic, 1, 1.0, "", ""
    )
    images = [torch.rand(1, 3, 37, 50), *([torch.rand(2, 3, 64, 41)] if dynamic else [])]
    wanted = [network(one).detach().numpy() for one in images]
    model = to_onnx(DeployedNetwork(network, 1, preprocess=False), info)  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for one, expected in zip(images, wanted, strict=True):
        found = session.run(None, {"image": one.numpy()})[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert {node.op_type for node in model.graph.node} <= {"Conv", "Relu", "Pad"}
