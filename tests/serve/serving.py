"""Students without an engine, images, and a running server, for the tests of serve."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from starlette.types import ASGIApp

from spiritseg.images import Pixels
from spiritseg.serve import make_server

COLOURS = ((70, 70, 70), (128, 64, 128))


class Threshold:
    """Calls a pixel road where its red is above a level; counts the concurrent calls."""

    classes = ("background", "road")
    colours = COLOURS

    def __init__(self, level: int) -> None:
        self.level = level
        self.inside = self.most_inside = self.calls = 0
        self.go = threading.Event()
        self.go.set()

    def masks(self, images: Pixels) -> Pixels:
        self.calls += 1
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.go.wait(20)
        self.inside -= 1
        return (images[..., 0] > self.level).astype(np.uint8)


def thresholds() -> Any:
    """Two students, of which low finds three quarters of `half_red` to be road, high a quarter."""
    return {"low": Threshold(63), "high": Threshold(191)}


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


def segmented(client: Any, data: bytes, student: str = "low", mask: bool = False) -> Any:
    """Upload an image and segment it, with two requests; return the answer or the error."""
    (path,) = client.post("/gradio_api/upload", files={"files": ("a.jpg", data)}).json()
    return asked(client, {"path": path}, student, mask)


def asked(client: Any, image: Any, student: str = "low", mask: bool = False) -> Any:
    answer = client.post("/gradio_api/run/segment", json={"data": [image, student, mask]}).json()
    return answer["data"][0] if "data" in answer else answer["error"]


@contextmanager
def running(app: ASGIApp) -> Iterator[tuple[str, int]]:
    """Serve an application on a free port of this machine."""
    server = make_server(app)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join(20)
