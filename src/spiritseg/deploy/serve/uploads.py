"""What is uploaded: recognised by its first bytes, bounded, decoded in memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from spiritseg.errors import BadImageError, ConfigError, DataError
from spiritseg.pixels import Pixels, opened, oversized, read_pixels
from spiritseg.predict.video import pyav, upright, video_format

__all__ = ["Limits", "TooLargeError", "UnknownKindError", "is_video", "read_still", "read_video"]

# How each kind begins. Nothing else reaches a decoder: Pillow would start Ghostscript for
# PostScript, and FFmpeg would follow a playlist to other files.
_STILLS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
_ACCEPTED = "a JPEG, PNG, WebP, BMP or TIFF image, or an MP4, MOV, MKV, WebM, AVI or MPEG video"


class TooLargeError(DataError):
    """An upload is beyond a limit of the server."""


class UnknownKindError(DataError):
    """An upload is neither an image nor a video that is accepted."""


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    Args:
        mebibytes: of an upload.
        megapixels: of an image, or of a frame of a video.
        seconds: of a video.
        frames: of a video that are segmented, evenly spaced.
        requests: uploads in the server at once; further ones are asked to come again.
        patience_s: seconds that an upload may take to arrive.
        silence_s: seconds between two pieces of it.

    Raises:
        ConfigError: one is not above zero.
    """

    mebibytes: float = 32
    megapixels: float = 10
    seconds: float = 30
    frames: int = 100
    requests: int = 8
    patience_s: float = 60
    silence_s: float = 10

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"serve: expected a limit of {name} above 0, got {value}.")

    @property
    def bytes(self) -> int:
        """Of an upload."""
        return int(self.mebibytes * 2**20)

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image of more pixels, or of a longer side, than a network should compute.

        Raises:
            TooLargeError: it has more.
        """
        most = f"the {self.megapixels:g} megapixels that this server takes"
        if reason := oversized(height, width, self.megapixels * 1e6, most):
            raise TooLargeError(f"{reason}; scale it down.")


def is_video(data: bytes) -> bool:
    """Tell a video from an image by its first bytes.

    Args:
        data: an upload.

    Returns:
        True for a video, False for an image.

    Raises:
        BadImageError: there is nothing.
        UnknownKindError: it is neither.
    """
    if not data:
        raise BadImageError("uploaded", "the file is empty")
    if video_format(data) is not None:
        return True
    if data.startswith(_STILLS) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return False
    raise UnknownKindError(f"it is not an image or video that this server knows; send {_ACCEPTED}.")


def read_still(data: bytes, limits: Limits) -> Pixels:
    """Decode an image; its size is checked first.

    Args:
        data: an upload, of a kind that `is_video` tells.
        limits: of its pixels.

    Returns:
        (H, W, 3) uint8 RGB, upright.

    Raises:
        BadImageError: it is broken.
        TooLargeError: it has too many pixels.
    """
    try:
        with opened(data, "uploaded") as image:
            limits.check_size(image.height, image.width)
    except BadImageError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):  # far beyond any limit
            raise TooLargeError(f"it has too many pixels ({error.reason}).") from None
        raise
    return read_pixels(data, "uploaded")


def read_video(data: bytes, limits: Limits) -> Iterator[tuple[float, Pixels]]:
    """Decode evenly spaced frames of a video, one at a time; its sound is left alone.

    Args:
        data: an upload, of a kind that `is_video` tells.
        limits: of its pixels, its duration, and the frames that are given.

    Yields:
        The time in seconds since the first frame, and the frame (H, W, 3) uint8 RGB, upright.

    Raises:
        BadImageError: it cannot be read, or not to its end.
        TooLargeError: its frames or its duration are beyond the limits.
        MissingExtraError: PyAV is not installed.
    """
    av = pyav()
    count = 0
    try:
        with av.open(io.BytesIO(data), format=video_format(data)) as container:
            for moment, frame in _spaced(container, limits):
                count += 1
                yield moment, frame
    except (DataError, MemoryError):
        raise
    except Exception as error:  # FFmpeg's errors, OSError, ValueError
        raise BadImageError(
            "uploaded", f"it cannot be read as a video ({error}); {count} frames were used"
        ) from None
    if not count:
        raise BadImageError("uploaded", "the video has no picture")


def _spaced(container: Any, limits: Limits) -> Iterator[tuple[float, Pixels]]:
    if not container.streams.video:
        return
    video = container.streams.video[0]
    limits.check_size(video.height, video.width)
    length = container.duration / 1e6 if container.duration else limits.seconds
    _check_length(length, limits)
    step = max(0.1, length / limits.frames)
    rate = float(video.average_rate or 25)
    given = 0
    start: float | None = None  # a recording's clock may have run for long before it
    for number, frame in enumerate(container.decode(video)):
        moment = number / rate
        if frame.time is not None:
            start = frame.time - moment if start is None else start
            moment = float(frame.time - start)
        _check_length(max(moment, number / 240), limits)  # whatever its header says
        if given < limits.frames and moment >= given * step - 1e-3:
            limits.check_size(frame.height, frame.width)  # it may change on the way
            given += 1
            yield moment, np.ascontiguousarray(upright(frame))


def _check_length(seconds: float, limits: Limits) -> None:
    if seconds > limits.seconds + 0.5:
        raise TooLargeError(
            f"the video is longer than the {limits.seconds:g} seconds that this server takes; "
            "cut it, or use spiritseg predict."
        )
