"""The served students: an upload in, a mask and its figures out."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from spiritseg.errors import BadImageError, BundleError, ConfigError, DataError, unknown
from spiritseg.export.engines import Runtime
from spiritseg.export.opening import open_runtime
from spiritseg.images import Pixels, opened, oversized, read_pixels
from spiritseg.predict.inputs import check_path

__all__ = ["Answer", "Students", "open_students"]

# The first bytes of each accepted format. Nothing else reaches a decoder: Pillow would start
# Ghostscript for PostScript, for instance.
_FORMATS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
_LARGE_BYTES = 12_000_000  # 4 megapixels; an engine may keep the working memory of such an image


@dataclass(frozen=True)
class Answer:
    """A student's answer for an image.

    Args:
        image: (H, W, 3) uint8 RGB, upright.
        mask: (H, W) uint8 class indices.
        latency_ms: Duration of the pass, with pre- and postprocessing.
        area: Share of the pixels by class, 0 to 1.
    """

    image: Pixels
    mask: Pixels
    latency_ms: float
    area: dict[str, float]


class Students:
    """Students by name. One image is decoded and segmented at a time, which bounds the memory.

    Args:
        runtimes: Opened students by name.
        max_mib: Largest upload in MiB, above 0.
        max_megapixels: Largest image in megapixels, above 0.

    Raises:
        ConfigError: There is no student, or a limit is not above 0.
    """

    def __init__(
        self, runtimes: Mapping[str, Runtime], max_mib: float = 32, max_megapixels: float = 10
    ) -> None:
        if not runtimes:
            raise ConfigError("serve: expected at least one student, got none.")
        for option, limit in (("mib", max_mib), ("megapixels", max_megapixels)):
            if not limit > 0:
                raise ConfigError(f"serve: expected --max-{option} above 0, got {limit}.")
        self.runtimes = runtimes
        self.names = list(runtimes)
        self.max_bytes = int(max_mib * 2**20)
        self.max_megapixels = max_megapixels
        self._turn = threading.Lock()
        self._size: dict[str, tuple[int, ...]] = {}  # of the last image, by student

    def segment(self, file: Path, name: str) -> Answer:
        """Segment an uploaded image.

        The first pass at a new size takes up to three times as long as the next, and is not timed.

        Args:
            file: The upload.
            name: Name of the student.

        Returns:
            The answer.

        Raises:
            ConfigError: There is no student of this name.
            DataError: The upload is not an image, is damaged, or exceeds a limit.
        """
        if name not in self.runtimes:
            raise ConfigError(unknown("student", name, self.runtimes))
        runtime = self.runtimes[name]
        try:
            with self._turn:
                image = _read(file, self.max_megapixels)
                if self._size.get(name) != image.shape:
                    runtime.masks(image[None])
                    self._size[name] = image.shape
                started = time.perf_counter()
                mask = runtime.masks(image[None])[0]
                latency_ms = 1000 * (time.perf_counter() - started)
                if image.nbytes > _LARGE_BYTES:
                    self._small_pass(name)
        except MemoryError:
            raise DataError("there is not enough memory for this image; scale it down.") from None
        counts = np.bincount(mask.ravel(), minlength=len(runtime.classes)) / mask.size
        area = {k: float(share) for k, share in zip(runtime.classes, counts, strict=False)}
        return Answer(image, mask, latency_ms, area)

    def warm_up(self) -> None:
        """Run each student once: the first pass of an engine is slow."""
        for name in self.names:
            self._small_pass(name)

    def _small_pass(self, name: str) -> None:
        """Run a small image, with which an engine also frees the memory of a large one."""
        self.runtimes[name].masks(np.zeros((1, 128, 128, 3), np.uint8))


def open_students(
    paths: Sequence[str | Path], threads: int | None, device: str, trust: bool
) -> dict[str, Runtime]:
    """Open students by the name of their file or run, numbered if equal; see `open_runtime`."""
    found: dict[str, Runtime] = {}
    for path in map(Path, paths):
        check_path(path, BundleError)
        whole = path.resolve()
        run = whole.parent if whole.name == "student" else whole
        name = base = whole.stem if whole.is_file() else run.name
        number = 1
        while name in found:
            number += 1
            name = f"{base} ({number})"
        found[name] = open_runtime(path, threads, device, trust)
    return found


def _read(file: Path, megapixels: float) -> Pixels:
    """Decode an uploaded image to (H, W, 3) uint8; its format and size are checked first."""
    try:
        data = file.read_bytes()
    except OSError:
        raise DataError("the upload is no longer there; upload it again.") from None
    if data and not (data.startswith(_FORMATS) or data[:4] + data[8:12] == b"RIFFWEBP"):
        raise DataError("the upload is not a JPEG, PNG, WebP, BMP or TIFF image.")
    try:
        with opened(data, "uploaded") as image:
            most = f"the {megapixels:g} megapixels that this server accepts"
            if reason := oversized(image.height, image.width, megapixels * 1e6, most):
                raise DataError(f"{reason}; scale it down.")
        return read_pixels(data, "uploaded")
    except BadImageError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):  # far beyond any limit
            raise DataError(f"it has too many pixels ({error.reason}).") from None
        raise DataError(f"cannot read the upload: {error.reason.rstrip('.')}.") from None
