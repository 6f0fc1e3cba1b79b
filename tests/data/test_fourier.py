"""Exchanged amplitudes: the definition, frequency by frequency, and its simplest cases."""

from __future__ import annotations

import cmath

import pytest
import torch

from spiritseg.data.augment import exchange_amplitudes
from spiritseg.errors import ConfigError


def _pictures(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(80, 170, (2, 3, height, width), generator=generator)
    return one.byte(), other.byte()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10)])
def test_it_is_the_definition(height: int, width: int) -> None:
    image, style = _pictures(height, width)
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
    found = exchange_amplitudes(image, style, 0.2).float()
    assert float((found - expected.clamp(0, 255)).abs().max()) <= 0.51  # rounded to 8 bits


def test_a_band_of_zero_moves_the_means_only() -> None:
    image, style = _pictures(16, 16)
    found = exchange_amplitudes(image, style, 0.0).float()
    shift = style.float().mean(dim=(1, 2)) - image.float().mean(dim=(1, 2))
    assert float((found - image - shift[:, None, None]).abs().max()) <= 0.51


def test_an_image_in_its_own_style_stays() -> None:
    image, _ = _pictures(9, 12)
    assert torch.equal(exchange_amplitudes(image, image, 0.3), image)


def test_bad_input_is_refused() -> None:
    image, style = _pictures(8, 8)
    with pytest.raises(ConfigError, match="images of one size"):
        exchange_amplitudes(image, style[:, :4])
    with pytest.raises(ConfigError, match=r"a band in \[0, 0.5\), got 0.5"):
        exchange_amplitudes(image, style, 0.5)
