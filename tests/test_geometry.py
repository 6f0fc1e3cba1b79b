"""One geometry: what a network sees and says at a place, at any size of its images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from spiritseg.config import Input
from spiritseg.data.augment import augment
from spiritseg.errors import ConfigError
from spiritseg.evaluation.explained_variance import ExplainedVariance
from spiritseg.evaluation.image_iou import ImageIoU
from spiritseg.geometry import covered, cut, fit, fitted, max_pool, nearest, resize
from spiritseg.models import Segmenter, compact, separable, student_head, teacher
from spiritseg.models.pyramid import pyramid_head
from spiritseg.models.whole import WholeNetwork
from spiritseg.scenes import STYLES, render

sides = st.integers(1, 200)
ODD = [(81, 113), (83, 127), (87, 121), (89, 131), (91, 127), (97, 113)]
ODD += [(97, 129), (101, 137), (95, 127), (103, 143), (85, 135), (103, 113)]


@given(side=sides, multiple_of=st.sampled_from([1, 7, 8, 14, 16, 32]))
def test_a_network_sees_the_nearest_multiple_of_its_stride(side: int, multiple_of: int) -> None:
    seen, _ = fitted((side, 1), multiple_of)
    assert seen % multiple_of == 0
    assert seen >= multiple_of
    assert seen == multiple_of or abs(seen - side) <= multiple_of / 2
    image = torch.rand(1, 3, side, multiple_of)
    assert fit(image, multiple_of).shape[-2:] == (seen, multiple_of)
    if side == seen:
        assert fit(image, multiple_of) is image


def test_an_image_without_a_pixel_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least one pixel, got \(1, 3, 0, 8\)"):
        fit(torch.rand(1, 3, 0, 8), 8)


class Brightness(nn.Module):
    """Means of brightness at a stride: what it says tells where it looked."""

    channels = 1

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = self.multiple_of = stride

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images.mean(1, keepdim=True), self.stride)


class Resized(nn.Module):
    def forward(self, features: Tensor, size: Any) -> Tensor:
        return resize(features, size)


def _ramp(height: int, width: int) -> Tensor:
    """An image whose brightness is the column's, as a share of the width."""
    return ((torch.arange(width) + 0.5) / width).expand(1, 3, height, width).contiguous()


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(40, 150), st.integers(40, 150)),
    stride=st.sampled_from([4, 8, 14, 16]),
    window=st.integers(1, 3),
    transposed=st.booleans(),
)
def test_logits_lie_where_the_image_is_to_half_a_pixel(
    size: tuple[int, int], stride: int, window: int, transposed: bool
) -> None:
    network = Segmenter(Brightness(stride), Resized())
    side = size[1]

    def says(image: Tensor) -> Tensor:
        image = image.mT if transposed else image
        found = network.before_pool(max_pool(image, window), window, image.shape[-2:])[0, 0]
        return (found.mT if transposed else found)[0] * side - 0.5  # columns, in pixels

    ramp = _ramp(*size)
    # A max-pool takes the larger end of its window: both directions together cancel that.
    columns = (says(ramp) + (side - 1 - says(1 - ramp + 0.0))) / 2
    margin = 2 * stride * window  # features at the border have no neighbour to blend with
    inside = torch.arange(side)[margin : side - margin]
    assert torch.all((columns[margin : side - margin] - inside).abs() <= 0.5)


@settings(deadline=None)
@given(old=st.integers(2, 60), new=st.integers(2, 60))
def test_a_mask_stays_with_its_image_to_half_a_pixel(old: int, new: int) -> None:
    position = (torch.arange(old) + 0.5) / old
    found = nearest(position.expand(1, 3, old), (3, new))[0, 0]
    # Exactly nearest: no farther than half a pixel of the grid that it is taken from.
    exact = (torch.arange(new) + 0.5) / new
    assert torch.all((found - exact).abs() <= 0.5 / old + 1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), place=st.integers(60, 140))
def test_an_edge_stays_an_edge_through_a_random_view(seed: int, place: int) -> None:
    image = torch.zeros(3, 160, 200, dtype=torch.uint8)
    image[..., place:] = 255
    labels = (image[0] > 0).to(torch.uint8)
    view, mask, _ = augment(image, labels, Input(crop=64, scale=(0.5, 2.0), pool=1), seed)
    mask = torch.where(mask == 255, 0, mask)
    columns = mask.float()[32], view[0, 32]
    road_in_mask, road_in_view = (float(c.sum()) for c in columns)
    assert abs(road_in_mask - road_in_view) <= 0.51


@given(size=st.tuples(sides, sides), window=st.integers(1, 4))
def test_what_a_max_pool_covers_is_cut_back_to_the_image(
    size: tuple[int, int], window: int
) -> None:
    pooled = max_pool(torch.rand(3, *size), window)
    whole = covered(pooled.shape[-2:], window)
    assert all(0 <= w - s < window for w, s in zip(whole, size, strict=True))
    assert cut(torch.rand(1, 2, *whole), size).shape[-2:] == size


# Networks ----------------------------------------------------------------------------------


def _separable() -> Segmenter:
    trunk = separable(32, 8, (16, 32, 64, 96), (1, 1, 1))
    return Segmenter(trunk, student_head(32, 2, 32, "separable"))


def _same_padding() -> Segmenter:
    trunk = teacher("efficientnet_lite0", "pretrained").extractor
    return Segmenter(trunk, student_head(trunk.channels, 2, 32, "separable"))


def _grouped() -> Segmenter:
    trunk = teacher("timm:resnet10t").extractor
    return Segmenter(compact(trunk), student_head(trunk.channels, 2, 64, "grouped"))


def _pyramid() -> Segmenter:
    trunk = teacher("timm:resnet10t", split="layer3", args={"output_stride": 8}).extractor
    return Segmenter(trunk, pyramid_head(trunk.channels, 2, 32))


def _whole() -> Segmenter:
    smp = pytest.importorskip("segmentation_models_pytorch")
    name = "tu-tf_mobilenetv3_small_minimal_100"
    return WholeNetwork(smp.FPN(name, encoder_weights=None, classes=2))


KINDS: list[Callable[[], Segmenter]] = [_separable, _same_padding, _grouped, _pyramid, _whole]


@functools.cache
def _scenes() -> tuple[Tensor, Tensor]:
    """Four scenes of 128 x 168 pixels, road or not, averaged down from twice the size."""
    images, labels = [], []
    for index in range(4):
        scene = render(0, index, (256, 336), STYLES["target"])
        image = torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255
        images.append(F.avg_pool2d(image, 2))
        labels.append(torch.from_numpy((scene.labels == 3).astype(np.int64))[1::2, 1::2])
    return torch.stack(images), torch.stack(labels)


def _windows(seed: int) -> tuple[Tensor, Tensor]:
    """Cut 64 x 96 pixels, multiples of every stride, out of the scenes at a random scale."""
    generator = torch.Generator().manual_seed(seed)
    scale = 0.85 + 0.3 * float(torch.rand((), generator=generator))
    height, width = round(64 / scale), round(96 / scale)
    top = int(torch.randint(128 - height + 1, (), generator=generator))
    left = int(torch.randint(168 - width + 1, (), generator=generator))
    images, labels = (x[..., top : top + height, left : left + width] for x in _scenes())
    return F.interpolate(images, (64, 96), mode="bilinear", antialias=True), nearest(
        labels, (64, 96)
    )


@functools.cache
def _overfitted(make: Callable[[], Segmenter], steps: int = 150) -> Segmenter:
    """A network that has seen the scenes at multiples of its stride only."""
    network = make().train().requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps)
    for step in range(steps):
        images, labels = _windows(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def _miou(network: Segmenter, size: tuple[int, int]) -> float:
    """mIOU of one and the same place in per cent, cut out with a surrounding of a size."""
    images, labels = _scenes()
    metric = ImageIoU(2)
    for start in range(0, 24, 3):  # at several phases of the stride
        there = (..., slice(start, start + size[0]), slice(start, start + size[1]))
        masks = network(images[there]).argmax(1)
        metric.update(masks[..., :80, :112], labels[..., start : start + 80, start : start + 112])
    return 100 * float(metric.compute()["mIOU"])


@pytest.mark.parametrize("make", KINDS)
def test_a_network_that_learnt_at_multiples_is_as_good_at_any_size(
    make: Callable[[], Segmenter],
) -> None:
    network = _overfitted(make)
    lost = {
        size: _miou(network, fitted(size, network.extractor.multiple_of)) - _miou(network, size)
        for size in ODD
    }
    assert sum(lost.values()) / len(lost) < 0.5, lost
    assert max(lost.values()) < 3, lost  # a side of 89 is seen as 96: another scale, too


def test_a_mimic_explains_as_much_at_any_size() -> None:
    shown = teacher("efficientnet_lite0", "pretrained", strides=(8,))  # "same" padding
    with torch.no_grad():
        maps = shown.features(_scenes()[0][..., :128, :160])
    mean, std = maps.mean((0, 2, 3)), maps.std((0, 2, 3)).clamp(min=1e-6)

    def standardised(images: Tensor) -> Tensor:
        return (shown.features(images) - mean[:, None, None]) / std[:, None, None]

    trunk = separable(maps.shape[1], 8, (32, 48, 96, 128), (1, 1, 1))  # ordinary padding
    mimic = Segmenter(trunk, None).train()
    optimizer = torch.optim.AdamW(mimic.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-2, 120)
    for step in range(120):
        images, _ = _windows(step)
        with torch.no_grad():
            wanted = standardised(images)
        optimizer.zero_grad()
        (mimic.features(images) - wanted).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    mimic.eval()

    @torch.no_grad()
    def explained(size: tuple[int, int]) -> float:
        images = _scenes()[0][..., : size[0], : size[1]]
        metric = ExplainedVariance()
        metric.update(mimic.features(images), standardised(images))
        return float(metric.compute())

    assert explained((96, 128)) > 0.15
    for size in ODD:
        assert explained(size) == pytest.approx(explained(fitted(size, 8)), abs=0.05)
