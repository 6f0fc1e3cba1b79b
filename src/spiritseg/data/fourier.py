"""One image in the light and colours of another: low-frequency amplitudes exchanged."""

from __future__ import annotations

import torch
from torch import Tensor

from spiritseg.errors import ConfigError

__all__ = ["exchange_amplitudes"]


def exchange_amplitudes(image: Tensor, style: Tensor, band: float = 0.01) -> Tensor:
    r"""Give an image the low-frequency amplitudes of another; its phases, its shapes, stay.

    .. math:: x' = \mathcal{F}^{-1}\left(
        \left[M_\beta |\mathcal{F}(y)| + (1 - M_\beta) |\mathcal{F}(x)|\right]
        e^{i \arg \mathcal{F}(x)} \right)

    with M the frequencies of at most beta min(H, W) cycles a side (FDA, Yang and Soatto,
    arXiv:2004.05498, eq. 3). The zeroth is the mean of each channel: brightness and cast.

    Args:
        image: (3, H, W) uint8, x.
        style: (3, H, W) uint8, y.
        band: beta in [0, 0.5); 0 exchanges the means only.

    Returns:
        (3, H, W) uint8; values outside 0 to 255 are clamped.

    Raises:
        ConfigError: sizes that differ, or a band outside its range.
    """
    if image.shape != style.shape:
        raise ConfigError(
            f"exchange_amplitudes: expected images of one size, got {tuple(image.shape)} and "
            f"{tuple(style.shape)}."
        )
    if not 0 <= band < 0.5:
        raise ConfigError(f"exchange_amplitudes: expected a band in [0, 0.5), got {band}.")
    height, width = image.shape[-2:]
    reach = int(band * min(height, width))
    rows = torch.arange(-reach, reach + 1) % height
    ours, theirs = torch.fft.rfft2(image.float()), torch.fft.rfft2(style.float())
    low, amplitudes = ours[:, rows, : reach + 1], theirs[:, rows, : reach + 1].abs()
    ours[:, rows, : reach + 1] = torch.polar(amplitudes, low.angle())
    mixed: Tensor = torch.fft.irfft2(ours, s=(height, width))
    return mixed.round_().clamp_(0, 255).byte()
