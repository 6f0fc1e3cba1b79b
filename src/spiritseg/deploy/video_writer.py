"""Writing overlays as a video, with the sound of its source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spiritseg.deploy.video_reader import VideoReader, pyav
from spiritseg.errors import RunError
from spiritseg.files import clear_parts, make_folder, part_of
from spiritseg.images import Pixels

__all__ = ["FORMATS", "VideoWriter"]

# Of the videos that keep their suffix; the others become Matroska.
FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


class VideoWriter:
    """Writes overlays to a video beside the sound of the source, under a name for the while.

    Then `problem` says which sound the file cannot hold, if any; it is left out.

    Args:
        path: the video; it appears under this name when `finish` is called. Its folder is made
            if it is not there.
        reader: the source: its rate, times and sound tracks are kept.
        size: (H, W) of the frames.

    Raises:
        RunError: it cannot be written; so from every method, and nothing is left of it after
            `discard`.
    """

    def __init__(self, path: Path, reader: VideoReader, size: tuple[int, int]) -> None:
        self.path, self.size = path, size
        self.problem: str | None = None
        self._part = part_of(path)
        self._container: Any = None
        self._step = max(1, round(1 / (reader.rate * reader.time_base)))
        self._time_base: Fraction = reader.time_base
        self._last: int | None = None
        make_folder(path.parent)
        clear_parts(path.parent)
        try:
            with self._writing():
                self._open(reader)
        except BaseException:
            self.discard()
            raise

    def _open(self, reader: VideoReader) -> None:
        try:
            self._begin(reader, reader.sound)
        except pyav().error.FFmpegError:  # some kinds of sound are refused as late as this
            if not reader.sound:
                raise
            self._close()
            self._begin(reader, [])
        lost = [track for track in reader.sound if self._sound.get(track.index) is None]
        if lost:
            self.problem = _without(lost, self.path.suffix)

    def _begin(self, reader: VideoReader, sound: Sequence[Any]) -> None:
        av = pyav()
        self._container = av.open(str(self._part), "w", format=FORMATS[self.path.suffix])
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream: Any = self._container.add_stream(codec, rate=reader.rate)
        stream.height, stream.width = self.size
        even = self.size[0] % 2 == 0 and self.size[1] % 2 == 0
        stream.pix_fmt = "yuv420p" if even or codec == "mpeg4" else "yuv444p"
        stream.codec_context.time_base = reader.time_base
        if codec == "libx264":
            stream.options = {"crf": "20", "preset": "veryfast"}
        else:
            stream.bit_rate = 8_000_000
        self._stream = stream
        self._sound = {track.index: self._kept(track) for track in sound}
        self._container.start_encoding()

    def _kept(self, track: Any) -> Any:
        try:
            return self._container.add_stream_from_template(track)
        except ValueError:
            return None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pyav().error.FFmpegError) as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror or error}. What was written before "
                "is whole; make room or choose another folder, and start the same command again."
            ) from None

    def write(self, pixels: Pixels, time: int | None) -> None:
        """Append a frame.

        Args:
            pixels: (H, W, 3) uint8 RGB; brought to the video's size if it has another.
            time: in the source, in units of its time base; None for one step after the last.
        """
        if pixels.shape[:2] != self.size:
            box = (self.size[1], self.size[0])
            pixels = _resized(pixels, box)
        if time is None or (self._last is not None and time <= self._last):
            time = 0 if self._last is None else self._last + self._step
        frame = pyav().VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = time, self._time_base
        self._last = time
        with self._writing():
            self._container.mux(self._stream.encode(frame))

    def sound(self, packet: Any) -> None:
        """Append a packet of sound as it is; of a track that cannot be kept, do nothing.

        Args:
            packet: PyAV's, of one of the source's sound tracks.
        """
        track = self._sound.get(packet.stream.index)
        if track is None:
            return
        packet.stream = track
        with self._writing():
            self._container.mux(packet)

    def finish(self) -> None:
        """Write what is left and put the video under its name."""
        with self._writing():
            self._container.mux(self._stream.encode())
            self._container.close()
            self._part.replace(self.path)

    def discard(self) -> None:
        """Give the video up; nothing is left of it."""
        try:
            self._close()
        finally:
            with suppress(OSError):
                self._part.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._container is not None:
            with suppress(Exception):  # it writes what is left, and fails as it did before
                self._container.close()


def _without(lost: Sequence[Any], suffix: str) -> str:
    """Say which tracks of sound a file does not hold."""
    kinds = ", ".join(getattr(track.codec_context, "name", "of an unknown kind") for track in lost)
    hint = "" if suffix == ".mkv" else " (named .mkv, it may keep it)"
    return f"its sound ({kinds}) cannot be kept in {suffix}{hint}; its overlay is without it"


def _resized(pixels: Pixels, box: tuple[int, int]) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize(box))
