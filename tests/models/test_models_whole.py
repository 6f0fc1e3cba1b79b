"""Networks of others, taken whole: their own logits, features of any layer, one pass, no leaks."""

from __future__ import annotations

import copy
import gc
import importlib.util
import pickle
import socket
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritseg.config import Extractor, Head, Network
from spiritseg.errors import ConfigError, WeightsError
from spiritseg.models import Segmenter, WholeNetwork, build_network, build_networks, teacher
from spiritseg.models.external import construct

OWN = Head(name="own")
LRASPP = "torchvision.models.segmentation.lraspp_mobilenet_v3_large"
needs_smp = pytest.mark.skipif(
    importlib.util.find_spec("segmentation_models_pytorch") is None,
    reason="segmentation-models-pytorch is not installed",
)


class Net(nn.Module):
    """A network of one's own, with an in-place activation and logits at half resolution."""

    def __init__(self, num_classes: int = 3, output: str = "tensor", divisible: int = 1) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        )
        self.middle = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())
        self.classifier = nn.Conv2d(6, num_classes, 1)
        self.unused = nn.Conv2d(1, 1, 1)
        self.output, self.divisible = output, divisible

    def forward(self, x: Tensor) -> Any:
        if x.shape[-2] % self.divisible or x.shape[-1] % self.divisible:
            raise RuntimeError(f"sides must be divisible by {self.divisible}")
        logits = self.classifier(self.middle(self.backbone(x)))
        kinds: dict[str, Any] = {
            "tensor": logits,
            "tuple": (logits, x.mean()),
            "out": {"aux": x, "out": logits},
            "logits": {"hidden": x, "logits": logits},
            "only": {"masks": logits, "name": "net"},
            "several": {"a": logits, "b": x},
            "number": 3.0,
            "scores": logits.mean((2, 3)),
        }
        return kinds[self.output]


PATH = f"{__name__}.Net"


def _built(**fields: Any) -> Segmenter:
    return build_network(Network(Extractor(PATH, **fields), OWN), 5, {}, 0)


def _normalised(network: Segmenter, images: Tensor) -> Tensor:
    return (images - network.extractor._mean) / network.extractor._std


@pytest.mark.parametrize("output", ["tensor", "tuple", "out", "logits", "only"])
def test_logits_are_the_networks_own_resized(output: str) -> None:
    module = Net(output=output).eval()
    network = WholeNetwork(module, "middle").eval()
    images = torch.rand(2, 3, 21, 30)
    plain = copy.deepcopy(module)
    plain.output = "tensor"
    seen = F.interpolate(images, (20, 32), mode="bilinear")  # the nearest multiples of 4
    expected = F.interpolate(plain(_normalised(network, seen)), (21, 30), mode="bilinear")
    assert torch.equal(network(images), expected)
    found = network.outputs(images, ["logits", "features"])
    assert torch.equal(found["logits"], expected)
    features = module.middle(module.backbone(_normalised(network, seen)))
    assert torch.equal(found["features"], features)
    assert (network.num_classes, network.head) == (3, None)


def test_features_are_the_layers_output_even_before_an_in_place_activation() -> None:
    module = Net().eval()
    images = torch.rand(2, 3, 20, 28)
    network = WholeNetwork(module, "backbone.1").eval()
    before = module.backbone[1](module.backbone[0](_normalised(network, images)))
    assert (before < 0).any()  # the ReLU after it would write over these
    for wanted in (["features"], ["features", "logits"]):
        assert torch.equal(network.outputs(images, wanted)["features"], before)
    assert torch.equal(network.features(images), before)
    assert torch.equal(network.extractor(images), before)
    assert (network.extractor.channels, network.extractor.stride) == (4, 2)


def test_one_pass_gives_everything_and_no_more_than_needed_runs() -> None:
    module = Net().eval()
    network = WholeNetwork(module, "backbone").eval()
    images = torch.rand(1, 3, 16, 24)
    calls: list[str] = []
    for name, child in module.named_children():
        child.register_forward_hook(lambda m, i, o, name=name: calls.append(name))
    found = network.outputs(images, {"features", "logits", "extractor.module.middle.0"})
    assert calls == ["backbone", "middle", "classifier"]
    assert set(found) == {"features", "logits", "extractor.module.middle.0"}
    middle = module.middle[0](found["features"])
    assert torch.equal(found["extractor.module.middle.0"], middle)
    logits = F.interpolate(module.classifier(middle.relu()), (16, 24), mode="bilinear")
    assert torch.equal(found["logits"], logits)
    calls.clear()
    network.features(images)
    assert calls == ["backbone"]
    calls.clear()
    network.outputs(images, ["extractor.module.middle"])
    assert calls == ["backbone", "middle"]


def test_nothing_is_kept_between_calls() -> None:
    network = WholeNetwork(Net(), "backbone")
    gc.disable()
    try:
        for wanted in (("features",), ("features", "logits")):
            found = network.outputs(torch.rand(1, 3, 16, 16), wanted)
            kept = [weakref.ref(x) for x in found.values()]
            del found
            assert not any(ref() is not None for ref in kept)
    finally:
        gc.enable()
    assert not any(m._forward_hooks for m in network.modules())
    broken = WholeNetwork(Net(divisible=16), "middle")  # which its strides of 4 do not tell
    with pytest.raises(RuntimeError, match="divisible"):
        broken.outputs(torch.rand(1, 3, 20, 20), ("features", "logits"))
    assert not any(m._forward_hooks for m in broken.modules())


def test_each_weight_is_saved_once_and_copies_are_apart() -> None:
    module = Net()
    network = WholeNetwork(module, "middle").eval()
    assert {*network.state_dict()} == {f"extractor.module.{k}" for k in module.state_dict()}
    images = torch.rand(1, 3, 17, 18)
    wanted = ("features", "logits")
    twin, pickled = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
    before = network.outputs(images, wanted)
    with torch.no_grad():
        module.backbone[0].weight.zero_()  # type: ignore[operator]
    for other in (twin, pickled):
        found = other.outputs(images, wanted)
        assert all(torch.equal(found[name], before[name]) for name in wanted)
    assert not torch.equal(network.features(images), before["features"])


def test_compiled_or_not_the_outputs_are_the_same() -> None:
    network = WholeNetwork(Net(), "backbone.1").eval()
    images = torch.rand(1, 3, 16, 16)
    wanted = ("features", "logits")
    with torch.no_grad():
        before = network.outputs(images, wanted)
        outer = torch.compile(network.features, backend="eager")
        assert torch.equal(outer(images), before["features"])
        network.extractor.compile(backend="eager", fullgraph=True)
        for _ in range(2):  # with and without hooks, in turn
            assert torch.equal(network(images), before["logits"])
            found = network.outputs(images, wanted)
            assert all(torch.equal(found[k], before[k]) for k in wanted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WholeNetwork(Net(), "bakbone"), "Did you mean backbone"),
        (lambda: WholeNetwork(Net(), "middle.4"), "layer of middle '4'.* Choices: 0, 1"),
        (lambda: WholeNetwork(Net(), "unused"), "'unused' of Net does not run"),
        (lambda: WholeNetwork(nn.Sequential(nn.Conv2d(3, 2, 1))), "Its layers: 0"),
        (lambda: WholeNetwork(Net(output="several"), "middle"), "got a dict of a, b"),
        (lambda: WholeNetwork(Net(output="number"), "middle"), "got float"),
        (lambda: WholeNetwork(Net(output="scores"), "middle"), r"got shape \(1, 3\)"),
        (lambda: WholeNetwork(Net(divisible=96), "middle"), "cannot use Net.*divisible by 96"),
        (lambda: WholeNetwork(Net()).classify(torch.rand(1, 4, 2, 2), (4, 4)), "whole network"),
        (lambda: WholeNetwork(Net()).outputs(torch.rand(1, 3, 8, 8), ["extractor"]), "from: back"),
        (lambda: WholeNetwork(Net()).outputs(torch.rand(1, 3, 8, 8), ["head.x"]), "unknown layer"),
        (lambda: _built(strides=(8,)), r"extractor\.strides"),
        (lambda: _built(project=8), r"extractor\.project"),
        (
            lambda: _built(cut_at="middle", args={"num_classes": 21}),
            "21 classes, the data",
        ),
    ],
)
def test_errors_say_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


# From descriptions -------------------------------------------------------------------------


def test_a_class_path_with_its_own_head_is_taken_whole_and_k_is_filled() -> None:
    one, two = _built(cut_at="middle"), _built(cut_at="middle")
    again = two.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in one.state_dict().items())
    assert isinstance(one, WholeNetwork)
    assert one(torch.rand(1, 3, 9, 10)).shape == (1, 5, 9, 10)
    assert one.training


def test_a_whole_network_is_copied_whole_or_cut_at_its_layer() -> None:
    networks = {
        "teacher": Network(Extractor(PATH, cut_at="backbone"), OWN),
        "copied": Network(Extractor("copy", base="teacher"), OWN),
        "ct": Network(Extractor("copy", base="teacher"), Head(channels=4)),
        "small": Network(Extractor("compact", base="teacher", policy="all"), Head(channels=4)),
    }
    built = build_networks(networks, 2, 0)
    images = torch.rand(1, 3, 16, 16)
    for network in built.values():
        assert network.eval()(images).shape == (1, 2, 16, 16)
    assert torch.equal(built["copied"](images), built["teacher"](images))
    assert torch.equal(built["ct"].features(images), built["teacher"].features(images))
    left = [n for n in built["ct"].state_dict() if n.startswith("extractor")]
    assert all(n.startswith("extractor.module.backbone.") for n in left)
    small: Any = built["small"].extractor.module
    assert isinstance(small.classifier, nn.Identity)


def test_a_split_makes_a_trunk_of_any_network() -> None:
    network = teacher(PATH, cut_at="middle.0", num_classes=7)
    assert network.head is None
    whole: Any = network.extractor.module
    images = torch.rand(1, 3, 16, 16)
    expected = whole.middle[0](whole.backbone(_normalised(network, images)))
    assert torch.equal(network.features(images), expected)
    assert "classifier.weight" not in whole.state_dict()
    with pytest.raises(ConfigError, match="Did you mean middle"):
        teacher(PATH, cut_at="midle")


def test_weights_come_from_a_file_or_not_at_all(tmp_path: Path) -> None:
    module = Net(num_classes=2)
    state = {**module.state_dict(), "aux_classifier.0.weight": torch.zeros(1)}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    given = Extractor(PATH, weights=str(tmp_path / "w.pth"), cut_at="middle")
    built = build_network(Network(given, OWN), 2, {}, 0)
    inner: Any = built.extractor.module
    assert torch.equal(inner.backbone[0].weight, state["backbone.0.weight"])
    with pytest.raises(WeightsError, match=r"classifier.weight: expected \(4"):
        build_network(Network(given, OWN), 4, {}, 0)
    with pytest.raises(WeightsError, match="encoder_weights"):
        build_network(Network(Extractor(PATH, weights="pretrained"), OWN), 2, {}, 0)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail on any attempt to fetch weights, kept on disk or not."""
    from torchvision.models._api import WeightsEnum

    def refuse(*args: Any, **kw: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)


@pytest.mark.usefixtures("offline")
def test_torchvision_needs_no_download_and_is_equal_to_itself() -> None:
    built = build_network(Network(Extractor(LRASPP, cut_at="backbone"), OWN), 4, {}, 0).eval()
    images = torch.rand(1, 3, 32, 48)
    module: Any = built.extractor.module
    with torch.no_grad():
        found = built.outputs(images, ("features", "logits", "extractor.module.classifier.cbr"))
        assert torch.equal(found["logits"], module(_normalised(built, images))["out"])
        maps = module.backbone(_normalised(built, images))
        up = F.interpolate(maps["high"], maps["low"].shape[-2:], mode="bilinear")
        assert torch.equal(found["features"], torch.cat([maps["low"], up], 1))
        cbr = module.classifier.cbr(maps["high"])
        assert torch.equal(found["extractor.module.classifier.cbr"], cbr)
    assert (built.extractor.channels, built.extractor.stride) == (1000, 8)
    with pytest.raises(ConfigError, match="Did you mean lraspp_mobilenet_v3_large"):
        construct(LRASPP[:-1], {})


@needs_smp
@pytest.mark.usefixtures("offline")
def test_smp_needs_no_download_and_takes_any_size() -> None:
    args = {"encoder_name": "mobilenet_v2", "decoder_segmentation_channels": 32}
    given = Extractor("segmentation_models_pytorch.FPN", args=args)
    built = build_network(Network(given, OWN), 4, {}, 0).eval()
    images = torch.rand(1, 3, 50, 70)
    module: Any = built.extractor.module
    assert built.extractor.multiple_of == 32
    assert built.extractor.cut_at == "decoder"
    with torch.no_grad():
        found = built.outputs(images, ("features", "logits"))
        seen = _normalised(built, F.interpolate(images, (64, 64), mode="bilinear"))
        logits = F.interpolate(module(seen), (50, 70), mode="bilinear")
        assert torch.equal(found["logits"], logits)
        assert torch.equal(found["features"], module.decoder(module.encoder(seen)))
