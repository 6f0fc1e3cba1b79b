"""Extractor and Segmenter: what they compute, and what they leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from spiritseg.errors import ConfigError, SpiritsegError
from spiritseg.models import Extractor, Segmenter, project, separable, student_head, teacher
from spiritseg.models.tracing import join_maps


class TwoMaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.BatchNorm2d(4))
        self.coarse = nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(images)
        return [self.coarse(fine), fine]  # the finest does not come first


class Own(nn.Module):
    channels, stride = 3, 1

    def forward(self, images: Tensor) -> Tensor:
        return images


def test_extractor_normalises_with_its_own_mean_and_std() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    extractor = Extractor(nn.Identity(), 3, 1, mean, std)
    image = torch.tensor([0.6, 0.7, 0.3]).view(1, 3, 1, 1)
    torch.testing.assert_close(extractor(image).flatten(), torch.tensor([1.0, 2.0, 0.0]))
    assert (extractor.mean, extractor.std) == (mean, std)
    assert not extractor.state_dict()


def test_maps_are_joined_on_the_finest_grid() -> None:
    fine, coarse = torch.rand(2, 4, 6, 8), torch.rand(2, 5, 3, 4)
    up = nn.functional.interpolate(coarse, (6, 8), mode="bilinear")
    torch.testing.assert_close(join_maps([coarse, fine]), torch.cat([up, fine], 1))
    torch.testing.assert_close(join_maps({"a": fine}), fine)


def test_wrap_infers_channels_and_stride_and_changes_nothing() -> None:
    module = TwoMaps().train()
    module.coarse.eval()
    before = copy.deepcopy(module.state_dict())
    draws = torch.random.get_rng_state()
    extractor = Extractor.wrap(module)
    assert (extractor.channels, extractor.stride, extractor.multiple_of) == (10, 4, 8)
    assert module.training
    assert not module.coarse.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert extractor(torch.rand(1, 3, 64, 48)).shape == (1, 10, 16, 12)


@pytest.mark.parametrize("module", [nn.Flatten(), nn.Conv2d(5, 3, 1)])
def test_wrap_says_what_it_expected(module: nn.Module) -> None:
    with pytest.raises(ConfigError, match="as an extractor: expected"):
        Extractor.wrap(module)


def test_segmenter_is_extract_then_head() -> None:
    extractor, head = separable(16), student_head(16, 3, 8, "separable")
    network = Segmenter(extractor, head).eval()
    images = torch.rand(2, 3, 37, 50)  # the network sees 32 x 48: multiples of 16
    seen = nn.functional.interpolate(images, (32, 48), mode="bilinear")
    features = network.features(images)
    torch.testing.assert_close(features, extractor(seen))
    torch.testing.assert_close(network(images), head(features, (37, 50)))
    torch.testing.assert_close(network(images, (7, 9)), head(features, (7, 9)))
    behind_pool = network.before_pool(images, 2, (73, 99))
    torch.testing.assert_close(behind_pool, head(features, (74, 100))[..., :73, :99])


def test_segmenter_wraps_what_does_not_know_its_channels() -> None:
    assert isinstance(Segmenter(TwoMaps(), None).extractor, Extractor)
    own = Own()
    network = Segmenter(own, None)
    assert network.extractor is own  # type: ignore[comparison-overlap]
    images = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(network.features(images), images)


def test_a_trunk_only_says_so() -> None:
    with pytest.raises(SpiritsegError, match="trunk only"):
        Segmenter(Own(), None)(torch.rand(1, 3, 4, 4))


@pytest.mark.parametrize("kind", ["separable", "joined"])
def test_export_deepcopy_and_channels_last(kind: str) -> None:
    trunk = teacher("timm:resnet18").extractor if kind == "joined" else separable(24)
    network = Segmenter(project(trunk, 16), student_head(16, 2, 8, "separable")).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = network(images)
        exported = torch.export.export(network, (images,)).module()(images)
        clone = copy.deepcopy(network).to(memory_format=torch.channels_last)
        last = clone(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
