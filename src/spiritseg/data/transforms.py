"""From a decoded image to what a network sees: random views in training, and the max-pool.

The paper's preprocessing (Wu et al., arXiv:2103.13733, section IV): a random square crop, a
random horizontal flip, then a 2x2 max-pool. A random resize and colour jitter are ours, off by
default.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from spiritseg.config import Input
from spiritseg.data.classes import IGNORED
from spiritseg.data.fourier import exchange_amplitudes
from spiritseg.geometry import nearest

__all__ = ["View", "augment", "draw_view", "finish", "fit", "pool", "prepare", "to_float"]


class View(NamedTuple):
    """One training view of an image in 8 bits, a fifth of what a network is given.

    Args:
        image: (3, h, w) uint8.
        labels: (c, c) uint8, 255 ignored; None where unlabelled.
        padding: (c, c) bool; None where nothing is padded.
        plain: (3, h, w) uint8, the image before its colours change (style, jitter); None where
            it is not wanted or the same.
    """

    image: Tensor
    labels: Tensor | None
    padding: Tensor | None
    plain: Tensor | None = None


def augment(
    image: Tensor, labels: Tensor | None, input: Input, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one training view, before the max-pool; see `draw_view` and `finish`."""
    return finish(draw_view(image, labels, input, seed), input)


def draw_view(
    image: Tensor,
    labels: Tensor | None,
    input: Input,
    seed: int,
    plain: bool = False,
    style: Tensor | None = None,
) -> View:
    """Draw one training view: resize, crop, flip and jitter, as a function of the seed.

    The resize by s and the c x c crop are one step: a window of c/s pixels is cut out and
    brought to c x c, so that large images cost no more than small ones. What a window beyond
    the image leaves open is padded: black, label 255, not valid.

    Args:
        image: (3, H, W) uint8.
        labels: (H, W) uint8 train ids, 255 ignored; None for an unlabelled image, which is
            resized up first where the crop does not fit.
        input: crop, flip, scale and jitter.
        seed: every draw is a function of it; torch's global generator is left as it was.
        plain: keep the image before its colours change too.
        style: (3, c, c) uint8, whose low-frequency amplitudes the view takes before the jitter.

    Returns:
        The view, its image (3, c, c): the max-pool is not applied.
    """
    if labels is None:
        image = fit(image, input.crop)
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA too
    try:
        return _view(image, labels, input, plain, style)
    finally:
        torch.default_generator.set_state(state)


def finish(view: View, input: Input) -> tuple[Tensor, Tensor, Tensor]:
    """Bring a view to what a stage is given.

    Args:
        view: from `draw_view`, its image max-pooled or not: pooling 8 bits is the same.
        input: its crop is read.

    Returns:
        image (3, h, w) float32 in [0, 1]; labels (c, c) int64, all 255 where unlabelled; valid
        (c, c) bool, False on padding only.
    """
    size = (input.crop, input.crop)
    target = torch.full(size, IGNORED) if view.labels is None else view.labels.long()
    valid = torch.ones(size, dtype=torch.bool) if view.padding is None else ~view.padding
    return to_float(view.image), target, valid


def prepare(image: Tensor, input: Input) -> Tensor:
    """Make an image ready for a network as it is, for evaluation.

    Args:
        image: (3, H, W) uint8.
        input: its pool is applied.

    Returns:
        (3, H/p, W/p) float32 in [0, 1], odd sizes rounded up.
    """
    return pool(to_float(image), input.pool)


def pool(images: Tensor, side: int) -> Tensor:
    """Max-pool images without overlap, before the network.

    Args:
        images: (..., 3, H, W), of any type of numbers.
        side: p, the side of a window; 1 does nothing.

    Returns:
        (..., 3, ceil(H/p), ceil(W/p)); the windows at odd borders are smaller.
    """
    return images if side == 1 else _maxima(_maxima(images, side, -2), side, -1)


def fit(image: Tensor, side: int) -> Tensor:
    """Resize an image up, keeping its proportions, so that a square crop fits.

    Args:
        image: (3, H, W) uint8.
        side: side of the crop.

    Returns:
        The image; as it was where it is large enough.
    """
    if min(image.shape[-2:]) >= side:
        return image
    resized: Tensor = v2.functional.resize(image, [side], antialias=True)
    return resized


def _maxima(images: Tensor, side: int, dim: int) -> Tensor:
    """Take the maximum of every `side` rows or columns; ten times as fast as F.max_pool2d."""
    size = images.shape[dim]
    if size % side:  # the last one once more: the maximum stays
        images = torch.cat([images, *[images.narrow(dim, size - 1, 1)] * (-size % side)], dim)
    return reduce(torch.maximum, images.unfold(dim, side, side).unbind(-1))


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


def _resized(part: Tensor, side: int) -> Tensor:
    """Resize a square image, or a mask of labels to the places where its image went."""
    if isinstance(part, tv_tensors.Mask):
        mask: Tensor = tv_tensors.Mask(nearest(part.as_subclass(Tensor), (side, side)))
        return mask
    resized: Tensor = v2.functional.resize(part, [side, side], antialias=True)
    return resized


def _window(input: Input) -> int:
    """Draw the side of the square that becomes the crop."""
    low, high = input.scale
    if low == high == 1:
        return input.crop
    scale = low + (high - low) * float(torch.rand(()))
    return max(1, round(input.crop / scale))


def to_float(image: Tensor) -> Tensor:
    """Bring an image in 8 bits to [0, 1]."""
    return image.float().div_(255)
