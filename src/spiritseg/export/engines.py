"""One interface to a student, whichever engine runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spiritseg.errors import ConfigError, DataError, MissingExtraError
from spiritseg.export.metadata import ModelCard
from spiritseg.images import Pixels

__all__ = ["Runtime", "import_engine", "prepare"]

Floats = NDArray[np.float32]
Array = NDArray[Any]


class Runtime(ABC):
    """A student that is ready to run.

    Args:
        card: Its metadata.
        name: Name of the engine.
        path: File or folder that it came from.
        streams: Number of calls of `masks` that gain from running at once, in threads.
    """

    def __init__(self, card: ModelCard, name: str, path: Path, streams: int = 1) -> None:
        self.card = card
        self.name = name
        self.path = path
        self.streams = streams

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of a mask's values."""
        return self.card.classes

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """(R, G, B) of each class, 0 to 255."""
        return self.card.colours

    @abstractmethod
    def forward(self, images: Array) -> Array:
        """Run the network as it was exported.

        Args:
            images: (N, H, W, 3) uint8, or (N, 3, h, w) float32 without preprocessing.

        Returns:
            Logits or masks, as in the metadata.
        """

    def logits(self, images: Pixels) -> Floats:
        """Return logits on the images' own grid.

        Args:
            images: (N, H, W, 3) uint8 RGB.

        Returns:
            (N, K, H, W) float32.

        Raises:
            ConfigError: if the export gives masks.
            DataError: if these are not images.
        """
        if self.card.output == "mask":
            raise ConfigError(
                f"{self.path} gives masks, not logits: it was exported with argmax. Export the "
                "student without it."
            )
        return cast(Floats, self._on_grid(images))

    def masks(self, images: Pixels) -> Pixels:
        """Segment images.

        Args:
            images: (N, H, W, 3) uint8 RGB.

        Returns:
            (N, H, W) uint8 class indices.

        Raises:
            DataError: if these are not images.
        """
        found = self._on_grid(images)
        return found if self.card.output == "mask" else _largest(found)

    def _on_grid(self, images: Pixels) -> Array:
        """Run images of any size and batch through whatever the export takes."""
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise DataError(
                f"expected images (N, H, W, 3) uint8, got {images.shape} {images.dtype}; convert "
                "them to 8-bit RGB."
            )
        card = self.card
        size = (images.shape[1], images.shape[2])
        if min(size) < 1 or len(images) == 0:
            raise DataError(f"expected images of at least one pixel, got {images.shape}.")
        if not card.dynamic and (size != card.size or len(images) != 1):
            found = [self._fixed(image) for image in images]
            return np.stack([_resized(one, size) for one in found])
        return self._whole(images)

    def _whole(self, images: Pixels) -> Array:
        """Run images of a size that the export takes; answer on their grid."""
        card = self.card
        if card.preprocess:
            return self.forward(np.ascontiguousarray(images))
        found = self.forward(prepare(images, card.pool))
        height, width = (card.pool * side for side in found.shape[-2:])  # what its windows cover
        whole = np.stack([_resized(one, (height, width)) for one in found])
        return whole[..., : images.shape[1], : images.shape[2]]

    def _fixed(self, image: Pixels) -> Array:
        height, width = self.card.size
        picture = Image.fromarray(image)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return cast(Array, self._whole(np.asarray(picture)[None])[0])

    def colourise(self, mask: Pixels) -> Pixels:
        """Return a mask (H, W) in the colours of its classes, (H, W, 3) uint8."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self.colours)] = self.colours
        return palette[mask]

    def overlay(self, image: Pixels, mask: Pixels, opacity: float = 0.5) -> Pixels:
        """Return an image (H, W, 3) under its coloured mask, (H, W, 3) uint8.

        Args:
            image: Image that was segmented.
            mask: (H, W) class indices.
            opacity: Opacity of the mask, 0 to 1.
        """
        coloured = Image.fromarray(self.colourise(mask))
        return np.asarray(Image.blend(Image.fromarray(image), coloured, opacity))


def prepare(images: Pixels, side: int) -> Floats:
    """Scale and max-pool in numpy, as an export with preprocessing does inside.

    Args:
        images: (N, H, W, 3) uint8.
        side: Side of the max-pool's windows; those at odd borders are smaller.

    Returns:
        (N, 3, ceil(H / side), ceil(W / side)) float32 in [0, 1].
    """
    number, height, width = images.shape[:3]
    rows, columns = -(-height // side), -(-width // side)
    padded = np.zeros((number, rows * side, columns * side, 3), np.uint8)
    padded[:, :height, :width] = images
    windows = padded.reshape(number, rows, side, columns, side, 3)
    pooled = windows.max((2, 4)).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pooled).astype(np.float32) / np.float32(255)


def import_engine(name: str, extra: str) -> Any:
    """Import what runs a student.

    Args:
        name: Name of the module.
        extra: Extras of spiritseg that install it; empty for torch.

    Raises:
        MissingExtraError: if it, or what it imports, is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        wanted = f"spiritseg[{extra}]" if extra else "spiritseg"
        raise MissingExtraError(
            f"{error.name or name} is not installed, and this student needs it: pip install "
            f"'{wanted}'."
            + ("" if extra else " Or export the student to .onnx, which runs without torch.")
        ) from None


def _largest(logits: Array) -> Pixels:
    """Return the argmax over the classes, the first of equals; many times faster than numpy's."""
    best = logits[:, 0].copy()
    found = np.zeros(best.shape, np.uint8)
    for number in range(1, logits.shape[1]):
        better = logits[:, number] > best
        found[better] = number
        if number + 1 < logits.shape[1]:
            np.maximum(best, logits[:, number], out=best)
    return found


def _resized(values: Array, size: tuple[int, int]) -> Array:
    """Bring logits (K, h, w) bilinearly, or a mask (h, w) by nearest neighbour, to a size."""
    if values.shape[-2:] == size:
        return values
    box = (size[1], size[0])
    if values.ndim == 2:
        return np.asarray(Image.fromarray(values).resize(box, Image.Resampling.NEAREST))
    planes = [Image.fromarray(plane).resize(box, Image.Resampling.BILINEAR) for plane in values]
    return np.stack([np.asarray(plane) for plane in planes])
