"""The page and its API: Gradio's components around `Students.segment`."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from PIL import Image

from spiritseg.errors import DataError, SpiritsegError
from spiritseg.export.engines import Runtime
from spiritseg.images import Pixels
from spiritseg.serve.students import Answer, Students

__all__ = ["make_blocks"]

_SHOWN = 1280  # pixels of the longer side of the pictures on the page
_SUFFIXES = [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"]
_Move = Callable[[Any], Awaitable[str | None]]


def make_blocks(students: Students, folder: Path) -> Any:
    """Build the page, and the API function `segment`.

    Args:
        students: The students to serve.
        folder: Gradio's folder of uploads and results.

    Returns:
        The `gradio.Blocks`, not launched.
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
            upload = gr.File(file_types=_SUFFIXES, label=accepted, height=170)
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


def _results(answer: Answer, runtime: Runtime, folder: Path) -> list[Any]:
    """Return the values of the page's components for an answer."""
    from gradio.processing_utils import save_bytes_to_cache

    height, width = answer.mask.shape
    text = f"{width} × {height} pixels, **{answer.latency_ms:.1f} ms**"
    factor = min(1.0, _SHOWN / max(height, width))
    box = (max(1, round(width * factor)), max(1, round(height * factor)))
    image = Image.fromarray(answer.image).resize(box, Image.Resampling.BILINEAR)
    mask = Image.fromarray(answer.mask).resize(box, Image.Resampling.NEAREST)
    mask.putpalette([channel for colour in runtime.colours for channel in colour])
    coloured = mask.convert("RGB")
    rows = [
        [_cell(name, colour), f"{100 * share:.1f} %"]
        for (name, share), colour in zip(answer.area.items(), runtime.colours, strict=False)
    ]
    file = save_bytes_to_cache(_png(answer.mask), "mask.png", str(folder))
    return _shown(text, (image, Image.blend(image, coloured, 0.5)), coloured, rows, file)


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
