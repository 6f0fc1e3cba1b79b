"""spiritseg serve: students on a web page with an API, on Gradio."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from spiritseg.errors import MissingExtraError, RunError

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from spiritseg.serve.page import Students

__all__ = ["make_app", "make_server", "serve", "upload_folder"]

_KEPT_S = 900  # seconds for which uploads and results stay on the disk
_MOST = 128  # connections; beyond these, requests are refused


def serve(
    students: Sequence[str | Path],
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    allow_host: Sequence[str] = (),
    max_mib: float = 32,
    max_megapixels: float = 10,
    threads: int | None = None,
    device: str = "cpu",
    trust: bool = False,
) -> None:
    """Serve students on a web page with an API, until interrupted.

    Args:
        students: Runs, bundles or exported files.
        host: Address to listen on; by default only this machine can connect.
        port: Port to listen on; 0 for any free one.
        allow_host: Further host names under which it is reached, such as that of a proxy.
        max_mib: Largest upload in MiB.
        max_megapixels: Largest image in megapixels.
        threads: CPU threads of a forward pass, 1 or more; by default the engine's choice.
        device: cpu or cuda.
        trust: Open a .pt2, or a bundle with classes of your own.

    Raises:
        BundleError: A student cannot be opened.
        ConfigError: No student, a limit that is not above 0, fewer than 1 thread, an unavailable
            device, or not a host name.
        MissingExtraError: Gradio or a student's engine is not installed.
        RunError: The address is not one of this machine, or the port is in use.
    """
    if find_spec("gradio") is None:
        raise MissingExtraError(
            "the page needs Gradio, which is not installed: pip install 'spiritseg[web]'."
        )
    from spiritseg.serve.page import Students, open_students

    with (
        _listen(host, port) as listening,  # first, so that no other server takes the port
        upload_folder() as folder,
        suppress(KeyboardInterrupt),  # uvicorn stops, then passes the signal on
    ):
        runtimes = open_students(students, threads, device, trust)
        served = Students(runtimes, max_mib, max_megapixels)
        app = make_app(served, folder, host, allow_host)
        served.warm_up()
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{listening.getsockname()[1]}  (stop with Ctrl-C)", flush=True)
        make_server(app).run(sockets=[listening])


def make_app(
    students: Students, folder: Path, address: str = "127.0.0.1", names: Sequence[str] = ()
) -> ASGIApp:
    """Make the web application: the page at /, its API under /gradio_api.

    Args:
        students: The students to serve.
        folder: Folder of uploads and results, from `upload_folder`.
        address: Address that the server listens on.
        names: Further host names under which it answers; see `Guard`.

    Raises:
        ConfigError: Not a host name.
    """
    import gradio
    from fastapi import FastAPI

    from spiritseg.serve.guard import Guard
    from spiritseg.serve.page import make_blocks

    @asynccontextmanager
    async def sweeping(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_sweep(folder))
        yield
        task.cancel()

    async def made() -> FastAPI:  # Gradio leaves event loops open where it finds none running
        blocks = make_blocks(students, folder)
        blocks.has_launched = True  # only then does Gradio refuse files that are not uploads
        font = ("system-ui", "sans-serif")  # plain names: no font is fetched
        mounted: FastAPI = gradio.mount_gradio_app(
            FastAPI(lifespan=sweeping, openapi_url=None),
            blocks,
            path="/",
            theme=gradio.themes.Base(font=font, font_mono=font),
            footer_links=[],
            run_history=False,
            show_error=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            max_file_size=students.max_bytes,
        )
        return mounted

    return Guard(asyncio.run(made()), folder, students.max_bytes, address, names)


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Make the HTTP server of an application, to be run on a socket."""
    import uvicorn

    from spiritseg.serve.guard import PromptProtocol

    config = uvicorn.Config(
        app,
        http=PromptProtocol,
        ws="none",
        log_config=None,  # a new configuration would close the other logs of this process
        log_level="warning",
        access_log=False,
        limit_concurrency=_MOST,
        timeout_graceful_shutdown=3,  # an open page never closes its connection
    )
    return uvicorn.Server(config)


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Give Gradio a folder of its own for uploads and results, deleted at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="spiritseg-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        try:
            yield folder
        finally:
            del os.environ["GRADIO_TEMP_DIR"]
            os.environ.update({} if before is None else {"GRADIO_TEMP_DIR": before})


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, OverflowError, UnicodeError) as error:
        raise RunError(
            f"cannot listen on {host[:100]}:{port}: {error}. Choose another --host or --port."
        ) from None


async def _sweep(folder: Path, kept_s: float = _KEPT_S) -> None:
    """Delete old uploads, also those broken off, and results."""
    while True:
        for path in folder.rglob("*"):
            with suppress(OSError):  # deleted meanwhile, or a folder that is not empty
                if path.is_dir():
                    path.rmdir()
                elif time.time() - path.stat().st_mtime > kept_s:
                    path.unlink()
        await asyncio.sleep(kept_s / 15)
