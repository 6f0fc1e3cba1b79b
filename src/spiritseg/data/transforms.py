"""From a decoded image to what a network sees: random views in training, and the max-pool.

The paper's preprocessing (Wu et al., arXiv:2103.13733, section IV): a random square crop, a
random horizontal flip, then a 2x2 max-pool. A random resize and colour jitter are ours, off by
default.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from spiritseg.config import Input
from spiritseg.data.classes import IGNORED

__all__ = ["augment", "fit", "pool", "prepare"]


def augment(
    image: Tensor, labels: Tensor | None, input: Input, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
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

    Returns:
        image (3, c, c) float32 in [0, 1]; labels (c, c) int64, all 255 where unlabelled; valid
        (c, c) bool, False on padding only.
    """
    if labels is None:
        image = fit(image, input.crop)
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA too
    try:
        image, labels, padding = _view(image, labels, input)
    finally:
        torch.default_generator.set_state(state)
    size = (input.crop, input.crop)
    target = torch.full(size, IGNORED) if labels is None else labels.long()
    valid = torch.ones(size, dtype=torch.bool) if padding is None else ~padding
    return _to_float(image), target, valid


def prepare(image: Tensor, input: Input) -> Tensor:
    """Make an image ready for a network as it is, for evaluation.

    Args:
        image: (3, H, W) uint8.
        input: its pool is applied.

    Returns:
        (3, H/p, W/p) float32 in [0, 1], odd sizes rounded up.
    """
    return pool(_to_float(image), input.pool)


def pool(images: Tensor, side: int) -> Tensor:
    """Max-pool images without overlap, before the network.

    Args:
        images: (..., 3, H, W), of any float type.
        side: p, the side of a window; 1 does nothing.

    Returns:
        (..., 3, ceil(H/p), ceil(W/p)); the windows at odd borders are smaller.
    """
    return images if side == 1 else F.max_pool2d(images, side, ceil_mode=True)


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


def _view(
    image: Tensor, labels: Tensor | None, input: Input
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return an image, its labels and where it is padded, each crop x crop."""
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
        parts = v2.Resize([input.crop, input.crop], antialias=True)(parts)  # masks: nearest
    parts = v2.RandomHorizontalFlip(input.flip)(parts)
    if input.jitter:
        parts[0] = v2.ColorJitter(input.jitter, input.jitter, input.jitter)(parts[0])
    plain = [part.as_subclass(Tensor) for part in parts]
    padding = plain[-1] == IGNORED if padded else None
    return plain[0], None if labels is None else plain[1], padding


def _window(input: Input) -> int:
    """Draw the side of the square that becomes the crop."""
    low, high = input.scale
    if low == high == 1:
        return input.crop
    scale = low + (high - low) * float(torch.rand(()))
    return max(1, round(input.crop / scale))


def _to_float(image: Tensor) -> Tensor:
    return image.float().div_(255)
