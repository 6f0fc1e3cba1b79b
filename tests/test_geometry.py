"""One geometry: what a network sees and says at a place, at any size of its images."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from spiritseg.config import Input
from spiritseg.data.augment import draw_view, finish
from spiritseg.errors import ConfigError
from spiritseg.evaluation.evaluate import ExplainedVariance
from spiritseg.evaluation.iou import ImageIoU
from spiritseg.geometry import covered, cut, fit, fitted, max_pool, nearest, resize
from spiritseg.models import (
    Segmenter,
    WholeNetwork,
    compact,
    pyramid_head,
    separable,
    student_head,
)

sides = st.integers(1, 200)
# Odd sides, primes, and multiples of 8 plus or minus 1.
ODD = [(41, 57), (43, 63), (45, 60), (47, 61), (49, 67), (53, 71),
       (55, 65), (57, 73), (59, 79), (61, 83), (63, 87), (65, 89)]  # fmt: skip


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
    input = Input(crop=64, scale=(0.5, 2.0), pool=1)
    view, mask, _ = finish(draw_view(image, labels, input, seed), input)
    mask = torch.where(mask == 255, 0, mask)
    columns = mask.float()[32], view[0, 32]
    road_in_mask, road_in_view = (float(c.sum()) for c in columns)
    assume(road_in_mask < 63)  # else the border of the view cuts the blurred edge
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


class Convolutions(nn.Sequential):
    """Strided convolutions to stride 8, of a kind of convolution."""

    def __init__(
        self, conv: Callable[..., nn.Module], widths: Sequence[int] = (16, 24, 32)
    ) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((3, *widths)):
            layers += [conv(before, after, 3, stride=2), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)


class SkipNetwork(nn.Module):
    """An encoder and a decoder that adds the finer map to the resized coarser one."""

    def __init__(self) -> None:
        super().__init__()
        trunk = [*Convolutions(_padded)]
        self.fine, self.coarse = nn.Sequential(*trunk[:6]), nn.Sequential(*trunk[6:])
        self.narrow = nn.Conv2d(32, 24, 1)
        self.decoder = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.ReLU())
        self.classifier = nn.Conv2d(24, 2, 1)

    def forward(self, images: Tensor) -> Any:
        fine = self.fine(images)
        coarse = self.narrow(self.coarse(fine))
        up = F.interpolate(coarse, fine.shape[-2:], mode="bilinear")
        return self.classifier(self.decoder(fine + up))


def _padded(before: int, after: int, kernel: int, stride: int) -> nn.Module:
    return nn.Conv2d(before, after, kernel, stride, padding=1)


def _separable() -> Segmenter:
    trunk = separable(32, 8, (16, 24, 32, 32), (0, 0, 0))
    return Segmenter(trunk, student_head(32, 2, 16, "separable"))


def _same_padding() -> Segmenter:
    return Segmenter(Convolutions(Conv2dSame), student_head(32, 2, 16, "separable"))


def _grouped() -> Segmenter:
    return Segmenter(compact(Convolutions(_padded)), student_head(32, 2, 32, "grouped"))


def _pyramid() -> Segmenter:
    return Segmenter(Convolutions(_padded), pyramid_head(32, 2, 24))


def _whole() -> Segmenter:
    return WholeNetwork(SkipNetwork())


KINDS: list[Callable[[], Segmenter]] = [_separable, _same_padding, _grouped, _pyramid, _whole]
SIZE = 72, 100


@functools.cache
def _blobs() -> tuple[Tensor, Tensor]:
    """Eight noisy images of smooth dark blobs on a lighter ground, and their masks."""
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(8, 1, 7, 9, generator=generator)
    labels = F.interpolate(field, SIZE, mode="bicubic") > 0
    noise = torch.randn(8, 3, *SIZE, generator=generator)
    return (0.6 - 0.25 * labels + 0.08 * noise).clamp(0, 1), labels[:, 0].long()


def _windows(seed: int) -> tuple[Tensor, Tensor]:
    """Cut 48 x 64 pixels, multiples of every stride, out of the images at a random scale."""
    generator = torch.Generator().manual_seed(seed)
    scale = 0.85 + 0.3 * float(torch.rand((), generator=generator))
    height, width = round(48 / scale), round(64 / scale)
    top = int(torch.randint(SIZE[0] - height + 1, (), generator=generator))
    left = int(torch.randint(SIZE[1] - width + 1, (), generator=generator))
    images, labels = (x[..., top : top + height, left : left + width] for x in _blobs())
    return F.interpolate(images, (48, 64), mode="bilinear"), nearest(labels, (48, 64))


def _trained(
    network: Segmenter, loss: Callable[[Tensor, Tensor], Tensor], steps: int, lr: float = 2e-2
) -> Segmenter:
    """Train a network on images whose sides are multiples of its stride, and on no others."""
    network.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss(*_windows(step)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def _miou(network: Segmenter, size: tuple[int, int], step: int = 3) -> float:
    """mIOU of one and the same place in per cent, cut out with a surrounding of a size."""
    images, labels = _blobs()
    metric = ImageIoU(2)
    for start in range(0, 8, step):  # phases of the stride
        there = (..., slice(start, start + size[0]), slice(start, start + size[1]))
        masks = network(images[there]).argmax(1)
        metric.update(masks[..., :40, :56], labels[..., start : start + 40, start : start + 56])
    return 100 * float(metric.compute()["mIOU"])


@pytest.mark.parametrize("make", KINDS)
def test_a_network_that_learnt_at_multiples_is_as_good_at_any_size(
    make: Callable[[], Segmenter],
) -> None:
    network = make()
    _trained(network, lambda images, labels: F.cross_entropy(network(images), labels), 40)
    miou = functools.cache(functools.partial(_miou, network))
    stride = network.extractor.multiple_of
    lost = {size: miou(fitted(size, stride)) - miou(size) for size in ODD}
    assert miou((48, 64)) > 80
    assert sum(lost.values()) / len(lost) < 0.5, lost
    assert max(lost.values()) < 3, lost  # a side of 53 is seen as 56: another scale, too


def test_a_mimic_explains_as_much_at_any_size() -> None:
    shown = Segmenter(nn.Sequential(*[*Convolutions(Conv2dSame)][:-1]), None).eval()
    mimic = Segmenter(separable(32, 8, (32, 48, 64, 64), (0, 0, 0)), None)  # ordinary padding
    pixels = F.avg_pool2d(_blobs()[0], 5, 1, 2, count_include_pad=False)
    with torch.no_grad():
        maps = shown.features(pixels[..., :64, :96])
    mean, std = maps.mean((0, 2, 3)), maps.std((0, 2, 3)).clamp(min=1e-6)

    @torch.no_grad()
    def standardised(images: Tensor) -> Tensor:
        return (shown.features(images) - mean[:, None, None]) / std[:, None, None]

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        images = F.avg_pool2d(images, 5, 1, 2, count_include_pad=False)
        return (mimic.features(images) - standardised(images)).square().mean()

    @torch.no_grad()
    def explained(size: tuple[int, int]) -> float:
        images = pixels[..., : size[0], : size[1]]
        metric = ExplainedVariance()
        metric.update(mimic.features(images), standardised(images))
        return float(metric.compute())

    _trained(mimic, loss, 60, 3e-2)
    assert explained((48, 64)) > 0.25
    lost = [abs(explained(size) - explained(fitted(size, 8))) for size in ODD]
    assert sum(lost) / len(lost) < 0.03
    assert max(lost) < 0.08
