"""Videos with PyAV: decoded frame by frame; written with the times and sound of their source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spiritseg.errors import BadImageError, MissingExtraError, RunError
from spiritseg.files import clear_parts, make_folder, part_of
from spiritseg.images import Pixels, oversized
from spiritseg.predict.inputs import WRITTEN_FORMATS

__all__ = ["VIDEO_HEAD", "Frame", "VideoReader", "VideoWriter", "pyav", "upright", "video_format"]

VIDEO_HEAD = 189  # bytes that `video_format` looks at

_MOV = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # first boxes of an MP4 or MOV
_MAGIC = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"\0\0\x01\xba": "mpeg",
    b"\0\0\x01\xb3": "mpegvideo",
}
_SYNC, _PACKET = b"\x47", 188  # first byte and length of the packets of a transport stream


def video_format(head: bytes) -> str | None:
    """Return FFmpeg's name of a video format by the first bytes of a file; None if it is no video.

    The demuxer is always named: FFmpeg's own guess may take a text file for a playlist and open
    the files and addresses in it.
    """
    if head[4:8] in _MOV:
        return "mov"
    if head[8:12] == b"AVI ":
        return "avi"
    # One byte G is not enough: GIF images and texts begin with it, too.
    packets = head[:1] == _SYNC and head[_PACKET : _PACKET + 1] == _SYNC
    return "mpegts" if packets else _MAGIC.get(head[:4])


@dataclass(frozen=True)
class Frame:
    """A decoded frame."""

    pixels: Pixels  # (H, W, 3), upright
    time: int | None  # in units of the stream's time base; None if unknown
    sound: Sequence[Any] = ()  # compressed packets between the frame before and this one


class VideoReader:
    """A video file; iterating gives its frames in order.

    Afterwards `problem` tells what was wrong, if anything, and `tail` holds the sound behind the
    last frame.

    Args:
        path: The file.
        sound: Keep the packets of sound.

    Raises:
        BadImageError: if the file cannot be opened, or has no picture.
    """

    def __init__(self, path: Path, sound: bool = False) -> None:
        av = pyav()
        self._error: type[Exception] = av.error.FFmpegError
        try:
            self._container = av.open(str(path), format=_format_of(path))
        except self._error as error:
            raise BadImageError(path, f"it cannot be opened as a video ({error})") from None
        if not self._container.streams.video:
            self._container.close()
            raise BadImageError(path, "it has no picture")
        self.video = self._container.streams.video[0]
        self.video.thread_type = "AUTO"
        self.sound = list(self._container.streams.audio) if sound else []
        self.rate: Fraction = self.video.average_rate or Fraction(25)
        self.time_base: Fraction = self.video.time_base or 1 / self.rate
        self.seconds = Fraction(self._container.duration or 0, 1_000_000)
        self.expected = self.video.frames or round(self.seconds * self.rate)
        self.problem: str | None = None
        self.tail: list[Any] = []
        self._broken, self._reached = 0, Fraction(0)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        count = 0
        try:
            for frame in self._decoded():
                limit = Image.MAX_IMAGE_PIXELS  # as for images
                if reason := oversized(frame.height, frame.width, limit, f"{limit} in all"):
                    raise ValueError(reason)
                sound, self.tail = self.tail, []
                yield Frame(upright(frame), frame.pts, sound)
                count += 1
        except Exception as error:  # decoders raise errors of any type on broken files
            self.problem = f"it cannot be read to its end ({error}); {count} frames were read"
        self.problem = self.problem or self._shortfall(count)

    def _decoded(self) -> Iterator[Any]:
        """Yield the frames of PyAV, and keep the sound between them."""
        kept = {track.index for track in self.sound}
        try:
            for packet in self._container.demux():
                self._reached = max(self._reached, _end(packet))
                if packet.stream.index in kept and packet.dts is not None:
                    self.tail.append(packet)
                if packet.stream is self.video:
                    self._broken += packet.is_corrupt  # such as one that was cut
                    yield from self._decode(packet)
        except self._error as error:
            yield from self._decode(None)  # the frames that the decoder still holds
            self.problem = f"it cannot be read to its end ({error})"

    def _decode(self, packet: Any) -> Iterator[Any]:
        try:
            yield from self.video.decode(packet)
        except self._error:
            self._broken += 1

    def _shortfall(self, count: int) -> str | None:
        """Return what is missing of a file that was read to its end."""
        # A container's duration is that of its longest track, and may be rounded.
        if self.seconds - self._reached > max(2 / self.rate, self.seconds / 50):
            reached, whole = float(self._reached), float(self.seconds)
            return f"it ends early, at {reached:.1f} s of {whole:.1f} s"
        if self._broken or count == 0:
            return f"{self._broken} of its packets are broken; {count} frames were read"
        return None


class VideoWriter:
    """Writes a video, which appears under its name when the context ends without an error.

    Afterwards `problem` tells which sound the file cannot hold, if any.

    Args:
        path: The video; its folder is made.
        source: Video whose rate, times and sound are kept.

    Raises:
        RunError: from every method, if the file cannot be written.
    """

    def __init__(self, path: Path, source: VideoReader) -> None:
        self.path = path
        self.problem: str | None = None
        self._source, self._part = source, part_of(path)
        self._container: Any = None
        self._size = (0, 0)
        self._last: int | None = None

    def __enter__(self) -> VideoWriter:
        make_folder(self.path.parent)
        clear_parts(self.path.parent)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None and self._container is not None:
                self._finish()
        finally:
            self._close()
            with suppress(OSError):
                self._part.unlink(missing_ok=True)

    def write(self, pixels: Pixels, frame: Frame) -> None:
        """Append (H, W, 3) pixels in the place of a frame of the source, and the sound before it.

        They are resized to the first frame's size; without a time they come one step after the
        last.
        """
        with self._errors():
            if self._container is None:
                self._open(pixels.shape[:2])
            if pixels.shape[:2] != self._size:
                pixels = np.asarray(Image.fromarray(pixels).resize(self._size[::-1]))
            picture = pyav().VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = self._time(frame.time), self._source.time_base
            self._mux_sound(frame.sound)
            self._container.mux(self._stream.encode(picture))

    def _time(self, time: int | None) -> int:
        if time is None or (self._last is not None and time <= self._last):
            step = max(1, round(1 / (self._source.rate * self._source.time_base)))
            time = 0 if self._last is None else self._last + step
        self._last = time
        return time

    def _open(self, size: tuple[int, ...]) -> None:
        self._size = (size[0], size[1])
        tracks = self._source.sound
        try:
            self._begin(tracks)
        except pyav().error.FFmpegError:  # some kinds of sound are refused only at the header
            if not tracks:
                raise
            self._close()
            self._begin([])
        names = [
            getattr(one.codec_context, "name", "of an unknown kind")
            for one in tracks
            if one.index not in self._sound
        ]
        if names:
            hint = "" if self.path.suffix == ".mkv" else "; an .mkv may hold it"
            self.problem = (
                f"its sound ({', '.join(names)}) cannot be kept in {self.path.suffix}{hint}; the "
                "overlay has none"
            )

    def _begin(self, tracks: Sequence[Any]) -> None:
        av, even = pyav(), self._size[0] % 2 == 0 and self._size[1] % 2 == 0
        self._container = av.open(str(self._part), "w", format=WRITTEN_FORMATS[self.path.suffix])
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = self._container.add_stream(codec, rate=self._source.rate)
        stream.height, stream.width = self._size
        stream.pix_fmt = "yuv420p" if even or codec == "mpeg4" else "yuv444p"
        stream.codec_context.time_base = self._source.time_base
        if codec == "libx264":
            stream.options = {"crf": "20", "preset": "veryfast"}
        else:
            stream.bit_rate = 8_000_000
        self._stream, self._sound = stream, {}
        for track in tracks:
            with suppress(ValueError):  # a kind of sound that the format does not have
                self._sound[track.index] = self._container.add_stream_from_template(track)
        self._container.start_encoding()

    def _mux_sound(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            if track := self._sound.get(packet.stream.index):
                packet.stream = track
                self._container.mux(packet)

    def _finish(self) -> None:
        with self._errors():
            self._mux_sound(self._source.tail)
            self._container.mux(self._stream.encode())
            self._container.close()
            self._part.replace(self.path)

    def _close(self) -> None:
        if self._container is not None:
            with suppress(Exception):  # closing writes, and fails as the last write did
                self._container.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pyav().error.FFmpegError) as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror or error}. Make room or choose "
                "another folder, and run the same command again; finished outputs are kept."
            ) from None


def upright(frame: Any) -> Pixels:
    """Convert a frame of PyAV to (H, W, 3) RGB, rotated as its display matrix says."""
    pixels: Pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def pyav() -> Any:
    """Import PyAV; MissingExtraError if it is not installed."""
    try:
        import av
        import av.error
    except ImportError:
        raise MissingExtraError(
            "videos need PyAV, which is not installed: pip install 'spiritseg[deploy]'."
        ) from None
    return av


def _format_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            found = video_format(file.read(VIDEO_HEAD))
    except OSError as error:
        raise BadImageError(path, f"it cannot be read ({error.strerror})") from None
    if found is None:
        raise BadImageError(path, "it cannot be opened as a video (its first bytes are of none)")
    return found


def _end(packet: Any) -> Fraction:
    """Return the end of a packet in seconds."""
    if packet.pts is None or packet.time_base is None:
        return Fraction(0)
    return Fraction((packet.pts + (packet.duration or 0)) * packet.time_base)
