"""Traces of training in weights; normalisation; split points against networks cut there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from spiritseg.config import Experiment, Head, Input, Network, Stage
from spiritseg.config import Extractor as ExtractorConfig
from spiritseg.doctor import Examination, Finding
from spiritseg.doctor.cut_points import cut_points
from spiritseg.doctor.findings import Known
from spiritseg.doctor.weights import (
    _first_convolution_input,
    examine_normalisation,
    examine_weights,
    traces,
)
from spiritseg.losses import CrossEntropy, Pixelwise
from spiritseg.models import (
    Extractor,
    Segmenter,
    build_networks,
    separable,
    splits,
    student_head,
    teacher,
)
from spiritseg.models.bundle import BundleInfo, save_bundle

OWN = "test_doctor_weights"


class TimesBytes(nn.Module):
    """A network of the user's own that brings images to 0..255 by itself."""

    def __init__(self, factor: float = 255.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.conv(images * self.factor))


@pytest.fixture(scope="module")
def photographs() -> list[Tensor]:
    from spiritseg.scenes import render

    pictures = [torch.from_numpy(render(0, i, (96, 128)).image) for i in range(3)]
    return [p.permute(2, 0, 1)[None].float() / 255 for p in pictures]


@pytest.fixture(scope="module")
def lite() -> Segmenter:
    return teacher("efficientnet_lite0", "pretrained")


@pytest.mark.parametrize(
    "module",
    [
        lambda: teacher("efficientnet_lite0"),
        lambda: teacher("vgg16", cut_at="conv3_3"),
        lambda: separable(32, 8),
        lambda: student_head(64, 2, 64, "grouped"),
        lambda: timm.create_model("resnet18"),
    ],
)
def test_fresh_weights_show_no_traces(module: object) -> None:
    found = traces(module())  # type: ignore[operator]
    assert found.trained is False
    assert found.fresh_norms == found.norms


def test_pretrained_weights_show_traces(lite: Segmenter) -> None:
    found = traces(lite)
    assert found.trained is True
    assert found.unevenness > 1.8
    assert found.fresh_norms == 0


@pytest.mark.data
def test_a_network_without_batch_norm_shows_traces(shared_weights: Path) -> None:
    found = traces(teacher("vgg16", str(shared_weights / "vgg16_hed_bsds500.safetensors")))
    assert found.trained is True
    assert found.norms == 0


def test_trained_filters_with_fresh_statistics_contradict_each_other() -> None:
    network = teacher("efficientnet_lite0", "pretrained")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    assert traces(network).trained is None


def _experiment(weights: str = "pretrained", name: str = "efficientnet_lite0") -> Experiment:
    network = Network(ExtractorConfig(name, weights=weights), Head("none"))
    return Experiment(networks={"teacher": network})


def _weights(
    experiment: Experiment, classes: tuple[str, ...] = ()
) -> tuple[dict[str, Segmenter], list[Finding]]:
    known, found = Known(experiment, classes=classes), Examination("Weights")
    examine_weights(found, known)
    return known.networks, found.findings


def test_an_untrained_file_is_a_problem(tmp_path: Path) -> None:
    fresh = timm.create_model("tf_efficientnet_lite0")
    torch.save(fresh.state_dict(), tmp_path / "fresh.pth")
    found = _weights(_experiment(str(tmp_path / "fresh.pth")))[1]  # the keys fit: it loads
    assert [f.level for f in found] == ["problem"]
    assert "look untrained" in found[0].what
    pretrained = _weights(_experiment())[1]
    assert [f.level for f in pretrained] == ["ok"]
    assert "33 of 33 batch norms" in pretrained[0].what


def test_every_network_that_cannot_be_built_is_reported() -> None:
    experiment = Experiment(
        networks={
            "one": Network(ExtractorConfig("vg16"), Head("none")),
            "two": Network(ExtractorConfig("vgg16", weights="no.pth"), Head("none")),
            "three": Network(ExtractorConfig("vgg16", cut_at="conv1_2"), Head("none")),
        }
    )
    networks, found = _weights(experiment)
    assert list(networks) == ["three"]
    problems = [str(one) for one in found if one.level == "problem"]
    assert len(problems) == 2
    assert "vgg16" in problems[0]
    assert "no.pth" in problems[1]


def test_co_teachers_are_teachers() -> None:
    networks = {
        name: Network(ExtractorConfig("separable"), Head("student", channels=8))
        for name in ("first", "second", "student")
    }
    stages = {
        "teach": Stage("first", losses={"cross_entropy": CrossEntropy()}),
        "distil": Stage(
            "student",
            teacher="first",
            co_teachers=("second",),
            losses={"pixelwise": Pixelwise()},
        ),
    }
    experiment = Experiment(networks=networks, stages=stages, result="student")
    found = {f.where: f for f in _weights(experiment)[1]}
    assert found["networks.second"].level == "warning"
    assert found["networks.second.head"].level == "problem"
    for where in ("networks.second", "networks.second.head"):
        assert "teacher" in found[where].what
        assert "distil" in found[where].what
    assert found["networks.first.head"].level == "ok"


def test_a_bundle_of_other_classes_or_another_pool_is_reported(tmp_path: Path) -> None:
    own = {"student": Network(ExtractorConfig("separable"), Head("student", channels=8))}
    info = BundleInfo(own, "student", ("road", "background"), ((0, 0, 0), (1, 1, 1)), pool=2)
    save_bundle(tmp_path / "teacher", build_networks(own, 2, 0)["student"], info)
    teacher_ = Network(bundle=str(tmp_path / "teacher"))
    experiment = Experiment(networks={**own, "teacher": teacher_})
    networks, found = _weights(experiment, ("background", "road"))
    assert list(networks) == ["student"]
    assert any("in the same order" in one.what for one in found)
    assert list(_weights(experiment, ("road", "background"))[0]) == ["student", "teacher"]
    other = dataclasses.replace(experiment, input=Input(pool=1))
    assert any("max-pool of 2" in one.what for one in _weights(other)[1])


def test_first_convolution_sees_normalised_images(
    lite: Segmenter, photographs: list[Tensor]
) -> None:
    found = _first_convolution_input(lite, photographs)
    assert found is not None
    raw = torch.cat([x.flatten(2)[0] for x in photographs], dim=1)
    # TensorFlow's "same" padding adds a row and a column of zeros, which are the mean
    expected = (raw.mean(1) - 127 / 255) / (128 / 255)
    assert torch.allclose(found[0], expected, atol=0.03)
    assert torch.allclose(found[1], raw.std(1) / (128 / 255), atol=0.03)


@pytest.mark.parametrize(
    ("module", "mean", "std", "level", "said"),
    [
        (TimesBytes(255), (0.0,) * 3, (1.0,) * 3, "problem", "0..255"),
        (TimesBytes(1), (0.0,) * 3, (1.0,) * 3, "warning", "not normalised"),
        (TimesBytes(1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "ok", "close to 0 and 1"),
        (TimesBytes(0.1), (0.5,) * 3, (0.5,) * 3, "warning", "twice"),
    ],
)
def test_own_modules_are_measured(
    module: nn.Module,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    level: str,
    said: str,
    photographs: list[Tensor],
) -> None:
    network = Segmenter(Extractor(module, 8, 4, mean, std), None)
    experiment = _experiment("random", f"{OWN}.TimesBytes")
    known = Known(experiment, samples=photographs, networks={"teacher": network})
    seen = Examination("Input normalisation")
    examine_normalisation(seen, known)
    found = seen.findings[-1]
    assert found.level == level
    assert said in f"{found.what} {found.do}"


@pytest.mark.parametrize("name", ["efficientnet_lite0", "timm:mobilenetv3_small_100", "vgg16"])
def test_cut_points_are_those_of_networks_cut_there(name: str) -> None:
    size = (64, 96)
    found = cut_points(name, size)
    assert {one.name for one in found} == set(splits(name))  # all that can be asked for
    for one in (found[1], found[-1]):
        cut = teacher(name, cut_at=one.name).extractor
        shape = cut(torch.zeros(1, 3, *size)).shape
        assert (one.channels, one.stride) == (cut.channels, cut.stride)
        assert one.cost.params == sum(p.numel() for p in cut.parameters())
        assert (1, one.channels, *one.size) == tuple(shape)


def test_strides_of_blocks_are_those_of_the_network_at_any_size() -> None:
    found = cut_points("efficientnet_lite0", (180, 240))
    assert [one.stride for one in found] == [2, 4, 8, 16, 16, 32, 32]
    assert found[3].size == (12, 15)
