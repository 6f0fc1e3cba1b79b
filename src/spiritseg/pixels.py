"""Decoding image files with Pillow, and nothing heavier: training and deployment read alike."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from spiritseg.errors import BadImageError, DataError

__all__ = ["Pixels", "opened", "oversized", "read_pixels", "to_rgb"]

Pixels = NDArray[np.uint8]

_LONGEST_SIDE = 65_535  # pixels; JPEG's own limit
_SHORTEST_SIDE = 64  # pixels that a network computes at the least: stride 32 behind a max-pool of 2


def read_pixels(source: str | Path | bytes, name: object = None) -> Pixels:
    """Decode an image of any usual kind to 8-bit RGB, as it is meant to be seen.

    Grey, palette, CMYK and 16-bit images are converted, transparency is dropped, and the EXIF
    orientation is applied.

    Args:
        source: a file, or its contents.
        name: what an error calls it; by default the file.

    Returns:
        (H, W, 3) uint8.

    Raises:
        BadImageError: where the file is missing, empty, truncated, not an image, or larger than
            `oversized` allows with `PIL.Image.MAX_IMAGE_PIXELS` (a decompression bomb).
    """
    with opened(source, name) as image:
        limit = Image.MAX_IMAGE_PIXELS
        if reason := oversized(image.height, image.width, limit, f"{limit} in all"):
            raise BadImageError(source if name is None else name, reason)
        return np.array(to_rgb(ImageOps.exif_transpose(image)))


def oversized(height: int, width: int, most: float | None, said: str) -> str | None:
    """Return why an image is too large for a network, or None where it is not.

    A network resizes its input to at least one stride, so that an image of 1 x 1,000,000 pixels
    costs as much as one of 64 x 1,000,000. Each side counts as 64 pixels or more.

    Args:
        height: in pixels.
        width: in pixels.
        most: pixels in all; None for any number.
        said: the limit as the reason names it.
    """
    given = f"it has {width} x {height} pixels (width x height)"
    if max(height, width) > _LONGEST_SIDE:
        return f"{given}, and a side may have {_LONGEST_SIDE} at the most"
    if most is None or max(height, _SHORTEST_SIDE) * max(width, _SHORTEST_SIDE) <= most:
        return None
    counted = f" (a side counts as {_SHORTEST_SIDE} or more)" if height * width <= most else ""
    return f"{given}, more than {said}{counted}"


@contextmanager
def opened(source: str | Path | bytes, name: object = None) -> Iterator[Image.Image]:
    """Open an image with Pillow, and name it in whatever goes wrong.

    Args:
        source: a file, or its contents.
        name: what an error calls it; by default the file.

    Raises:
        BadImageError: where it cannot be read.
    """
    name = (source if not isinstance(source, bytes) else "given") if name is None else name
    try:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if size == 0:
            raise BadImageError(name, "the file is empty")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            yield image
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImageError(name, "it is not an image file that Pillow knows") from error
    except FileNotFoundError as error:
        raise BadImageError(name, "there is no such file") from error
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise BadImageError(name, str(error) or type(error).__name__) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image of any usual mode to 8-bit RGB.

    Args:
        image: grey, palette, CMYK, 16-bit, or with transparency, which is dropped.

    Returns:
        The image in mode RGB.

    Raises:
        ValueError: for floating-point pixels, whose range is unknown.
    """
    if image.mode.startswith("I"):  # 16 bits (older Pillow: 32 bits that hold 16)
        levels = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; expected 8 or 16 bits")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")  # straight to RGB warns of transparency
    return image if image.mode == "RGB" else image.convert("RGB")
