"""From a decoded image to what a network sees: random views in training, and the max-pool.

The paper's preprocessing (Wu et al., arXiv:2103.13733, section IV): a random square crop, a
random horizontal flip, then a 2x2 max-pool. A random resize, colour jitter and the exchange of
low-frequency amplitudes (FDA) are ours, off by default.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from spiritseg.config import Input
from spiritseg.data.class_map import IGNORED
from spiritseg.errors import ConfigError
from spiritseg.geometry import max_pool, nearest
from spiritseg.randomness import seeded

__all__ = ["View", "draw_view", "exchange_amplitudes", "finish", "fit", "prepare", "to_float"]


class View(NamedTuple):
    """One training view of an image, in 8 bits: a fifth of the size of a network's input.

    Args:
        image: (3, h, w) uint8.
        labels: (c, c) uint8, 255 ignored; None for an unlabelled image.
        padding: (c, c) bool; None if nothing is padded.
        plain: (3, h, w) uint8, the image before its colours change (style, jitter); None if it
            is not wanted or the same.
    """

    image: Tensor
    labels: Tensor | None
    padding: Tensor | None
    plain: Tensor | None = None


def draw_view(
    image: Tensor,
    labels: Tensor | None,
    input: Input,
    seed: int,
    plain: bool = False,
    style: Tensor | None = None,
) -> View:
    """Draw one training view: resize, crop, flip and jitter, as a function of the seed.

    For a scale s, a window of c/s pixels is cut out and resized to c x c. Where it reaches beyond
    the image it is padded: black, label 255, not valid.

    Args:
        image: (3, H, W) uint8.
        labels: (H, W) uint8 train ids, 255 ignored; None for an unlabelled image, which is
            enlarged first if the crop does not fit.
        input: crop c, flip, scale and jitter.
        seed: seed of every draw.
        plain: whether to keep the image before its colours change too.
        style: (3, c, c) uint8, whose low-frequency amplitudes the view takes before the jitter.

    Returns:
        The view with an image of (3, c, c): the max-pool is not applied.
    """
    if labels is None:
        image = fit(image, input.crop)
    with seeded(seed):
        return _view(image, labels, input, plain, style)


def finish(view: View, input: Input) -> tuple[Tensor, Tensor, Tensor]:
    """Convert a view, max-pooled or not, to what a stage is given.

    Returns:
        image (3, h, w) float32 in [0, 1]; labels (c, c) int64, all 255 if unlabelled; valid
        (c, c) bool, False on padding only.
    """
    size = (input.crop, input.crop)
    target = torch.full(size, IGNORED) if view.labels is None else view.labels.long()
    valid = torch.ones(size, dtype=torch.bool) if view.padding is None else ~view.padding
    return to_float(view.image), target, valid


def prepare(image: Tensor, input: Input) -> Tensor:
    """Scale and max-pool a whole image for evaluation.

    Args:
        image: (3, H, W) uint8.
        input: its pool p.

    Returns:
        (3, ceil(H/p), ceil(W/p)) float32 in [0, 1].
    """
    return max_pool(to_float(image), input.pool)


def fit(image: Tensor, side: int) -> Tensor:
    """Enlarge an image (3, H, W), keeping its proportions, so that a square crop fits."""
    if min(image.shape[-2:]) >= side:
        return image
    resized: Tensor = v2.functional.resize(image, [side], antialias=True)
    return resized


def to_float(image: Tensor) -> Tensor:
    """Scale an image of 8 bits to [0, 1]."""
    return image.float().div_(255)


def exchange_amplitudes(image: Tensor, style: Tensor, band: float = 0.01) -> Tensor:
    r"""Give an image the low-frequency amplitudes of another, and keep its phases (FDA).

    .. math:: x' = \mathcal{F}^{-1}\left(
        \left[M_\beta |\mathcal{F}(y)| + (1 - M_\beta) |\mathcal{F}(x)|\right]
        e^{i \arg \mathcal{F}(x)} \right)

    with M the frequencies of at most beta min(H, W) cycles a side (Yang and Soatto,
    arXiv:2004.05498, eq. 3). The zeroth is the mean of each channel: brightness and cast.

    Args:
        image: (3, H, W) uint8, x.
        style: (3, H, W) uint8, y.
        band: beta in [0, 0.5); 0 exchanges the means only.

    Returns:
        (3, H, W) uint8; values outside 0 to 255 are clamped.

    Raises:
        ConfigError: if the sizes differ, or the band is out of its range.
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


def _view(
    image: Tensor, labels: Tensor | None, input: Input, keep_plain: bool, style: Tensor | None
) -> View:
    window = _window(input)
    parts: list[Tensor] = [tv_tensors.Image(image)]
    if labels is not None:
        parts.append(tv_tensors.Mask(labels))
    padded = min(image.shape[-2:]) < window
    if padded:
        parts.append(tv_tensors.Mask(torch.zeros_like(image[0])))
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}
    parts = v2.RandomCrop(window, pad_if_needed=padded, fill=fill)(parts)
    if window != input.crop:
        parts = [_resized(part, input.crop) for part in parts]
    parts = v2.RandomHorizontalFlip(input.flip)(parts)
    recoloured = input.jitter or style is not None
    before = parts[0].as_subclass(Tensor) if recoloured and keep_plain else None
    if style is not None:
        parts[0] = tv_tensors.Image(exchange_amplitudes(parts[0].as_subclass(Tensor), style))
    if input.jitter:
        parts[0] = v2.ColorJitter(input.jitter, input.jitter, input.jitter)(parts[0])
    found = [part.as_subclass(Tensor) for part in parts]
    padding = found[-1] == IGNORED if padded else None
    return View(found[0], None if labels is None else found[1], padding, before)


def _window(input: Input) -> int:
    """Draw the side of the square that becomes the crop."""
    low, high = input.scale
    if low == high == 1:
        return input.crop
    scale = low + (high - low) * float(torch.rand(()))
    return max(1, round(input.crop / scale))


def _resized(part: Tensor, side: int) -> Tensor:
    """Resize a square image, or a mask with half-pixel centres as its image."""
    if isinstance(part, tv_tensors.Mask):
        mask: Tensor = tv_tensors.Mask(nearest(part.as_subclass(Tensor), (side, side)))
        return mask
    resized: Tensor = v2.functional.resize(part, [side, side], antialias=True)
    return resized
