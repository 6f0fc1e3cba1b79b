"""Segment images and videos: decoded ahead of the network, written behind it."""

from __future__ import annotations

import io
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from spiritseg.colours import overlay
from spiritseg.errors import BadImageError, BundleError, ConfigError, unknown
from spiritseg.files import make_folder, write_atomically
from spiritseg.images import Pixels, read_pixels
from spiritseg.predict.inputs import Item, Kind, check_path, find_items, plan
from spiritseg.predict.video import Frame, VideoReader, VideoWriter
from spiritseg.student import Student, load

__all__ = ["PredictReport", "mapped", "predict", "segmented"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(repr=False)
class PredictReport:
    """The result of a prediction.

    `skipped` has the inputs that could not be read, wholly or to their end, or whose sound could
    not be kept, with the reason.
    """

    out: Path
    frames: int = 0  # images and frames that were segmented
    kept: int = 0  # outputs that existed already
    outputs: list[Path] = field(default_factory=list)  # files and folders that were written
    skipped: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0  # files included

    @property
    def frames_per_second(self) -> float:
        """Rate, files included."""
        return self.frames / self.seconds if self.seconds else 0.0

    def __repr__(self) -> str:
        rate = f", {self.frames_per_second:.1f} a second" if self.frames else ""
        lines = [f"{self.frames} frames in {self.seconds:.1f} s{rate}: {self.out}"]
        if self.kept:
            lines.append(f"{self.kept} outputs existed and were kept; --overwrite replaces them")
        if self.skipped:
            lines.append(f"{len(self.skipped)} inputs were left out, end early, or lost sound:")
            lines += [f"  {path}: {reason}" for path, reason in self.skipped]
        return "\n".join(lines)


def predict(
    student: str | Path | Student,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    kind: Kind = "mask",
    *,
    overwrite: bool = False,
    batch: int = 1,
    workers: int = 2,
    opacity: float = 0.5,
    threads: int | None = None,
    streams: int = 0,
    device: str = "cpu",
    frames: int = 0,
    trust: bool = False,
    progress: bool = True,
) -> PredictReport:
    """Segment images and videos, and write masks, overlays or videos.

    An output that exists is kept, so the same call continues one that was stopped; no file is
    ever half-written. Unreadable inputs are left out and reported.

    Args:
        student: Run, bundle or exported file, or what `load` returned.
        inputs: Files, folders and globs.
        out: Folder of the outputs, which are named after the inputs.
        kind: mask: class-index PNGs; overlay: coloured PNGs; video: coloured videos with their
            sound, where the format can hold it (images become overlays).
        overwrite: Replace outputs that exist.
        batch: Largest number of images of one size in a forward pass.
        workers: Number of threads that decode images, and of those that encode.
        opacity: Opacity of the colours in overlays, 0 to 1.
        threads: CPU threads of the network in all; by default all cores.
        streams: Number of passes at once, for an .onnx on the CPU, each with its share of the
            threads and its own working memory; 0 for one a core, at most 4.
        device: cpu or cuda.
        frames: Largest number of frames of a video; 0 for all.
        trust: Open a .pt2, or import the classes that a bundle names.
        progress: Draw a progress bar.

    Returns:
        What was written and what was left out.

    Raises:
        ConfigError: if an option is wrong, or an input does not exist.
        DataError: if outputs would collide, or replace inputs.
        RunError: if an output cannot be written.
        BundleError: if the student cannot be opened.
    """
    if kind not in get_args(Kind):
        raise ConfigError(unknown("kind", kind, get_args(Kind)))
    if batch < 1 or workers < 1 or frames < 0 or streams < 0 or not 0 <= opacity <= 1:
        raise ConfigError(
            "predict: expected batch and workers of 1 or more, frames and streams of 0 or more "
            f"and an opacity in 0..1, got {batch}, {workers}, {frames}, {streams} and {opacity}."
        )
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    out = Path(out).expanduser()
    planned = plan(find_items(given, out), out, kind)
    if not isinstance(student, Student):
        check_path(student, BundleError)
        student = load(student, device, trust, threads, streams)
    make_folder(out)
    bar = Progress(
        *(TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), _Rate()),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not progress,
    )
    bar.add_task("", total=0)
    job = _Job(student, bar, kind, overwrite, batch, workers, opacity, frames, PredictReport(out))
    with warnings.catch_warnings(), bar:
        # Pillow only warns of an image of more than MAX_IMAGE_PIXELS; here it is left out.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        started = time.perf_counter()
        job.run(planned)
    job.report.seconds = time.perf_counter() - started
    return job.report


class _Rate(ProgressColumn):
    """Frames per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.1f} frames/s")


@dataclass
class _Job:
    """The state of one call."""

    student: Student
    bar: Progress
    kind: Kind
    overwrite: bool
    batch: int
    workers: int
    opacity: float
    frames: int
    report: PredictReport

    def run(self, planned: Mapping[Item, Path]) -> None:
        """Segment the images, then the videos one by one."""
        stills = [(item, target) for item, target in planned.items() if not item.is_video]
        missing = [(item, target) for item, target in stills if not self._keeps(target)]
        self._expect(len(missing))
        self.report.outputs += self._written(self._readable(missing))
        for item, target in planned.items():
            if item.is_video and not (self.kind == "video" and self._keeps(target)):
                self._video(item, target)

    def _keeps(self, target: Path) -> bool:
        keeps = not self.overwrite and os.path.exists(target)  # noqa: PTH110  # long names: False
        self.report.kept += keeps
        return keeps

    def _readable(self, wanted: Sequence[tuple[Item, Path]]) -> Iterator[tuple[Path, Pixels]]:
        """Decode images; report those that cannot be read."""
        read = mapped(_read, (item.path for item, _ in wanted), self.workers, 2 * self.workers)
        for (item, target), found in zip(wanted, read, strict=True):
            if isinstance(found, str):
                self._skip(item, found)
                self.bar.advance(self.bar.task_ids[0])
            else:
                yield target, found

    def _segmented(self, pairs: Iterable[tuple[T, Pixels]]) -> Iterator[tuple[T, Pixels, Pixels]]:
        streams = self.student.engine.streams
        for found in segmented(self.student.masks, pairs, self.batch, streams):
            self.report.frames += 1
            self.bar.advance(self.bar.task_ids[0])
            yield found

    def _written(self, pairs: Iterable[tuple[Path, Pixels]]) -> Iterator[Path]:
        """Segment images, write the results as PNGs, and yield their paths."""

        def write(found: tuple[Path, Pixels, Pixels]) -> Path:
            target, image, mask = found
            _write_png(target, mask if self.kind == "mask" else self._overlay(image, mask))
            return target

        return mapped(write, self._segmented(pairs), self.workers, 4 * self.workers)

    def _overlay(self, image: Pixels, mask: Pixels) -> Pixels:
        return overlay(image, mask, self.student.colours, self.opacity)

    def _video(self, item: Item, target: Path) -> None:
        as_file, lost = self.kind == "video", None
        try:
            with VideoReader(item.path, sound=as_file) as reader:
                self._expect(min(self.frames or reader.expected, reader.expected))
                if as_file:
                    lost = self._to_video(reader, target)
                else:
                    self._to_images(reader, target)
                if reasons := [reason for reason in (reader.problem, lost) if reason]:
                    self._skip(item, "; ".join(reasons))
        except BadImageError as error:
            self._skip(item, error.reason)

    def _to_images(self, reader: VideoReader, folder: Path) -> None:
        """Write an image a frame; those that exist are not computed again."""

        def missing() -> Iterator[tuple[Path, Pixels]]:
            for number, frame in enumerate(self._frames(reader)):
                if self._keeps(target := folder / f"{number:06d}.png"):
                    self.bar.advance(self.bar.task_ids[0])
                else:
                    yield target, frame.pixels

        if sum(1 for _ in self._written(missing())):
            self.report.outputs.append(folder)

    def _to_video(self, reader: VideoReader, target: Path) -> str | None:
        """Write a video; return which sound it lacks, if any."""
        with VideoWriter(target, reader) as writer:

            def write(found: tuple[Frame, Pixels, Pixels]) -> None:
                frame, image, mask = found
                writer.write(self._overlay(image, mask), frame)

            pairs = ((frame, frame.pixels) for frame in self._frames(reader))
            count = sum(1 for _ in mapped(write, self._segmented(pairs), 1, 4))
        if count:
            self.report.outputs.append(target)
        return writer.problem

    def _frames(self, reader: VideoReader) -> Iterator[Frame]:
        return islice(reader, self.frames or None)

    def _skip(self, item: Item, reason: str) -> None:
        self.report.skipped.append((str(item.path), reason))

    def _expect(self, count: int) -> None:
        task = self.bar.tasks[0]
        self.bar.update(task.id, total=(task.total or 0) + count)


def _read(path: Path) -> Pixels | str:
    """Decode an image, or return why it cannot be read."""
    try:
        return read_pixels(path)
    except BadImageError as error:
        return error.reason
    except MemoryError:
        return "there is not enough memory for it"


def _write_png(path: Path, pixels: Pixels) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    make_folder(path.parent)
    write_atomically(path, buffer.getvalue())


def mapped(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """Call a function on items in several threads.

    Args:
        function: Called in the threads.
        items: Read in the caller's thread, when their results are asked for.
        workers: Number of threads.
        ahead: Number of items beyond the result that is waited for.

    Yields:
        The results, in order. An exception is raised in the place of its result.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def segmented(
    masks: Callable[[Pixels], Pixels],
    pairs: Iterable[tuple[T, Pixels]],
    batch: int = 1,
    streams: int = 1,
) -> Iterator[tuple[T, Pixels, Pixels]]:
    """Segment images, several batches of neighbours of one size at once.

    Args:
        masks: Maps images (N, H, W, 3) to masks (N, H, W); called in threads.
        pairs: Keys and images (H, W, 3) uint8.
        batch: Largest number of images of one size in a batch.
        streams: Number of batches at once; one more waits, so that no thread idles.

    Yields:
        Key, image and mask, in order.
    """

    def groups() -> Iterator[list[tuple[T, Pixels]]]:
        for _, same in groupby(pairs, key=lambda pair: pair[1].shape):
            while group := list(islice(same, batch)):
                yield group

    def run(group: list[tuple[T, Pixels]]) -> list[tuple[T, Pixels, Pixels]]:
        found = masks(np.stack([pixels for _, pixels in group]))
        return [(key, pixels, mask) for (key, pixels), mask in zip(group, found, strict=True)]

    for found in mapped(run, groups(), streams, streams):
        yield from found
