"""One geometry for images, feature maps, logits and labels of any size.

**Every map covers its whole image.** Position i of n lies at (i + 1/2) / n of a side, for
images, feature maps, logits, labels and masks alike (half-pixel centres). So any two maps of
one image can be compared after a plain resize.

**A network sees multiples of its stride.** Any other side would leave a remainder: a last
row of features that covers less than a stride, "same" padding that shifts its sampling grid, a
resize by 15/8 where 2 was meant. `fit` therefore resizes the input to the nearest multiple first,
by at most half a stride, and the output is resized once, to the grid that it is wanted on.

**A max-pool covers more than the image** where its side is no divisor: 114 windows of 2 cover 228
of 227 rows. Its inverse is a resize to what the windows cover, then a cut (`covered`, `cut`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from spiritseg.errors import ConfigError

__all__ = ["Size", "covered", "cut", "fit", "fitted", "max_pool", "nearest", "resize", "size_of"]

Size = tuple[int, int]


def size_of(x: Tensor) -> Size:
    """Return (H, W) of maps (..., H, W)."""
    return x.shape[-2], x.shape[-1]


def fitted(size: Sequence[int], multiple_of: int) -> Size:
    """Return the size that a network sees: the nearest multiple of its stride, at least one.

    Args:
        size: (H, W) of the input, in pixels.
        multiple_of: the network's deepest stride, in pixels. Halves are rounded up.
    """
    counts = ((side + multiple_of // 2) // multiple_of for side in size)
    return cast(Size, tuple(torch.sym_max(count, 1) * multiple_of for count in counts))


def fit(images: Tensor, multiple_of: int) -> Tensor:
    """Bring images to the size that a network sees (`fitted`), bilinearly.

    Args:
        images: (B, C, H, W).
        multiple_of: the network's deepest stride, in pixels.

    Returns:
        (B, C, H', W'); the images themselves where nothing changes.

    Raises:
        ConfigError: images without a pixel.
    """
    if multiple_of == 1:
        return images
    if not torch.compiler.is_exporting() and 0 in images.shape[-2:]:
        raise ConfigError(f"expected images of at least one pixel, got {tuple(images.shape)}.")
    return resize(images, fitted(images.shape[-2:], multiple_of))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps bilinearly, without antialiasing; no copy where they have the size.

    Args:
        x: (B, C, h, w), of any float type.
        size: (H, W).

    Returns:
        (B, C, H, W), which covers what `x` covers.
    """
    # Symbols of an exported graph stay open: compared, the example's sizes would settle them.
    if _known(x.shape[-2:], size) and size_of(x) == tuple(size):
        return x
    return F.interpolate(x, (size[0], size[1]), mode="bilinear", align_corners=False)


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize labels or masks by nearest neighbour, in integers.

    Position i takes floor((i + 1/2) old / new). torchvision's and Pillow's plain "nearest" take
    floor(i old / new), which moves a mask by up to half a pixel against its image.

    Args:
        x: (B, H, W), or (H, W).
        size: (h, w).

    Returns:
        (B, h, w), or (h, w), of the same type.
    """
    for axis, (old, new) in enumerate(zip(x.shape[-2:], size, strict=True), start=x.ndim - 2):
        if old != new:
            source = (2 * torch.arange(new, device=x.device) + 1) * old // (2 * new)
            x = x.index_select(axis, source)
    return x


def max_pool(images: Tensor, side: int) -> Tensor:
    """Max-pool images without overlap: the papers' preprocessing, before the network.

    Args:
        images: (..., H, W), of any numeric type; floats of at least 0 where it is exported.
        side: side p of a window in pixels; 1 does nothing.

    Returns:
        (..., ceil(H/p), ceil(W/p)); the windows at odd borders are smaller.
    """
    if side == 1:
        return images
    if torch.compiler.is_exporting():
        # Padding with the least value, then whole windows, has no case for odd sizes.
        return F.max_pool2d(F.pad(images, (0, side - 1, 0, side - 1)), side)
    return _maxima(_maxima(images, side, -2), side, -1)


def covered(size: Sequence[int], pool: int) -> Size:
    """Return what the windows of a max-pool of side `pool` cover, from the size after it."""
    return size[0] * pool, size[1] * pool


def cut(x: Tensor, size: Sequence[int]) -> Tensor:
    """Cut maps (..., H, W) that cover more than an image to its size (H', W')."""
    if _known(x.shape[-2:], size):
        return x[..., : size[0], : size[1]]
    # In an exported graph of open sizes a slice would settle whether it cuts anything.
    height, width = size_of(x)
    return F.pad(x, (0, size[1] - width, 0, size[0] - height))


def _maxima(images: Tensor, side: int, dim: int) -> Tensor:
    """Take the maximum of every `side` rows or columns; ten times as fast as F.max_pool2d."""
    size = images.shape[dim]
    if size % side:  # repeating the last one leaves its window's maximum as it is
        images = torch.cat([images, *[images.narrow(dim, size - 1, 1)] * (-size % side)], dim)
    return reduce(torch.maximum, images.unfold(dim, side, side).unbind(-1))


def _known(*sizes: Sequence[int]) -> bool:
    """Say whether sizes are numbers, not the symbols of a graph that is being exported."""
    return all(isinstance(side, int) for size in sizes for side in size)
