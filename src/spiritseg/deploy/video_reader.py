"""Videos and cameras, decoded ahead of the network in a thread of their own."""

from __future__ import annotations

import queue
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from spiritseg.deploy.sources import Item
from spiritseg.deploy.video_format import VIDEO_HEAD, video_format
from spiritseg.errors import BadImageError, MissingExtraError
from spiritseg.images import Pixels

__all__ = ["Frame", "Sound", "VideoReader", "camera_address", "pyav", "upright"]

_CLOCK = re.compile(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d{1,12})?)\Z", re.ASCII)


@dataclass(frozen=True)
class Frame:
    """A decoded frame.

    Args:
        pixels: (H, W, 3) uint8, as it is meant to be seen.
        time: of its showing, in units of the stream's time base; None where unknown.
    """

    pixels: Pixels
    time: int | None


@dataclass(frozen=True)
class Sound:
    """A packet of a sound track, as it was compressed."""

    packet: Any


class VideoReader:
    """Decodes a video in a thread of its own, a few frames ahead.

    Iterating gives `Frame` and `Sound` in the file's order. Then `problem` says what was
    wrong with it, if anything.

    Args:
        item: a video or a camera.
        ahead: frames that wait at the most; a camera's oldest are dropped instead.
        sound: whether sound packets are given.

    Raises:
        BadImageError: it cannot be opened, or has no picture.
    """

    def __init__(self, item: Item, ahead: int = 8, sound: bool = False) -> None:
        av = pyav()
        self._error: type[Exception] = av.error.FFmpegError
        self.live = item.kind == "camera"
        file, format = camera_address(str(item.path)) if self.live else _file_format(item.path)
        try:
            self._container = av.open(file, format=format)
        except Exception as error:  # also OSError and ValueError
            raise BadImageError(item.path, f"it cannot be opened as a video ({error})") from None
        if not self._container.streams.video:
            self._container.close()
            raise BadImageError(item.path, "it has no picture")
        self.video = self._container.streams.video[0]
        self.video.thread_type = "AUTO"
        self._tracks = list(self._container.streams.audio)
        self.sound = self._tracks if sound else []
        self.rate: Fraction = self.video.average_rate or Fraction(25)
        self.time_base: Fraction = self.video.time_base or 1 / self.rate
        self.expected = 0 if self.live else self._length()
        self._problem: str | None = None
        self._queue: queue.Queue[Frame | Sound | None] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._decode, name="decode-video", daemon=True)
        self._thread.start()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stopped.set()
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._thread.join(5)
        if not self._thread.is_alive():  # a camera may hang in its driver
            self._container.close()

    def __iter__(self) -> Iterator[Frame | Sound]:
        while not self._ended:
            try:
                given = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            if given is None:
                return
            yield given

    @property
    def problem(self) -> str | None:
        """What was wrong with it; None too where `end` was called, and no more was wanted."""
        return None if self._ended else self._problem

    def end(self) -> None:
        """Let the iteration end soon; safe in a signal handler, which may wait for no lock."""
        self._ended = True

    def _decode(self) -> None:
        count = packets = broken = 0
        reached = Fraction(0)
        try:
            for packet in self._container.demux(self.video, *self._tracks):
                reached = max(reached, _end(packet))
                if packet.stream.type != "video":
                    if packet.dts is not None and self.sound:
                        self._put(Sound(packet))
                    continue
                packets += packet.size > 0 and not packet.is_corrupt  # as one is that was cut
                try:
                    frames = packet.decode()
                except self._error:
                    broken += 1
                    continue
                for frame in frames:
                    self._put(Frame(upright(frame), frame.pts))
                    count += 1
                if self._stopped.is_set():
                    return
        except Exception as error:
            self._problem = f"it cannot be read to its end ({error}); {count} frames were read"
        finally:
            if self._problem is None and not self._stopped.is_set():
                self._problem = self._shortfall(count, packets, broken, reached)
            self._put(None)

    def _put(self, value: Frame | Sound | None) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(value, timeout=0.0 if self.live else 0.2)
            except queue.Full:
                if self.live:  # what is shown shall be now
                    with suppress(queue.Empty):
                        self._queue.get_nowait()
            else:
                return

    def _length(self) -> int:
        """Return how many packets the picture has, or else about how many frames."""
        if self.video.frames:
            return _packets(self.video)
        return int(self._seconds() * self.rate + Fraction(1, 2))

    def _seconds(self) -> Fraction:
        if self.video.duration:
            return Fraction(self.video.duration * self.time_base)
        end = _tagged_end(self.video.metadata) or self._file_end()
        return max(Fraction(0), end - (self.video.start_time or 0) * self.time_base)

    def _file_end(self) -> Fraction:
        return Fraction(self._container.duration or 0, 1_000_000)

    def _shortfall(self, count: int, packets: int, broken: int, reached: Fraction) -> str | None:
        exact = bool(self.video.frames)
        there = packets if exact else count
        allowed = 0 if exact else max(2, self.expected // 50)  # a duration is a rough count
        rest = self._file_end() - reached  # another track may be longer than the picture
        to_its_end = not self._has_length() and rest * self.rate <= allowed
        if there + allowed < self.expected and not to_its_end:
            return f"it ends early: {there} frames of {self.expected}"
        if broken or count == 0:
            return f"{broken} of its packets are broken; {count} frames were read"
        return None

    def _has_length(self) -> bool:
        """Whether the length is the picture's own, not the file's."""
        own = self.video.frames or self.video.duration or _tagged_end(self.video.metadata)
        return bool(own)


def _packets(video: Any) -> int:
    """Return how many packets of a stream are in the file and not cut off by its edit list.

    What an edit list leaves of an MP4 is what FFmpeg's index has. An older PyAV does not show it.
    """
    index = getattr(video, "index_entries", ()) if video.container.format.name[:3] == "mov" else ()
    return len(index) or int(video.frames)


def _tagged_end(tags: dict[str, str]) -> Fraction | None:
    """Return a Matroska track's end in seconds: its file's is the longest track's."""
    for name, value in tags.items():
        found = _CLOCK.match(value) if name.startswith("DURATION") else None
        if found:
            return int(found[1]) * 3600 + int(found[2]) * 60 + Fraction(found[3])
    return None


def _end(packet: Any) -> Fraction:
    """Return when what is in a packet has been shown or heard, in seconds."""
    if packet.pts is None or packet.time_base is None:
        return Fraction(0)
    return Fraction((packet.pts + (packet.duration or 0)) * packet.time_base)


def _file_format(path: Path) -> tuple[str, str]:
    try:
        with path.open("rb") as file:
            found = video_format(file.read(VIDEO_HEAD))
    except OSError as error:
        raise BadImageError(path, f"it cannot be read ({error.strerror})") from None
    if found is None:
        raise BadImageError(path, "it cannot be opened as a video (its first bytes are of none)")
    return str(path), found


def camera_address(number: str) -> tuple[str, str]:
    """Name a camera as FFmpeg does on this system.

    Args:
        number: what stands behind ``camera:``.

    Returns:
        What FFmpeg opens, and in which format.
    """
    if sys.platform == "darwin":
        return number, "avfoundation"
    if sys.platform == "win32":
        return f"video={number}", "dshow"
    return f"/dev/video{number}", "v4l2"


def upright(frame: Any) -> Pixels:
    """Decode a frame to RGB, turned as its display matrix says.

    Args:
        frame: PyAV's; its rotation is in degrees counter-clockwise, and counts as the nearest
            quarter turn.

    Returns:
        (H, W, 3) uint8, as it is meant to be seen.
    """
    pixels: Pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def pyav() -> Any:
    """Import PyAV.

    Returns:
        The module ``av``, with ``av.error``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import av
        import av.error
    except ImportError:
        raise MissingExtraError(
            "videos and cameras need PyAV, which is not installed: pip install 'spiritseg[deploy]'."
        ) from None
    return av
