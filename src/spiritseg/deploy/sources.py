"""Images, folders, globs, videos and cameras: found, named, and decoded ahead of the network."""

from __future__ import annotations

import glob
import queue
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from spiritseg.deploy.video_format import VIDEO_HEAD, video_format
from spiritseg.errors import BadImageError, ConfigError, MissingExtraError
from spiritseg.pixels import Pixels, read_pixels

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Frame",
    "Item",
    "Sound",
    "VideoReader",
    "find_images",
    "find_items",
    "pyav",
    "read_ahead",
    "upright",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")
_CAMERA = "camera:"


@dataclass(frozen=True)
class Item:
    """One thing to segment.

    Args:
        path: the file; for a camera its number.
        name: what its output is called after: the path below the input that led to it.
        kind: image, video or camera.
    """

    path: Path
    name: str
    kind: Literal["image", "video", "camera"]


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


def find_items(inputs: Sequence[str | Path], out: Path | None = None) -> list[Item]:
    """Find what inputs stand for.

    Args:
        inputs: files, folders (at any depth), globs, or ``camera:0``.
        out: a folder whose contents no folder or glob brings in.

    Returns:
        The items in the order of the inputs, a folder's sorted; a file that is met again
        counts once.

    Raises:
        ConfigError: an input that is not there, or has nothing to segment.
    """
    found: dict[Path, Item] = {}
    for given in inputs:
        items = _items(str(given))
        if out is not None and not Path(given).is_file():
            root = Path(given).expanduser()
            if not (root.is_dir() and root.resolve() == out.resolve()):  # `plan` refuses that
                items = [item for item in items if not _inside(item.path, out)]
        if not items:
            raise ConfigError(
                f"{given}: nothing to segment. Expected images ({' '.join(IMAGE_SUFFIXES)}), "
                f"videos ({' '.join(VIDEO_SUFFIXES)}), folders or globs of them, or camera:0."
            )
        for item in items:
            found.setdefault(item.path.resolve(), item)
    return list(found.values())


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """Find the image files that inputs stand for; see `find_items`."""
    return [item.path for item in find_items(inputs) if item.kind == "image"]


def read_ahead(items: Iterable[Item], workers: int) -> Iterator[tuple[Item, Pixels | str]]:
    """Decode images in several threads, a few ahead of the one that is asked for.

    Args:
        items: images.
        workers: threads.

    Yields:
        In order, each item with its pixels (H, W, 3) uint8, or with why it cannot be read.
    """
    left = iter(items)
    with ThreadPoolExecutor(workers, "decode") as pool:
        ahead: deque[tuple[Item, Future[Pixels | str]]] = deque()
        try:
            while True:
                for item in islice(left, 2 * workers - len(ahead)):
                    ahead.append((item, pool.submit(_read, item.path)))
                if not ahead:
                    return
                item, future = ahead.popleft()
                yield item, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


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
        self.sound = list(self._container.streams.audio) if sound else []
        self.rate: Fraction = self.video.average_rate or Fraction(25)
        self.time_base: Fraction = self.video.time_base or 1 / self.rate
        self.expected = 0 if self.live else self._length()
        self.problem: str | None = None
        self._queue: queue.Queue[Frame | Sound | None] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._decode, name="decode-video", daemon=True)
        self._thread.start()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

    def end(self) -> None:
        """Let the iteration end soon; safe in a signal handler, which may wait for no lock."""
        self._ended = True

    def _decode(self) -> None:
        count = broken = 0
        try:
            for packet in self._container.demux(self.video, *self.sound):
                if packet.stream.type != "video":
                    if packet.dts is not None:
                        self._put(Sound(packet))
                    continue
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
            self.problem = f"it cannot be read to its end ({error}); {count} frames were read"
        finally:
            if self.problem is None and not self._stopped.is_set():
                self.problem = self._shortfall(count, broken)
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
        if self.video.frames:
            return int(self.video.frames)
        if self.video.duration:
            return int(self.video.duration * self.time_base * self.rate + Fraction(1, 2))
        if self._container.duration:
            return int(self._container.duration * self.rate / 1_000_000 + Fraction(1, 2))
        return 0

    def _shortfall(self, count: int, broken: int) -> str | None:
        exact = bool(self.video.frames)
        allowed = 0 if exact else max(2, self.expected // 50)  # a duration is a rough count
        if count + allowed < self.expected:
            return f"it ends early: {count} frames of {self.expected}"
        if broken or count == 0:
            return f"{broken} of its packets are broken; {count} frames were read"
        return None


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
    """Return FFmpeg's name and format of a camera on this system."""
    if sys.platform == "darwin":
        return number, "avfoundation"
    if sys.platform == "win32":
        return f"video={number}", "dshow"
    return f"/dev/video{number}", "v4l2"


def _items(given: str) -> list[Item]:
    if given.startswith(_CAMERA):
        number = given.removeprefix(_CAMERA)
        return [Item(Path(number), f"camera-{number}", "camera")] if number else []
    path = Path(given).expanduser()
    if path.is_dir():
        return _within(path, sorted(path.rglob("*")))
    if path.is_file():
        return [Item(path, path.name, "video" if _is_video(path) else "image")]
    if glob.has_magic(given):
        fixed = path
        while glob.has_magic(str(fixed)):
            fixed = fixed.parent
        files = sorted(Path(name) for name in fixed.glob(str(path.relative_to(fixed))))
        return _within(fixed, files)
    raise ConfigError(f"{given}: there is no such file or folder.")


def _within(root: Path, files: Iterable[Path]) -> list[Item]:
    items = []
    for file in files:
        below = file.relative_to(root)
        hidden = any(part.startswith(".") for part in below.parts)
        wanted = _is_video(file) or file.suffix.lower() in IMAGE_SUFFIXES
        if wanted and not hidden and file.is_file():
            items.append(Item(file, below.as_posix(), "video" if _is_video(file) else "image"))
    return items


def _inside(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _read(path: Path) -> Pixels | str:
    try:
        return read_pixels(path)
    except BadImageError as error:
        return error.reason
    except MemoryError:
        return "there is not enough memory for it"


def upright(frame: Any) -> Pixels:
    """Decode a frame to RGB, turned as its display matrix says (degrees counter-clockwise)."""
    pixels: Pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def pyav() -> Any:
    """Import PyAV.

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
