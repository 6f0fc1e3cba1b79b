"""A student on images, folders, videos and cameras: decoded ahead, written behind."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from spiritseg.deploy.outputs import (
    Kind,
    check_kind,
    claim,
    earlier_outputs,
    note_source,
    plan,
    shows_whole,
    write_png,
)
from spiritseg.deploy.pipeline import Writers, batches, segmented
from spiritseg.deploy.progress import Progress
from spiritseg.deploy.sources import Item, check_path, find_items, read_ahead
from spiritseg.deploy.video_reader import Sound, VideoReader
from spiritseg.deploy.video_writer import VideoWriter
from spiritseg.errors import BadImageError, BundleError, ConfigError
from spiritseg.export.engines import Runtime
from spiritseg.export.opening import open_runtime
from spiritseg.pixels import Pixels, oversized

__all__ = ["PredictReport", "predict"]

T = TypeVar("T")


@dataclass
class PredictReport:
    """What a prediction did.

    Args:
        frames: images and frames that went through the network.
        kept: outputs that were there already.
        outputs: files and folders, finished in this call.
        skipped: inputs that could not be read, wholly or to their end, or whose sound could
            not be kept, with the reason.
        seconds: from the first decoding to the last writing.
    """

    frames: int = 0
    kept: int = 0
    outputs: list[Path] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def frames_per_second(self) -> float:
        """Of the whole, files and all."""
        return self.frames / self.seconds if self.seconds else 0.0


def predict(
    student: str | Path | Runtime,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    kind: Kind = "mask",
    *,
    batch: int = 1,
    workers: int = 2,
    opacity: float = 0.5,
    threads: int | None = None,
    device: str = "cpu",
    frames: int = 0,
    progress: bool = True,
    trust: bool = False,
    streams: int = 0,
) -> PredictReport:
    """Segment images, folders, globs, videos or a camera, and write what comes out.

    Unreadable files are left out and reported. The same call continues where it was stopped:
    finished outputs are kept, and none is ever half-written. A video whose source could not be
    read to its end, or has another size since, is made anew.

    Args:
        student: a run, a bundle, or an exported file (see `open_runtime`).
        inputs: files, folders, globs, or ``camera:0``, which runs until it is interrupted.
        out: folder of the outputs, named after the inputs. What earlier calls made in it is
            no input, though a folder or glob leads there.
        kind: mask: class-index PNGs; overlay: coloured PNGs; video: coloured videos with
            their sound, where the file can hold it (images among the inputs become overlays).
        batch: images of one size through the network at once.
        workers: threads that decode ahead, and as many that encode.
        opacity: of the colours in overlays, 0 to 1.
        threads: of the network in all, over its streams; by default all cores.
        device: cpu or cuda.
        frames: stop each video and camera after so many; 0 for none. A folder holds videos
            that were cut alike.
        progress: draw a progress bar.
        trust: open a bundle of your own classes, or a .pt2.
        streams: passes of the network at once, for an .onnx on the CPU, each with its share of
            the threads; 0 for one a core, up to 4 and up to the threads. Each needs its own
            working memory. What is opened already keeps its own.

    Returns:
        What was done, and what was left out.

    Raises:
        ConfigError: a wrong option, or an input that is not there.
        DataError: outputs would collide, or replace inputs.
        RunError: the folder holds outputs of another student or of other options, or files
            that `predict` did not make under their names, or cannot be written.
        BundleError: the student cannot be opened.
    """
    check_kind(kind)
    if batch < 1 or workers < 1 or frames < 0 or streams < 0 or not 0 <= opacity <= 1:
        raise ConfigError(
            "predict: expected batch and workers of 1 or more, frames and streams of 0 or more "
            f"and an opacity in 0..1, got {batch}, {workers}, {frames}, {streams} and {opacity}."
        )
    out = Path(out)
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    planned = plan(find_items(given, out, earlier_outputs(out)), out, kind)
    if not isinstance(student, Runtime):
        check_path(student, BundleError)
        student = open_runtime(student, threads, device, trust, streams)
    claim(out, kind, student.card, opacity, planned, frames)
    with warnings.catch_warnings(), Progress(progress) as bar:
        # Half a decompression bomb is a warning to Pillow; to us it is a file to leave out.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        job = _Job(student, out, kind, batch, workers, opacity, frames, bar)
        return job.run(planned)


class _Job:
    """One call on its way through its inputs."""

    def __init__(
        self,
        runtime: Runtime,
        out: Path,
        kind: Kind,
        batch: int,
        workers: int,
        opacity: float,
        frames: int,
        bar: Progress,
    ) -> None:
        self.runtime, self.kind, self.batch, self.workers = runtime, kind, batch, workers
        self.out, self.opacity, self.frames, self.bar = out, opacity, frames, bar
        self.report = PredictReport()

    def run(self, planned: list[tuple[Item, Path]]) -> PredictReport:
        """Segment all: the images first, then one video after the other."""
        started = time.perf_counter()
        stills = [(item, target) for item, target in planned if item.kind == "image"]
        wanted = [(item, target) for item, target in stills if not target.exists()]
        self.report.kept = len(stills) - len(wanted)
        self.bar.expect(len(wanted))
        self._stills(wanted)
        for item, target in planned:
            if item.kind != "image":
                self._video(item, target)
        self.report.seconds = time.perf_counter() - started
        return self.report

    def _stills(self, wanted: list[tuple[Item, Path]]) -> None:
        targets = dict(wanted)
        with Writers(self.workers) as writers:
            for item, image, mask in self._segmented(self._readable(targets)):
                writers.do(self._write, targets[item], image, mask)
                self.report.outputs.append(targets[item])

    def _readable(self, targets: dict[Item, Path]) -> Iterator[tuple[Item, Pixels]]:
        for item, found in read_ahead(targets, self.workers):
            if isinstance(found, str):
                self._skip(item, found)
                self.bar.advance(1)
            else:
                yield item, found

    def _segmented(self, pairs: Iterable[tuple[T, Pixels]]) -> Iterator[tuple[T, Pixels, Pixels]]:
        groups = batches(pairs, self.batch)
        for found in segmented(self.runtime.masks, groups, self.runtime.streams):
            self.report.frames += 1
            self.bar.advance(1)
            yield found

    def _write(self, target: Path, image: Pixels, mask: Pixels) -> None:
        write_png(target, mask if self.kind == "mask" else self._overlay(image, mask))

    def _overlay(self, image: Pixels, mask: Pixels) -> Pixels:
        return self.runtime.overlay(image, mask, self.opacity)

    def _skip(self, item: Item, reason: str) -> None:
        self.report.skipped.append((str(item.path), reason))

    def _video(self, item: Item, target: Path) -> None:
        as_file, size = self.kind == "video", _size(item)
        if as_file and target.exists() and shows_whole(self.out, target, size):
            self.report.kept += 1
            return
        try:
            ahead = 2 * self.batch + 4
            with VideoReader(item, ahead, sound=as_file) as reader, _interruptible(reader):
                limit = self.frames or reader.expected
                self.bar.expect(min(limit, reader.expected) if reader.expected else self.frames)
                lost = None
                if as_file:
                    lost = self._to_file(reader, target, size)
                else:
                    self._to_frames(reader, target)
                if reasons := [reason for reason in (reader.problem, lost) if reason]:
                    self._skip(item, "; ".join(reasons))
        except BadImageError as error:
            self._skip(item, error.reason)

    def _to_frames(self, reader: VideoReader, folder: Path) -> None:
        """Write a file a frame; those that are there already are not computed again."""

        def missing() -> Iterator[tuple[Path, Pixels]]:
            for number, (_, pixels) in enumerate(self._shown(reader, None)):
                target = folder / f"{number:06d}.png"
                if target.exists():
                    self.report.kept += 1
                    self.bar.advance(1)
                else:
                    yield target, pixels

        with Writers(self.workers) as writers:
            for target, image, mask in self._segmented(missing()):
                writers.do(self._write, target, image, mask)
        if folder.exists():
            self.report.outputs.append(folder)

    def _to_file(self, reader: VideoReader, target: Path, size: int) -> str | None:
        """Write a video, anew if it was stopped half-way; return which sound it lacks."""
        video: VideoWriter | None = None
        waiting: list[Any] = []  # sound before the first frame
        try:
            with Writers(1) as writers:

                def on_sound(packet: Any) -> None:
                    if video is None:
                        waiting.append(packet)
                    else:
                        writers.do(video.sound, packet)

                for moment, image, mask in self._segmented(self._shown(reader, on_sound)):
                    if video is None:
                        video = VideoWriter(target, reader, image.shape[:2])
                        for packet in waiting:
                            writers.do(video.sound, packet)
                    writers.do(_append, video, self._overlay, image, mask, moment)
            if video is None:
                return None
            self._finish(video, 0 if reader.problem else size)
            lost, video = video.problem, None
            return lost
        finally:
            if video is not None:
                video.discard()

    def _finish(self, video: VideoWriter, size: int) -> None:
        """Put a video under its name; killed in between, it does not count as a whole one."""
        if not size:
            note_source(self.out, video.path, 0)
        video.finish()
        self.report.outputs.append(video.path)
        if size:
            note_source(self.out, video.path, size)

    def _shown(
        self, reader: VideoReader, on_sound: Callable[[Any], None] | None
    ) -> Iterator[tuple[int | None, Pixels]]:
        """Yield frames until the end, the limit, or the interruption of a camera."""
        count = 0
        for given in reader:
            if isinstance(given, Sound):
                if on_sound is not None:
                    on_sound(given.packet)
                continue
            _check_size(given.pixels)
            yield given.time, given.pixels
            count += 1
            if count == self.frames:
                reader.end()
                return


@contextmanager
def _interruptible(reader: VideoReader) -> Iterator[None]:
    """Let Ctrl-C end a camera's film, which is kept; a second one ends the program."""
    if not reader.live or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        reader.end()

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _size(item: Item) -> int:
    """Return the bytes of a video; 0 of a camera, and of a file that is gone."""
    try:
        return item.path.stat().st_size if item.kind == "video" else 0
    except OSError:
        return 0


def _check_size(frame: Pixels) -> None:
    """Refuse a frame that would be refused as an image."""
    limit = Image.MAX_IMAGE_PIXELS
    if reason := oversized(frame.shape[0], frame.shape[1], limit, f"{limit} in all"):
        raise BadImageError("a frame", reason)


def _append(
    video: VideoWriter,
    overlay: Callable[[Pixels, Pixels], Pixels],
    image: Pixels,
    mask: Pixels,
    moment: int | None,
) -> None:
    video.write(overlay(image, mask), moment)
