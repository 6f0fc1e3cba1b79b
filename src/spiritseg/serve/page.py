"""The served students, and the page and the API around them."""

from __future__ import annotations

import base64
import html
import io
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spiritseg.colours import colourise, overlay
from spiritseg.errors import (
    BadImageError,
    BundleError,
    ConfigError,
    DataError,
    SpiritsegError,
    unknown,
)
from spiritseg.export.engines import LARGE_BYTES
from spiritseg.images import IMAGE_SUFFIXES, Pixels, opened, oversized, read_pixels
from spiritseg.predict.inputs import check_path
from spiritseg.student import Student, load

__all__ = ["Students", "make_blocks", "open_students"]

# The first bytes of each accepted format. Nothing else reaches a decoder: Pillow would start
# Ghostscript for PostScript, for instance.
_FORMATS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
_SHOWN = 1280  # pixels of the longer side of the pictures on the page
_Move = Callable[[Any], Awaitable[str | None]]


@dataclass(frozen=True)
class Answer:
    """A student's answer for an image."""

    image: Pixels  # (H, W, 3) RGB, upright
    mask: Pixels  # (H, W) class indices
    latency_ms: float  # of the pass, with pre- and postprocessing
    area: dict[str, float]  # share of the pixels by class, 0 to 1


class Students:
    """Students by name. One image is decoded and segmented at a time, which bounds the memory.

    Args:
        runtimes: Opened students by name.
        max_mib: Largest upload in MiB, above 0.
        max_megapixels: Largest image in megapixels, above 0.

    Raises:
        ConfigError: There is no student, or a limit is not above 0.
    """

    def __init__(
        self, runtimes: Mapping[str, Student], max_mib: float = 32, max_megapixels: float = 10
    ) -> None:
        if not runtimes:
            raise ConfigError("serve: expected at least one student, got none.")
        for option, limit in (("mib", max_mib), ("megapixels", max_megapixels)):
            if not limit > 0:
                raise ConfigError(f"serve: expected --max-{option} above 0, got {limit}.")
        self.runtimes = runtimes
        self.names = list(runtimes)
        self.max_bytes = int(max_mib * 2**20)
        self.max_megapixels = max_megapixels
        self._turn = threading.Lock()
        self._size: dict[str, tuple[int, ...]] = {}  # of the last image, by student

    def segment(self, file: Path, name: str) -> Answer:
        """Segment an upload with the student of a name.

        The first pass at a new size takes up to three times as long as the next, and is not timed.

        Raises:
            ConfigError: There is no student of this name.
            DataError: The upload is not an image, is damaged, or exceeds a limit.
        """
        if name not in self.runtimes:
            raise ConfigError(unknown("student", name, self.runtimes))
        runtime = self.runtimes[name]
        try:
            with self._turn:
                image = _read(file, self.max_megapixels)
                if self._size.get(name) != image.shape:
                    runtime.masks(image[None])
                    self._size[name] = image.shape
                started = time.perf_counter()
                mask = runtime.masks(image[None])[0]
                latency_ms = 1000 * (time.perf_counter() - started)
                if image.nbytes > LARGE_BYTES:
                    self._small_pass(name)
        except MemoryError:
            raise DataError("there is not enough memory for this image; scale it down.") from None
        counts = np.bincount(mask.ravel(), minlength=len(runtime.classes)) / mask.size
        area = {k: float(share) for k, share in zip(runtime.classes, counts, strict=False)}
        return Answer(image, mask, latency_ms, area)

    def warm_up(self) -> None:
        """Run each student once: the first pass of an engine is slow."""
        for name in self.names:
            self._small_pass(name)

    def _small_pass(self, name: str) -> None:
        """Run a small image, with which an engine also frees the memory of a large one."""
        self.runtimes[name].masks(np.zeros((1, 128, 128, 3), np.uint8))


def open_students(
    paths: Sequence[str | Path], threads: int | None, device: str, trust: bool
) -> dict[str, Student]:
    """Open students by the name of their file or run, numbered if equal; see `load`."""
    found: dict[str, Student] = {}
    for path in map(Path, paths):
        check_path(path, BundleError)
        whole = path.resolve()
        run = whole.parent if whole.name == "student" else whole
        base = whole.stem if whole.is_file() else run.name
        names = (base, *(f"{base} ({number})" for number in range(2, len(found) + 2)))
        found[next(name for name in names if name not in found)] = load(
            path, device, trust, threads
        )
    return found


def _read(file: Path, megapixels: float) -> Pixels:
    """Decode an uploaded image to (H, W, 3) uint8; its format and size are checked first."""
    try:
        data = file.read_bytes()
    except OSError:
        raise DataError("the upload is no longer there; upload it again.") from None
    if data and not (data.startswith(_FORMATS) or data[:4] + data[8:12] == b"RIFFWEBP"):
        raise DataError("the upload is not a JPEG, PNG, WebP, BMP or TIFF image.")
    try:
        with opened(data, "uploaded") as image:
            most = f"the {megapixels:g} megapixels that this server accepts"
            if reason := oversized(image.height, image.width, megapixels * 1e6, most):
                raise DataError(f"{reason}; scale it down.")
        return read_pixels(data, "uploaded")
    except BadImageError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):  # far beyond any limit
            raise DataError(f"it has too many pixels ({error.reason}).") from None
        raise DataError(f"cannot read the upload: {error.reason.rstrip('.')}.") from None


def make_blocks(students: Students, folder: Path) -> Any:
    """Build the page, and the API function `segment`, as `gradio.Blocks`.

    Args:
        students: The students to serve.
        folder: Gradio's folder of uploads and results.
    """
    import gradio as gr

    def show(upload: Any, name: str) -> list[Any]:
        try:
            if upload is None:
                return _shown("")
            answer = students.segment(_path(upload, folder), name)
        except SpiritsegError as error:
            return _shown(f"**Not segmented:** {error}")
        return _results(answer, students.runtimes[name], folder)

    with gr.Blocks(title="spiritseg", analytics_enabled=False) as blocks:
        inputs, outputs = _layout(students)
        gr.on(
            [one.change for one in inputs],
            show,
            inputs,
            outputs,
            preprocess=False,
            api_visibility="private",
            show_progress_on=outputs[1],
        )
        gr.events.api(_api(students, folder), queue=False)  # without a queue, one request does
    for block in blocks.blocks.values():
        block.async_move_resource_to_block_cache = _local(block.async_move_resource_to_block_cache)
    return blocks


def _layout(students: Students) -> tuple[list[Any], list[Any]]:
    """Place the components; return those that start a segmentation, and those of `_shown`."""
    import gradio as gr

    names, mib = students.names, students.max_bytes / 2**20
    accepted = f"image, up to {mib:.3g} MiB and {students.max_megapixels:g} megapixels"
    gr.Markdown("# spiritseg")
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            upload = gr.File(file_types=[*IMAGE_SUFFIXES], label=accepted, height=170)
            name = gr.Radio(names, value=names[0], label="student", visible=len(names) > 1)
            text = gr.Markdown(elem_id="text")
            download = gr.DownloadButton("Download the mask", interactive=False)
        with gr.Column(scale=2, min_width=360):
            overlay = gr.ImageSlider(
                label="image | overlay", interactive=False, format="jpeg", elem_id="overlay"
            )
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            area = gr.Dataframe(
                headers=["class", "share"],
                datatype=["html", "str"],
                interactive=False,
                buttons=[],
                elem_id="area",
            )
        with gr.Column(scale=2, min_width=360):
            mask = gr.Image(label="mask", interactive=False, buttons=["fullscreen"])
    return [upload, name], [text, overlay, mask, area, download]


def _api(students: Students, folder: Path) -> Callable[..., dict[str, Any]]:
    """Return the function behind the API, from whose signature Gradio describes it."""

    def segment(
        image: dict[str, Any], student: str = students.names[0], mask: bool = False
    ) -> dict[str, Any]:
        """Segment an uploaded image; `mask` adds the class indices as a base64-encoded PNG."""
        import gradio as gr

        try:
            answer = students.segment(_path(image, folder), student)
        except SpiritsegError as error:
            raise gr.Error(str(error), print_exception=False) from None
        found = {
            "student": student,
            "classes": list(students.runtimes[student].classes),
            "size": list(answer.mask.shape),
            "latency_ms": answer.latency_ms,
            "area": answer.area,
        }
        return found | ({"mask": base64.b64encode(_png(answer.mask)).decode()} if mask else {})

    return segment


def _results(answer: Answer, student: Student, folder: Path) -> list[Any]:
    """Return the values of the page's components for an answer."""
    from gradio.processing_utils import save_bytes_to_cache

    height, width = answer.mask.shape
    text = f"{width} × {height} pixels, **{answer.latency_ms:.1f} ms**"
    factor = min(1.0, _SHOWN / max(height, width))
    box = (max(1, round(width * factor)), max(1, round(height * factor)))
    image = np.asarray(Image.fromarray(answer.image).resize(box, Image.Resampling.BILINEAR))
    mask = np.asarray(Image.fromarray(answer.mask).resize(box, Image.Resampling.NEAREST))
    blended, coloured = overlay(image, mask, student.colours), colourise(mask, student.colours)
    rows = [
        [_cell(name, colour), f"{100 * share:.1f} %"]
        for (name, share), colour in zip(answer.area.items(), student.colours, strict=False)
    ]
    file = save_bytes_to_cache(_png(answer.mask), "mask.png", str(folder))
    return _shown(text, (image, blended), coloured, rows, file)


def _shown(
    text: str, overlay: Any = None, mask: Any = None, rows: Any = (), file: str | None = None
) -> list[Any]:
    import gradio as gr

    download = gr.DownloadButton(value=file, interactive=file is not None)
    return [text, overlay, mask, list(rows), download]


def _cell(name: str, colour: tuple[int, int, int]) -> str:
    swatch = f"background: rgb{colour}; display: inline-block; width: 1em; height: 1em"
    return f'<span style="{swatch}"></span> {html.escape(name)}'


def _png(mask: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _path(upload: Any, folder: Path) -> Path:
    """Return the path of an upload; no other file is read."""
    given = upload.get("path") if isinstance(upload, dict) else None
    if isinstance(given, str) and "\0" not in given:
        path = Path(given).resolve()
        if path.is_relative_to(folder):
            return path
    raise DataError("expected an uploaded image; upload it first, and pass what that returns.")


def _local(move: _Move) -> _Move:
    """Wrap a component's intake of files: Gradio would download from any web address."""

    async def local(given: Any) -> str | None:
        if str(given).lower().startswith(("http:", "https:")):
            import gradio as gr

            raise gr.Error("expected an upload, not a web address.", print_exception=False)
        return await move(given)

    return local
