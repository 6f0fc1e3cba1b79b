"""Masks in the colours of their classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["colourise", "overlay"]

Pixels = NDArray[np.uint8]


def colourise(mask: Pixels, colours: Sequence[tuple[int, int, int]]) -> Pixels:
    """Paint a mask in the colours of its classes.

    Args:
        mask: (H, W) uint8 class indices; values without a colour, such as 255, become black.
        colours: (R, G, B) of each class, 0 to 255.

    Returns:
        (H, W, 3) uint8.
    """
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    return palette[mask]


def overlay(
    image: Pixels, mask: Pixels, colours: Sequence[tuple[int, int, int]], opacity: float = 0.5
) -> Pixels:
    """Blend an image with its coloured mask.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 class indices.
        colours: (R, G, B) of each class, 0 to 255.
        opacity: Share of the mask's colours, 0 to 1.

    Returns:
        (H, W, 3) uint8.
    """
    painted = Image.fromarray(colourise(mask, colours))
    return np.asarray(Image.blend(Image.fromarray(image), painted, opacity))
