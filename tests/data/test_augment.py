from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from spiritseg.config import Input
from spiritseg.data.augment import draw_view, exchange_amplitudes, finish, fit, prepare
from spiritseg.errors import ConfigError
from spiritseg.geometry import max_pool


def augment(
    image: Tensor, labels: Tensor | None, input: Input, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    return finish(draw_view(image, labels, input, seed), input)


def coordinates(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image whose red and green say where a pixel came from, and labels that agree."""
    rows = torch.arange(height, dtype=torch.uint8)[:, None].expand(height, width)
    cols = torch.arange(width, dtype=torch.uint8)[None, :].expand(height, width)
    labels = (rows + cols) % 7
    return torch.stack([rows, cols, labels]), labels.contiguous()


def test_crop_and_flip_move_image_and_labels_together() -> None:
    image, labels = coordinates(60, 90)
    corners, flips = set(), 0
    for seed in range(200):
        view, target, valid = augment(image, labels, Input(crop=32), seed)
        assert view.shape == (3, 32, 32)
        assert (view.dtype, target.dtype, valid.dtype) == (
            torch.float32, torch.int64, torch.bool,
        )  # fmt: skip
        pixels = (view * 255).round().long()
        assert torch.equal(pixels[2], target)
        assert torch.equal((pixels[0] + pixels[1]) % 7, target)
        steps = set(pixels[1, 0].diff().tolist())
        assert steps in ({1}, {-1})
        flips += steps == {-1}
        corners.add((int(pixels[0].min()), int(pixels[1].min())))
        assert bool(valid.all())
    assert 70 <= flips <= 130  # binomial(200, 0.5): six standard deviations
    assert {0, 28} <= {row for row, _ in corners}  # the crop reaches both borders
    assert max(col for _, col in corners) > 50


def test_view_is_a_function_of_the_seed_and_leaves_the_global_state() -> None:
    image, labels = coordinates(60, 90)
    input = Input(crop=32, scale=(0.5, 2.0), jitter=0.4)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = augment(image, labels, input, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again = augment(image, labels, input, 3)
    other = augment(image, labels, input, 4)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[0], other[0])
    assert torch.equal(image, coordinates(60, 90)[0])  # the decoded image is shared: not written


def test_scale_resizes_within_its_range() -> None:
    image, labels = coordinates(200, 200)
    spans = []
    for seed in range(60):
        view, target, _ = augment(image, labels, Input(crop=40, scale=(0.5, 2.0)), seed)
        span = float((view[0].max() - view[0].min()) * 255) + 1
        spans.append(40 / span)
        assert view.shape == (3, 40, 40)
        assert set(target.flatten().tolist()) <= set(range(7))
    assert 0.45 < min(spans) < 0.6
    assert 1.8 < max(spans) < 2.4


def test_padding_is_marked_and_ignored() -> None:
    image = torch.full((3, 50, 50), 200, dtype=torch.uint8)
    labels = torch.ones(50, 50, dtype=torch.uint8)
    labels[:, :5] = 255
    view, target, valid = augment(image, labels, Input(crop=48, scale=(0.5, 0.5), flip=0), 0)
    assert 500 < int(valid.sum()) < 700  # 50 x 50 at half size is 25 x 25
    inside = view[:, valid]
    assert float(inside.median()) == pytest.approx(200 / 255)
    assert float(inside.min()) > 0.15  # the outermost pixels blend into the black
    assert float(view[:, ~valid].median()) == 0
    assert bool((target[~valid] == 255).all())
    ignored = valid & (target == 255)  # labelled void: left out of cross-entropy alone
    assert 0 < int(ignored.sum()) < 150
    assert bool((target[valid & ~ignored] == 1).all())


def test_unlabelled_images_are_resized_up_and_valid() -> None:
    image = torch.randint(0, 256, (3, 20, 70), dtype=torch.uint8)
    view, target, valid = augment(image, None, Input(crop=32), 0)
    assert view.shape == (3, 32, 32)
    assert bool((target == 255).all())
    assert bool(valid.all())
    assert fit(image, 32).shape == (3, 32, 112)
    assert fit(image, 16) is image


def test_jitter_changes_colours_only() -> None:
    image, labels = coordinates(40, 40)
    plain = augment(image, labels, Input(crop=32), 1)
    jittered = augment(image, labels, Input(crop=32, jitter=0.5), 1)
    assert torch.equal(plain[1], jittered[1])
    assert not torch.equal(plain[0], jittered[0])
    assert float(jittered[0].min()) >= 0
    assert float(jittered[0].max()) <= 1


@pytest.mark.parametrize(("size", "side"), [((6, 8), 2), ((5, 7), 2), ((5, 7), 3), ((5, 7), 1)])
def test_pool_is_the_maximum_of_each_window(size: tuple[int, int], side: int) -> None:
    image = torch.rand(3, *size)
    pooled = max_pool(image, side)
    assert pooled.shape == (3, math.ceil(size[0] / side), math.ceil(size[1] / side))
    for row in range(pooled.shape[1]):
        for col in range(pooled.shape[2]):
            window = image[:, row * side : (row + 1) * side, col * side : (col + 1) * side]
            assert torch.equal(pooled[:, row, col], window.amax((1, 2)))
    raw = (image * 255).byte()
    assert torch.equal(prepare(raw, Input(pool=side)), max_pool(raw.float() / 255, side))


def _pictures(height: int, width: int, low: int = 80, high: int = 170) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(low, high, (2, 3, height, width), generator=generator)
    return one.byte(), other.byte()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10)])
def test_exchanged_amplitudes_are_the_definition_s(height: int, width: int) -> None:
    image, style = _pictures(height, width, 0, 256)
    reach = int(0.2 * min(height, width))
    assert reach == 1
    expected = torch.empty(3, height, width)
    for channel in range(3):
        ours = torch.fft.fft2(image[channel].double())
        theirs = torch.fft.fft2(style[channel].double())
        for row in range(-reach, reach + 1):
            for column in range(-reach, reach + 1):
                phase = cmath.phase(complex(ours[row, column]))
                ours[row, column] = cmath.rect(abs(complex(theirs[row, column])), phase)
        expected[channel] = torch.fft.ifft2(ours).real
    assert expected.min() < -1  # so that clamping matters
    assert expected.max() > 256
    found = exchange_amplitudes(image, style, 0.2).float()
    assert float((found - expected.clamp(0, 255)).abs().max()) <= 0.51  # rounded to 8 bits


def test_a_band_of_zero_moves_the_means_only() -> None:
    image, style = _pictures(16, 16)
    found = exchange_amplitudes(image, style, 0.0).float()
    shift = style.float().mean(dim=(1, 2)) - image.float().mean(dim=(1, 2))
    assert float((found - image - shift[:, None, None]).abs().max()) <= 0.51
    assert torch.equal(exchange_amplitudes(image, image, 0.3), image)


def test_bad_styles_are_refused() -> None:
    image, style = _pictures(8, 8)
    with pytest.raises(ConfigError, match="images of one size"):
        exchange_amplitudes(image, style[:, :4])
    with pytest.raises(ConfigError, match=r"a band in \[0, 0.5\), got 0.5"):
        exchange_amplitudes(image, style, 0.5)
