"""Networks of an experiment: references, seeds, errors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from spiritseg.config import Extractor, Head, Network
from spiritseg.errors import ConfigError
from spiritseg.models import Segmenter, build_network, build_networks
from spiritseg.models.factory import limited_parameters

NONE = Head(name="none")
SMALL = Head(channels=8)


class Tiny(nn.Module):
    """A module of one's own, as a class path names it."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, 8, 1), nn.BatchNorm2d(width))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layers(images)
        return out


def own(**args: int) -> Extractor:
    return Extractor(name=f"{__name__}.Tiny", args=args)


def _same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_networks_are_made_of_each_other_in_any_order() -> None:
    networks = {
        "student": Network(Extractor("separable", base="teacher"), SMALL),
        "small": Network(Extractor("compact", base="ct", policy="all"), SMALL),
        "ct": Network(Extractor("copy", base="teacher"), SMALL),
        "teacher": Network(own(width=12), NONE),
    }
    built = build_networks(networks, 3, seed=0)
    assert list(built) == list(networks)
    teacher, ct, student = built["teacher"], built["ct"], built["student"]
    assert teacher.head is None
    assert (student.extractor.channels, student.extractor.stride) == (12, 8)
    assert _same(ct.extractor, teacher.extractor)
    assert ct.extractor is not teacher.extractor
    assert ct.extractor.mean == teacher.extractor.mean
    convs = [m for m in built["small"].extractor.modules() if isinstance(m, nn.Conv2d)]
    assert [c.groups for c in convs] == [3]
    for name in ("student", "small", "ct"):
        assert built[name](torch.rand(2, 3, 32, 48)).shape == (2, 3, 32, 48)
        assert built[name].training
        assert all(p.requires_grad for p in built[name].parameters())


def test_weights_are_a_function_of_seed_and_name_only() -> None:
    alone = {"a": Network(own(), SMALL)}
    among = {"b": Network(own(), SMALL), "a": Network(own(), SMALL)}
    draws = torch.random.get_rng_state()
    one, two, three = (
        build_networks(alone, 2, 5),
        build_networks(among, 2, 5),
        build_networks(alone, 2, 6),
    )
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert _same(one["a"], two["a"])
    assert not _same(two["a"], two["b"])
    assert not _same(one["a"], three["a"])


def test_projection_and_own_head() -> None:
    network = Network(dataclasses.replace(own(), project=10), SMALL)
    assert build_network(network, 2, {}, 0).extractor.channels == 10
    deeplab = Network(Extractor("deeplabv3_resnet50"), Head(name="own"))
    built = build_network(deeplab, 5, {}, 0).eval()
    assert built(torch.rand(1, 3, 33, 40)).shape == (1, 5, 33, 40)


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (
            {"a": Extractor("copy", base="b"), "b": Extractor("compact", base="a")},
            "circle: a -> b -> a",
        ),
        ({"a": Extractor("copy", base="a")}, "circle: a -> a"),
        ({"a": Extractor("copy", base="teecher"), "teacher": own()}, "Did you mean teacher"),
        ({"a": Extractor("copy")}, "networks.a: .*needs the name of another network"),
        ({"a": Extractor("seperable")}, "Did you mean separable"),
        ({"a": Extractor("vgg16", base="b"), "b": own()}, "made of no other network"),
        ({"a": Extractor("copy", base="b", weights="pretrained"), "b": own()}, "no weights of its"),
        ({"a": Extractor("separable", base="b", args={"depth": 3}), "b": own()}, "'depth'"),
        ({"a": own(breadth=3)}, "breadth"),
        ({"a": Extractor("os:path.join")}, "unknown network 'os:path.join'"),
        ({"a": Extractor("deeplabv3_resnet50", args={"num_classes": "x"})}, "TypeError"),
        (
            {"a": Extractor("separable", base="b", args={"widths": 3}), "b": own()},
            "widths: expected",
        ),
        ({"a": Extractor("no_such_package.Net")}, "cannot import"),
        ({"a": Extractor(".relative.Net")}, "cannot import"),
    ],
)
def test_errors_name_the_network_and_the_way_out(
    networks: dict[str, Extractor], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_networks({k: Network(v, NONE) for k, v in networks.items()}, 2, 0)


def test_own_head_errors() -> None:
    with pytest.raises(ConfigError, match="no head of its own"):
        build_network(Network(Extractor("vgg16"), Head(name="own")), 2, {}, 0)
    classes = Extractor("deeplabv3_resnet50", args={"num_classes": 21})
    with pytest.raises(ConfigError, match="21 classes, the data set has 2"):
        build_network(Network(classes, Head(name="own")), 2, {}, 0)


def test_parameters_are_limited_inside_the_block_only() -> None:
    count = sum(p.numel() for p in nn.Conv2d(3, 8, 3).parameters())
    with limited_parameters(count):
        nn.Conv2d(3, 8, 3)
        with pytest.raises(ConfigError, match=r"224 parameters.*has a weight of shape \(8, 3, 3"):
            nn.Conv2d(3, 8, 3)
    nn.Conv2d(3, 8, 3)


def test_a_module_of_your_own_that_is_a_segmenter_keeps_its_head() -> None:
    name = f"{__name__}.make_segmenter"
    built = build_network(Network(Extractor(name), Head(name="own")), 2, {}, 0)
    assert built(torch.rand(1, 3, 16, 16)).shape == (1, 2, 16, 16)


def make_segmenter() -> Segmenter:
    return build_network(Network(own(), SMALL), 2, {}, 0)
