"""Decoding image and mask files to uint8, and a bounded memory of what was decoded."""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from spiritseg.errors import DataError
from spiritseg.pixels import opened, read_pixels, to_rgb

__all__ = ["Budget", "image_size", "read_image", "read_mask", "to_rgb"]

_SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap height and width
_EXIF_ORIENTATION = 0x0112
_PNG_SIGNATURE = 8  # bytes
_PNG_EXIF = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # texts that may say an orientation


class Budget:
    """Memory that decoded images may take in this process, shared by several data sets.

    Args:
        mib: how much, in MiB.
    """

    def __init__(self, mib: float) -> None:
        self._total = self._left = int(mib * 2**20)
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        """Bytes that are still free."""
        return self._left

    def take(self, nbytes: int) -> bool:
        """Reserve memory; False where too little is left."""
        with self._lock:
            if nbytes > self._left:
                return False
            self._left -= nbytes
            return True

    def give(self, nbytes: int) -> None:
        """Return memory that was reserved."""
        with self._lock:
            self._left += nbytes

    def __getstate__(self) -> int:
        return self._total  # a spawned worker starts with an empty memory of its own

    def __setstate__(self, total: int) -> None:
        self._total = self._left = total
        self._lock = threading.Lock()


def read_image(path: str | Path) -> torch.Tensor:
    """Decode an image of any usual kind to 8-bit RGB.

    Grey, palette, CMYK and 16-bit images are converted, transparency is dropped, and the EXIF
    orientation is applied.

    Args:
        path: a jpg, png, webp or bmp file.

    Returns:
        (3, H, W) uint8.

    Raises:
        BadImageError: where the file is missing, empty, truncated, not an image, or too large.
    """
    return torch.from_numpy(read_pixels(path)).permute(2, 0, 1).contiguous()


def read_mask(path: str | Path) -> npt.NDArray[Any]:
    """Read the raw values of a mask: the palette's indices or the grey levels.

    Args:
        path: a one-channel file of 1, 8 or 16 bits; RGB is taken where all channels agree.

    Returns:
        (H, W) integers.

    Raises:
        BadImageError: where the file cannot be decoded.
        DataError: where the mask is a coloured picture.
    """
    with opened(path) as image:
        mode, values = image.mode, np.array(image)
    if values.ndim == 3 and mode in ("RGB", "RGBA", "LA"):
        channels = values[..., :3] if mode != "LA" else values[..., :1]
        if (channels != channels[..., :1]).any():
            raise DataError(
                f"the mask {path} is a coloured picture; expected one channel that holds class "
                "numbers (PNG of mode L or P). Convert the colours to numbers first."
            )
        values = np.ascontiguousarray(channels[..., 0])
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise DataError(f"the mask {path} has mode {mode}; expected one channel of class numbers")
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def image_size(path: str | Path, oriented: bool = True) -> tuple[int, int]:
    """Read (H, W) without decoding the pixels.

    The rare PNG that has EXIF after its pixels, and one without its end, is decoded all the same.

    Args:
        path: the file.
        oriented: whether the EXIF orientation counts, as it does for images but not for masks.

    Returns:
        Height and width in pixels, as `read_image` or `read_mask` will give them.

    Raises:
        BadImageError: where there is no readable header, or a PNG is truncated.
    """
    with opened(path) as image:
        width, height = image.size
        sideways = oriented and _exif(image, Path(path)).get(_EXIF_ORIENTATION) in _SIDEWAYS
    return (width, height) if sideways else (height, width)


def _exif(image: Image.Image, path: Path) -> Image.Exif:
    """Return what ``image.getexif()`` does, which decodes a PNG to see what follows its pixels."""
    if isinstance(image, PngImageFile) and "exif" not in image.info and _ends_with_pixels(path):
        return Image.Image.getexif(image)
    return image.getexif()


def _ends_with_pixels(path: Path) -> bool:
    """Whether a PNG is not truncated and no EXIF follows its pixels, by the heads of its chunks."""
    pixels = False
    with path.open("rb") as file:
        file.seek(_PNG_SIGNATURE)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IEND":
                return True
            if kind == b"IDAT":
                pixels = True
            elif pixels:
                start = file.read(min(length, max(map(len, _PNG_EXIF))))
                if kind == b"eXIf" or start.startswith(_PNG_EXIF):
                    return False
                length -= len(start)
            file.seek(length + 4, 1)  # and the checksum
    return False
