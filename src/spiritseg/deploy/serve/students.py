"""The students that are served, and what they answer for a frame."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from spiritseg.deploy.sources import check_path
from spiritseg.errors import BundleError, ConfigError, unknown
from spiritseg.export.engines import Runtime
from spiritseg.export.onnx import LARGE_BYTES
from spiritseg.export.opening import open_runtime
from spiritseg.pixels import Pixels

__all__ = ["Answer", "Students", "jpeg_url", "open_students", "png", "png_url"]

_SHOWN = 960  # pixels of the longer side, of what the page shows


@dataclass(frozen=True)
class Answer:
    """What a student found.

    Args:
        mask: (H, W) uint8 class indices.
        latency_ms: of the pass, with its pre- and postprocessing.
        area: share of the pixels of each class, 0 to 1.
    """

    mask: Pixels
    latency_ms: float
    area: dict[str, float]


class Students:
    """Several students under their names; one of them runs at a time.

    Args:
        runtimes: by name.
    """

    def __init__(self, runtimes: dict[str, Runtime]) -> None:
        self.runtimes = runtimes
        self._one = threading.Lock()  # an engine may not be called twice at once
        self._size: dict[str, tuple[int, ...]] = {}  # of the last image, by student
        self._large: set[str] = set()  # students that may hold the memory of a large image

    @property
    def names(self) -> list[str]:
        """As they were given."""
        return list(self.runtimes)

    def get(self, name: str) -> Runtime:
        """Return a student by its name.

        Args:
            name: one of `names`.

        Returns:
            The student.

        Raises:
            ConfigError: there is none of this name.
        """
        if name not in self.runtimes:
            raise ConfigError(unknown("student", name, self.runtimes))
        return self.runtimes[name]

    def answer(self, name: str, image: Pixels) -> Answer:
        """Segment an image; twice where the last one had another size, the second time timed.

        An engine's first pass at a size costs up to three of the next ones.

        Args:
            name: of the student.
            image: (H, W, 3) uint8 RGB.

        Returns:
            What it found.

        Raises:
            ConfigError: there is no student of this name.
        """
        runtime = self.get(name)
        with self._one:
            if image.nbytes > LARGE_BYTES:
                self._large.add(name)
            if self._size.get(name) != image.shape:
                runtime.masks(image[None])
                self._size[name] = image.shape
            started = time.perf_counter()
            mask = runtime.masks(image[None])[0]
            latency_ms = 1000 * (time.perf_counter() - started)
        counts = np.bincount(mask.ravel(), minlength=len(runtime.classes)) / mask.size
        area = {k: float(share) for k, share in zip(runtime.classes, counts, strict=False)}
        return Answer(mask, latency_ms, area)

    def warm_up(self) -> None:
        """Run each once: the first pass of an engine is slow."""
        for name in self.names:
            self._small_pass(name)

    @contextmanager
    def giving_back(self) -> Iterator[None]:
        """Give back the working memory of large images afterwards.

        An engine that keeps it (see `OnnxRuntime`) gives it back with the next small image, which
        may be hours away; so one is run here.
        """
        try:
            yield
        finally:
            while self._large:
                self._small_pass(self._large.pop())

    def _small_pass(self, name: str) -> None:
        with self._one:
            self.get(name).masks(np.zeros((1, 128, 128, 3), np.uint8))


def open_students(
    paths: Sequence[str | Path],
    threads: int | None = None,
    device: str = "cpu",
    trust: bool = False,
) -> Students:
    """Open students for serving; see `open_runtime`.

    Args:
        paths: runs, bundles or exported files. Each is called after its file or run; equal
            names get a number.
        threads: of a forward pass on the CPU, 1 or more; by default the engine's own choice.
        device: cpu or cuda.
        trust: open a .pt2, or a bundle of your own classes.

    Returns:
        The students, in the order of the paths.

    Raises:
        BundleError: one is missing, altered, truncated, or not of spiritseg.
        ConfigError: threads below 1, or a device that is not there.
        MissingExtraError: an engine is not installed.
    """
    found: dict[str, Runtime] = {}
    for given in paths:
        path = Path(given)
        check_path(path, BundleError)
        name = called = _name(path.resolve())
        number = 1
        while name in found:
            number += 1
            name = f"{called} ({number})"
        found[name] = open_runtime(path, threads, device, trust)
    return Students(found)


def png(mask: Pixels, runtime: Runtime | None = None) -> bytes:
    """Encode a mask as a PNG.

    Args:
        mask: (H, W) uint8 class indices.
        runtime: a student in whose colours the mask is shown; None for grey class indices.

    Returns:
        The file's contents.
    """
    picture = Image.fromarray(mask)
    if runtime is not None:
        picture.putpalette(np.array(runtime.colours, np.uint8).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def png_url(mask: Pixels, runtime: Runtime) -> str:
    """Return a coloured mask for the page.

    Args:
        mask: (H, W) uint8 class indices.
        runtime: the student whose colours they are.

    Returns:
        A data URL of a PNG, whose longer side has 960 pixels at the most.
    """
    shown = Image.fromarray(mask)
    shown = shown.resize(_box(shown), Image.Resampling.NEAREST)
    return _url("image/png", png(np.asarray(shown), runtime))


def jpeg_url(image: Pixels) -> str:
    """Return an image for the page.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        A data URL of a JPEG, whose longer side has 960 pixels at the most.
    """
    shown = Image.fromarray(image)
    buffer = io.BytesIO()
    shown.resize(_box(shown), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=85)
    return _url("image/jpeg", buffer.getvalue())


def _box(image: Image.Image) -> tuple[int, int]:
    factor = min(1.0, _SHOWN / max(image.size))
    return max(1, round(image.width * factor)), max(1, round(image.height * factor))


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _name(path: Path) -> str:
    if path.is_file():
        return path.stem
    return path.parent.name if path.name == "student" else path.name
