"""The page: Gradio's components, moved by a little JavaScript that asks the endpoint."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spiritseg.deploy.serve.uploads import Limits

__all__ = ["mount_page"]

_IMAGE = "the image itself"
_STYLE = """
.gradio-container {width: 100%; max-width: 1180px !important; margin: 0 auto !important}
#drop label {display: block; position: relative; padding: 1.6rem 1rem; text-align: center;
  border: 2px dashed var(--border-color-primary); border-radius: 8px; cursor: pointer;
  color: var(--body-text-color)}
#drop label:hover, #drop label:focus-within {border-color: var(--color-accent)}
#drop input {position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0; cursor: pointer}
#drop small {display: block; margin-top: .4rem; color: var(--body-text-color-subdued)}
#said {min-height: 1.5rem; color: var(--body-text-color)}
#drop, #said, #legend {padding: 0 !important}
#said [role=alert] {color: #b91c1c}
.dark #said [role=alert] {color: #fca5a5}
#legend .wide {overflow-x: auto; width: 0; min-width: 100%}
#legend table {min-width: 40%; border: 0; border-collapse: collapse; margin: 0;
  color: var(--body-text-color); font-variant-numeric: tabular-nums}
#legend th, #legend td {padding: .3rem .4rem; text-align: right; white-space: nowrap;
  font-weight: 400; border: 0; border-bottom: 1px solid var(--border-color-primary)}
#legend th[scope=row], #legend .first {text-align: left}
#legend thead th {vertical-align: bottom; white-space: normal; font-weight: 600;
  overflow-wrap: break-word}
#legend i {display: inline-block; width: .9rem; height: .9rem; margin-right: .5rem;
  border-radius: 3px; vertical-align: -2px; border: 1px solid rgb(0 0 0 / 25%)}
"""
_DROP = """<label><input type="file" accept="image/*,video/*" aria-describedby="limits">
<b>Drop an image or a short video here</b>, or choose one
<small id="limits">up to {mebibytes:g} MiB, {megapixels:g} megapixels, {seconds:g} seconds;
nothing is kept</small></label>"""
# What the page asks Gradio for. The rest is closed: uploads that stay, files by name, URLs that
# the server would fetch, events, the editor.
_OPEN = re.compile(
    r"/(config|theme\.css|favicon\.ico|(assets|static)/[\w./@-]+"
    r"|gradio_api/(startup-events|heartbeat/\w+))?"
)
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        b"media-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; "
        b"form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def mount_page(app: FastAPI, names: list[str], limits: Limits) -> FastAPI:
    """Put the page at / beside the endpoint.

    Args:
        app: with the endpoint.
        names: of the students.
        limits: of uploads, said on the page.

    Returns:
        The application with both.
    """
    import gradio

    local = ("system-ui", "sans-serif")  # plain names: no font is fetched
    theme = gradio.themes.Base(font=local, font_mono=("ui-monospace", "monospace"))
    script = resources.files(__package__).joinpath("page.js").read_text("utf-8")
    app.add_middleware(_ClosedRoutes)
    mounted: FastAPI = gradio.mount_gradio_app(
        app,
        _blocks(names, limits),
        path="/",
        theme=theme,
        css=_STYLE,
        head=f"<script>{script}</script>",
        footer_links=[],
        run_history=False,
        show_error=False,
        allowed_paths=[],
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=1,
    )
    return mounted


def _blocks(names: list[str], limits: Limits) -> Any:
    import gradio as gr

    choices = [_IMAGE, *names]
    two = names[:2] if len(names) > 1 else [_IMAGE, names[0]]
    with gr.Blocks(title="spiritseg", analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown("# spiritseg")
        drop = gr.HTML(
            _DROP.format(**vars(limits)),
            elem_id="drop",
            apply_default_css=False,
            js_on_load="element.querySelector('input').onchange = () => trigger('upload')",
        )
        said = gr.HTML("", elem_id="said", apply_default_css=False)
        with gr.Row():
            with gr.Column(scale=2, min_width=420):
                compared = gr.ImageSlider(
                    label="left | right", elem_id="compared", interactive=False, max_height=640
                )
                frame = gr.Slider(1, 2, 1, step=1, label="frame", visible=False, elem_id="frame")
                play = gr.Button("Play", visible=False, elem_id="play")
            with gr.Column(scale=1, min_width=260):
                left = gr.Dropdown(choices, value=two[0], label="left", elem_id="left")
                right = gr.Dropdown(choices, value=two[1], label="right", elem_id="right")
                opacity = gr.Slider(0, 1, 0.5, step=0.05, label="opacity", elem_id="opacity")
        legend = gr.HTML("", elem_id="legend", apply_default_css=False)
        timer = gr.Timer(0.15, active=False)
        chosen = [opacity, left, right]
        shown: list[Any] = [frame, *chosen]
        show = "(...given) => spiritseg.show(...given)"
        blocks.load(None, None, legend, js="() => spiritseg.start()")
        drop.upload(None, None, said, js="() => spiritseg.wait()").then(
            None,
            chosen,
            [said, compared, legend, frame, play],
            js="(...given) => spiritseg.upload(...given)",
        )
        for one in shown:
            one.change(None, shown, [compared, legend], js=show)
        play.click(
            None,
            play,
            [play, timer],
            js="(said) => [said === 'Play' ? 'Pause' : 'Play', "
            "{__type__: 'update', active: said === 'Play'}]",
        )
        timer.tick(None, frame, frame, js="(number) => spiritseg.next(number)")
    return blocks


class _ClosedRoutes:
    """Leaves open what the page needs, and adds headers that keep it on this host."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if not path.startswith("/api/"):
            asked = _OPEN.fullmatch(path) and ".." not in path
            if not asked or scope["method"] not in ("GET", "HEAD"):
                refused = JSONResponse({"error": f"there is no {path} here."}, 404)
                await refused(scope, receive, send)
                return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self._app(scope, receive, guarded)
