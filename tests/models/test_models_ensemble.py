"""An ensemble averages class distributions; everything else is its first member's."""

from __future__ import annotations

import pytest
import torch

from spiritseg.config import Stage
from spiritseg.errors import ConfigError
from spiritseg.losses import CrossEntropy, Pixelwise
from spiritseg.models import Segmenter, student_head
from spiritseg.models.ensemble import Ensemble, stage_teacher
from spiritseg.models.separable import separable


def _network(channels: int, seed: int) -> Segmenter:
    extractor = separable(channels, stride=8, widths=(4, 8, 8, 8), depths=(0, 0, 0), seed=seed)
    return Segmenter(extractor, student_head(channels, 3, 8, "separable", seed)).eval()


@torch.no_grad()
def test_it_gives_the_log_of_the_mean_of_its_members_distributions() -> None:
    members = [_network(6, 0), _network(10, 1), _network(8, 2)]
    images = torch.rand(2, 3, 33, 40)
    probabilities = Ensemble(members)(images).exp()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2, 33, 40))
    mean = sum(m(images).softmax(dim=1) for m in members) / 3
    torch.testing.assert_close(probabilities, mean)


@torch.no_grad()
def test_features_and_layers_are_those_of_the_first() -> None:
    members = [_network(6, 0), _network(10, 1)]
    images = torch.rand(1, 3, 32, 32)
    wanted = ("features", "logits", "head.at_quarter")
    found, first = Ensemble(members).outputs(images, wanted), members[0].outputs(images, wanted)
    for name in ("features", "head.at_quarter"):
        assert torch.equal(found[name], first[name])
    assert not torch.equal(found["logits"], first["logits"])


@torch.no_grad()
def test_members_are_not_copied() -> None:
    members = [_network(6, 0), _network(6, 1)]
    ensemble, images = Ensemble(members), torch.rand(1, 3, 32, 32)
    before = ensemble(images)
    next(members[1].parameters()).mul_(2)
    assert not torch.equal(ensemble(images), before)


def test_one_network_is_no_ensemble() -> None:
    with pytest.raises(ConfigError, match="expected two networks or more, got 1"):
        Ensemble([_network(6, 0)])


def test_the_teacher_of_a_stage() -> None:
    networks = {"a": _network(6, 0), "b": _network(6, 1)}
    assert stage_teacher(Stage(), networks) is None
    assert stage_teacher(Stage(teacher="a"), networks) is networks["a"]
    both = stage_teacher(Stage(teacher="a", co_teachers=("b",)), networks)
    assert isinstance(both, Ensemble)
    assert list(both.members) == [networks["a"], networks["b"]]


@pytest.mark.parametrize("tau", [4.0, 0.5])
@torch.no_grad()
def test_at_a_temperature_it_is_the_mean_of_the_tempered_distributions(tau: float) -> None:
    networks = {"a": _network(6, 0), "b": _network(6, 1)}
    losses = {"cross_entropy": CrossEntropy(), "pixelwise": Pixelwise(temperature=tau)}
    both = stage_teacher(Stage(teacher="a", co_teachers=("b",), losses=losses), networks)
    assert both is not None
    images = torch.rand(1, 3, 32, 32)
    mean = sum((n(images) / tau).softmax(dim=1) for n in networks.values()) / 2
    torch.testing.assert_close((both(images) / tau).softmax(dim=1), mean)
    torch.testing.assert_close((both.outputs(images, ("logits",))["logits"]), both(images))
