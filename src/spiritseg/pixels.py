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

__all__ = ["Pixels", "opened", "read_pixels", "to_rgb"]

Pixels = NDArray[np.uint8]


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
        BadImageError: where the file is missing, empty, truncated, not an image, or has more
            than `PIL.Image.MAX_IMAGE_PIXELS` pixels (a decompression bomb).
    """
    with opened(source, name) as image:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise BadImageError(
                source if name is None else name,
                f"it has {image.width} x {image.height} pixels (width x height), more than "
                f"{limit} in all",
            )
        return np.array(to_rgb(ImageOps.exif_transpose(image)))


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
