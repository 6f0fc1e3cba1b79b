"""Where predictions go: names, masks, overlays, and videos with their sound."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from spiritseg.deploy.card import ModelCard
from spiritseg.deploy.sources import Item, VideoReader
from spiritseg.errors import ConfigError, DataError, RunError, listed, unknown
from spiritseg.files import json_bytes, write_atomically
from spiritseg.pixels import Pixels

__all__ = ["Kind", "VideoWriter", "check_kind", "claim", "plan", "write_png"]

Kind = Literal["mask", "overlay", "video"]

_RECORD = ".spiritseg-predict.json"
_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


def plan(items: Sequence[Item], out: Path, kind: Kind) -> list[tuple[Item, Path]]:
    """Name the output of each item below a folder.

    An image ``a/b.jpg`` becomes ``a/b.png`` (mask) or ``a/b.overlay.png``; where two inputs
    would become one, both keep their suffix (``a/b.jpg.png``). A video becomes a folder of
    frames ``a/b.mp4/000000.png``, or with kind video ``a/b.overlay.mp4``.

    Args:
        items: what is segmented.
        out: the folder.
        kind: of the outputs.

    Returns:
        Each item with its file, or with the folder of its frames.

    Raises:
        DataError: two inputs would still share an output, or an output would replace an input.
    """
    short = [_name(item, kind, False) for item in items]
    names = [
        name if short.count(name) == 1 else _name(item, kind, True)
        for item, name in zip(items, short, strict=True)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"several inputs lead to one output:\n{listed(twice)}\nGive their common folder as "
            "the one input, or predict them into different folders."
        )
    inputs = {item.path.resolve() for item in items}
    planned = [(item, out / name) for item, name in zip(items, names, strict=True)]
    lost = [str(target) for _, target in planned if target.resolve() in inputs]
    if lost:
        raise DataError(f"outputs would replace inputs:\n{listed(lost)}\nChoose another --out.")
    return planned


def claim(out: Path, kind: Kind, card: ModelCard, opacity: float) -> None:
    """Take a folder for the outputs of one student, so that a later call can continue.

    Args:
        out: made if it is not there.
        kind: of the outputs.
        card: the student's.
        opacity: of overlays.

    Raises:
        RunError: it holds outputs of another student, or cannot be written.
    """
    path = out / _RECORD
    mine = {"student": card.student_sha256, "precision": card.precision}
    if kind != "mask":
        mine["opacity"] = f"{opacity:g}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        record = json.loads(path.read_bytes()) if path.exists() else {}
    except OSError as error:
        raise RunError(f"cannot use the folder {out}: {error.strerror}.") from None
    except ValueError:
        record = {}
    if record.get(kind, mine) != mine:
        raise RunError(
            f"{out} holds the {kind} outputs of another student or of other options; choose "
            "another --out, or empty it."
        )
    write_atomically(path, json_bytes({**record, kind: mine}))


def write_png(path: Path, pixels: Pixels) -> None:
    """Write a mask (H, W) or a picture (H, W, 3) whole, or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {path.parent}: {error.strerror}.") from None
    write_atomically(path, buffer.getvalue())


class VideoWriter:
    """Writes overlays to a video beside the sound of the source, under a name for the while.

    Args:
        path: the video; it appears under this name when `finish` is called.
        reader: the source: its rate, times and sound tracks are kept.
        size: (H, W) of the frames.
    """

    def __init__(self, path: Path, reader: VideoReader, size: tuple[int, int]) -> None:
        import av

        self.path, self.size = path, size
        self._part = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._part), "w", format=_FORMATS[path.suffix])
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream: Any = self._container.add_stream(codec, rate=reader.rate)
        stream.height, stream.width = size
        even = size[0] % 2 == 0 and size[1] % 2 == 0
        stream.pix_fmt = "yuv420p" if even or codec == "mpeg4" else "yuv444p"
        stream.codec_context.time_base = reader.time_base
        if codec == "libx264":
            stream.options = {"crf": "20", "preset": "veryfast"}
        else:
            stream.bit_rate = 8_000_000
        self._stream = stream
        self._sound = {
            track.index: self._container.add_stream_from_template(track) for track in reader.sound
        }
        self._step = max(1, round(1 / (reader.rate * reader.time_base)))
        self._time_base: Fraction = reader.time_base
        self._last: int | None = None

    def write(self, pixels: Pixels, time: int | None) -> None:
        """Append a frame (H, W, 3) uint8 at its time in the source."""
        import av

        if pixels.shape[:2] != self.size:
            box = (self.size[1], self.size[0])
            pixels = _resized(pixels, box)
        if time is None or (self._last is not None and time <= self._last):
            time = 0 if self._last is None else self._last + self._step
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = time, self._time_base
        self._last = time
        self._container.mux(self._stream.encode(frame))

    def sound(self, packet: Any) -> None:
        """Append a packet of sound as it is."""
        packet.stream = self._sound[packet.stream.index]
        self._container.mux(packet)

    def finish(self) -> None:
        """Write what is left and put the video under its name."""
        self._container.mux(self._stream.encode())
        self._container.close()
        self._part.replace(self.path)

    def discard(self) -> None:
        """Give the video up; nothing is left of it."""
        self._container.close()
        self._part.unlink(missing_ok=True)


def _resized(pixels: Pixels, box: tuple[int, int]) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize(box))


def _name(item: Item, kind: Kind, whole: bool) -> str:
    if item.kind == "image":
        stem = item.name if whole else str(Path(item.name).with_suffix(""))
        return f"{stem}.png" if kind == "mask" else f"{stem}.overlay.png"
    if kind != "video":
        return item.name if kind == "mask" else f"{item.name}.overlay"
    suffix = Path(item.name).suffix.lower()
    stem = item.name if whole or item.kind == "camera" else str(Path(item.name).with_suffix(""))
    return f"{stem}.overlay{suffix if suffix in _FORMATS else '.mkv'}"


def check_kind(kind: str) -> None:
    """Refuse an unknown kind of output."""
    if kind not in get_args(Kind):
        raise ConfigError(unknown("kind", kind, get_args(Kind)))
