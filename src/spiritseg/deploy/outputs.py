"""Where predictions go: names, masks, overlays, and videos with their sound."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from spiritseg.deploy.card import ModelCard
from spiritseg.deploy.sources import Item
from spiritseg.deploy.video_reader import VideoReader, pyav
from spiritseg.errors import BadImageError, ConfigError, DataError, RunError, listed, unknown
from spiritseg.files import json_bytes, write_atomically
from spiritseg.pixels import Pixels

__all__ = ["Kind", "VideoWriter", "check_kind", "claim", "earlier_outputs", "plan", "write_png"]

Kind = Literal["mask", "overlay", "video"]

_RECORD = ".spiritseg-predict.json"
_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


def plan(items: Sequence[Item], out: Path, kind: Kind) -> list[tuple[Item, Path]]:
    """Name the output of each item below a folder.

    An image ``a/b.jpg`` becomes ``a/b.png`` (mask) or ``a/b.overlay.png``; where two inputs
    would become one, both keep their suffix (``a/b.jpg.png``). A video becomes a folder of
    frames ``a/b.mp4/000000.png``, or with kind video ``a/b.overlay.mp4``. What a camera sees
    does not come again: its output takes a name that is free.

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
    inputs = {item.path.resolve() for item in items if item.kind != "camera"}
    planned = [
        (item, _free(out / name) if item.kind == "camera" else out / name)
        for item, name in zip(items, names, strict=True)
    ]
    lost = [str(target) for _, target in planned if target.resolve() in inputs]
    if lost:
        raise DataError(f"outputs would replace inputs:\n{listed(lost)}\nChoose another --out.")
    return planned


def claim(
    out: Path,
    kind: Kind,
    card: ModelCard,
    opacity: float,
    planned: Sequence[tuple[Item, Path]] = (),
    frames: int = 0,
) -> None:
    """Take a folder for the outputs of one student, so that a later call can continue.

    A file that is there already counts as finished, so it has to be what this call would make.
    A record in the folder says of which student and options its masks are, of which its
    overlays (pictures and videos alike), and where its videos were cut.

    Args:
        out: made if it is not there.
        kind: of the outputs.
        card: the student's.
        opacity: of overlays.
        planned: what will be made, see `plan`.
        frames: at which videos are cut; 0 for none.

    Raises:
        RunError: the folder holds outputs of another student or of other options, or files of
            which no record says whose they are, or it cannot be written.
    """
    student = {"student": card.student_sha256, "precision": card.precision}
    mine: dict[str, dict[str, Any]] = {"mask": student}
    if kind != "mask":
        mine = {"overlay": {**student, "opacity": f"{opacity:g}"}}
    if kind == "video" and any(item.kind == "video" for item, _ in planned):
        mine["video"] = {"frames": frames}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot use the folder {out}: {error.strerror}.") from None
    record = _read_record(out)
    for what, made_by in mine.items():
        if record.get(what, made_by) != made_by:
            raise RunError(
                f"{out} holds {what} outputs of another student or of other options (this call: "
                f"{_said(made_by)}; there: {_said(record[what])}); choose another --out, or "
                "empty it."
            )
    unsaid = [path for item, path in planned if _file_kind(item, kind) not in record]
    foreign = [str(path) for path in unsaid if _holds_something(path)]
    if foreign:
        raise RunError(
            f"{out} holds files under the names of this call's outputs, and no record says that "
            f"spiritseg predict made them:\n{listed(foreign)}\nThey would count as finished. "
            "Choose another --out, or move them away."
        )
    names = {path.relative_to(out).as_posix() for _, path in planned} | set(record["outputs"])
    write_atomically(out / _RECORD, json_bytes({**record, **mine, "outputs": sorted(names)}))


def earlier_outputs(out: Path) -> set[Path]:
    """Say what earlier calls made, or were about to make, in a folder.

    Args:
        out: the folder, which need not be there.

    Returns:
        Files, and folders of frames, with their links resolved.

    Raises:
        RunError: the record in the folder cannot be read.
    """
    return {(out / name).resolve() for name in _read_record(out)["outputs"]}


def _read_record(out: Path) -> dict[str, Any]:
    path = out / _RECORD
    try:
        record = {"outputs": [], **json.loads(path.read_bytes())}
    except (FileNotFoundError, NotADirectoryError):
        return {"outputs": []}
    except OSError as error:
        raise RunError(f"cannot use the folder {out}: {error.strerror}.") from None
    except (ValueError, TypeError):  # no JSON, or no dict
        record = {}
    names = record.get("outputs")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RunError(
            f"{path} is not a record of spiritseg predict, so whose outputs {out} holds is not "
            "known. Choose another --out, or move what is in it away, this file too."
        )
    return record


def _file_kind(item: Item, kind: Kind) -> Kind:
    """Return the kind of an item's files: among videos, an image becomes an overlay."""
    return "overlay" if kind == "video" and item.kind == "image" else kind


def _said(made_by: object) -> str:
    if not isinstance(made_by, dict):
        return str(made_by)
    return ", ".join(f"{key} {str(value)[:12]}" for key, value in made_by.items())


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def write_png(path: Path, pixels: Pixels) -> None:
    """Write a mask or a picture whole, or not at all.

    Args:
        path: the file; its folder is made if it is not there.
        pixels: a mask (H, W) or a picture (H, W, 3), uint8.

    Raises:
        RunError: it cannot be written.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    _make_folder(path.parent)
    write_atomically(path, buffer.getvalue())


class VideoWriter:
    """Writes overlays to a video beside the sound of the source, under a name for the while.

    Args:
        path: the video; it appears under this name when `finish` is called. Its folder is made
            if it is not there.
        reader: the source: its rate, times and sound tracks are kept.
        size: (H, W) of the frames.

    Raises:
        BadImageError: a sound track is of a kind that the file cannot hold.
        RunError: it cannot be written; so from every method, and nothing is left of it after
            `discard`.
    """

    def __init__(self, path: Path, reader: VideoReader, size: tuple[int, int]) -> None:
        self.path, self.size = path, size
        self._part = path.with_name(f".{path.name}.part")
        self._container: Any = None
        self._step = max(1, round(1 / (reader.rate * reader.time_base)))
        self._time_base: Fraction = reader.time_base
        self._last: int | None = None
        _make_folder(path.parent)
        try:
            with self._writing():
                self._open(reader)
        except BaseException:
            self.discard()
            raise

    def _open(self, reader: VideoReader) -> None:
        av = pyav()
        self._container = av.open(str(self._part), "w", format=_FORMATS[self.path.suffix])
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
        self._sound = {track.index: self._kept(track) for track in reader.sound}

    def _kept(self, track: Any) -> Any:
        try:
            return self._container.add_stream_from_template(track)
        except ValueError as error:
            raise BadImageError(
                self.path, f"its sound cannot be kept ({error}); rename the video to .mkv"
            ) from None

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
        """Append a packet of sound as it is.

        Args:
            packet: PyAV's, of one of the source's sound tracks.
        """
        packet.stream = self._sound[packet.stream.index]
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
            if self._container is not None:
                with suppress(Exception):  # it writes what is left, and fails as it did before
                    self._container.close()
        finally:
            with suppress(OSError):
                self._part.unlink(missing_ok=True)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {path}: {error.strerror}.") from None


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


def _free(path: Path) -> Path:
    number = 0
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def check_kind(kind: str) -> None:
    """Refuse an unknown kind of output.

    Args:
        kind: mask, overlay or video.

    Raises:
        ConfigError: it is none of them.
    """
    if kind not in get_args(Kind):
        raise ConfigError(unknown("kind", kind, get_args(Kind)))
