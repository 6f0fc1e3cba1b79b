"""Finding image files, and decoding them with Pillow: what one command accepts, all do."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from spiritseg.errors import BadImageError, DataError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "IMAGE_SUFFIXES",
    "MASK_SUFFIXES",
    "Pixels",
    "files_below",
    "image_size",
    "opened",
    "oversized",
    "read_image",
    "read_mask",
    "read_pixels",
    "to_rgb",
]

Pixels = NDArray[np.uint8]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # lossless formats only

_LONGEST_SIDE = 65_535  # pixels; JPEG's own limit
_SHORTEST_SIDE = 64  # pixels that a network computes at the least: stride 32 behind a max-pool of 2
_SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap height and width
_EXIF_ORIENTATION = 0x0112


def files_below(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Find files at any depth, sorted by their path below the folder.

    Args:
        folder: where to look. Hidden files and folders are left out, links are followed, and a
            folder that several links lead to counts once.
        suffixes: lower-case suffixes; files may have them in any case.

    Returns:
        The files, including links that lead nowhere.

    Raises:
        DataError: if a folder below cannot be read.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for here, below, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(here)
        if real in seen:  # a link that leads back up, or to where another one led
            below.clear()
            continue
        seen.add(real)
        # lost+found, at the top of a file system, is readable by root alone.
        below[:] = sorted(n for n in below if n[0] != "." and n != "lost+found")
        wanted = (n for n in names if n.lower().endswith(tuple(suffixes)) and n[0] != ".")
        found.extend(Path(here, name) for name in wanted)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_pixels(source: str | Path | bytes, name: object = None) -> Pixels:
    """Decode an image of any usual kind to 8-bit RGB, in its EXIF orientation.

    Grey, palette, CMYK and 16-bit images are converted; transparency is dropped.

    Args:
        source: a file, or its contents.
        name: what errors call it; by default the file.

    Returns:
        (H, W, 3) uint8.

    Raises:
        BadImageError: if the file is missing, empty, truncated, not an image, or larger than
            `oversized` allows with `PIL.Image.MAX_IMAGE_PIXELS` (a decompression bomb).
    """
    with opened(source, name) as image:
        limit = Image.MAX_IMAGE_PIXELS
        if reason := oversized(image.height, image.width, limit, f"{limit} in all"):
            raise BadImageError(source if name is None else name, reason)
        return np.array(to_rgb(ImageOps.exif_transpose(image)))


def read_image(path: str | Path) -> Tensor:
    """Decode an image to a tensor, (3, H, W) uint8; see `read_pixels`."""
    import torch

    return torch.from_numpy(read_pixels(path)).permute(2, 0, 1).contiguous()


def read_mask(path: str | Path) -> NDArray[Any]:
    """Read the raw values of a mask: palette indices or grey levels.

    Args:
        path: a one-channel file of 1, 8 or 16 bits, or RGB whose channels are equal.

    Returns:
        (H, W) integers.

    Raises:
        BadImageError: if the file cannot be decoded.
        DataError: if the mask is a coloured picture.
    """
    with opened(path) as image:
        mode, values = image.mode, np.array(image)
    if values.ndim == 3 and mode in ("RGB", "RGBA", "LA"):
        channels = values[..., :3] if mode != "LA" else values[..., :1]
        if (channels != channels[..., :1]).any():
            raise DataError(
                f"the mask {path} is a coloured picture; expected one channel of class numbers "
                "(PNG of mode L or P). Convert the colours to numbers first."
            )
        values = np.ascontiguousarray(channels[..., 0])
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise DataError(f"the mask {path} has mode {mode}; expected one channel of class numbers")
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def image_size(path: str | Path) -> tuple[int, int]:
    """Read (H, W) of an image, in its EXIF orientation, from the file's header.

    Raises:
        BadImageError: if there is no readable header.
    """
    with opened(path) as image:
        width, height = image.size
        exif = Image.Image.getexif(image)  # a PNG's own getexif decodes the pixels
    return (width, height) if exif.get(_EXIF_ORIENTATION) in _SIDEWAYS else (height, width)


def oversized(height: int, width: int, most: float | None, said: str) -> str | None:
    """Return why an image is too large for a network, or None if it is not.

    A network resizes its input to at least one stride, so that an image of 1 x 1,000,000 pixels
    costs as much as one of 64 x 1,000,000. Each side counts as 64 pixels or more.

    Args:
        height: in pixels.
        width: in pixels.
        most: pixels in all; None for any number.
        said: the limit in words, for the message.
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
    """Open an image with Pillow; whatever goes wrong is a `BadImageError` that names it.

    Args:
        source: a file, or its contents.
        name: what errors call it; by default the file.

    Raises:
        BadImageError: if it cannot be read.
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
    except Exception as error:  # decoders raise errors of any type on broken files
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


def _refuse(error: OSError) -> None:
    raise DataError(
        f"cannot look into the folder {error.filename}: {error.strerror or error}. Make it "
        "readable, or move it elsewhere: its images would be left out."
    ) from error
