"""Students without an engine, and uploads of every kind, for the tests of the server."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spiritseg.export.engines import Runtime
from spiritseg.export.metadata import ModelCard
from spiritseg.pixels import Pixels

COLOURS = ((70, 70, 70), (128, 64, 128))


class Threshold(Runtime):
    """Calls a pixel road where its red is above a level; counts who is inside at once."""

    def __init__(self, level: int, classes: tuple[str, ...] = ("background", "road")) -> None:
        card = ModelCard(
            name="threshold",
            classes=classes,
            colours=COLOURS,
            pool=1,
            preprocess=True,
            output="mask",
            precision="fp32",
            size=(48, 64),
            dynamic=True,
            params=1,
            gflops=0.0,
            student_sha256="",
            version="",
        )
        super().__init__(card, "none", Path("threshold"))
        self.level = level
        self.inside = self.most = self.calls = 0
        self.go = threading.Event()
        self.go.set()

    def forward(self, images: NDArray[Any]) -> NDArray[Any]:
        self.inside += 1
        self.calls += 1
        self.most = max(self.most, self.inside)
        self.go.wait(20)
        self.inside -= 1
        red = images[..., 0] if images.dtype == np.uint8 else images[:, 0] * 255
        return (red > self.level).astype(np.uint8)


def half_red(height: int = 48, width: int = 64) -> Pixels:
    """Red rises from 0 at the left to 255 at the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    pixels[..., 1] = 90
    return pixels


def encoded(image: Image.Image | Pixels, kind: str = "PNG", **options: Any) -> bytes:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def encoded_video(count: int = 8, rate: int = 4, kind: str = "mp4") -> bytes:
    """Frames whose road grows from none to all."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream("mpeg4" if kind == "avi" else "libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(count):
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[:, : 64 * number // (count - 1)] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
