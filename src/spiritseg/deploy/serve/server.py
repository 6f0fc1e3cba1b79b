"""spiritseg serve: students on a web page, with a JSON endpoint beside it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from spiritseg.errors import ConfigError, MissingExtraError, RunError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from spiritseg.deploy.serve.origins import ServedAs
    from spiritseg.deploy.serve.students import Students
    from spiritseg.deploy.serve.uploads import Limits

__all__ = ["make_app", "serve"]


def make_app(
    students: Students, limits: Limits | None = None, served_as: ServedAs | None = None
) -> FastAPI:
    """Make the web application: the page at /, the endpoint under /api.

    Args:
        students: what is served.
        limits: of uploads; by default those of `Limits`.
        served_as: host names under which it answers; by default those of this machine alone.

    Returns:
        The application, for any ASGI server.

    Raises:
        ConfigError: there is no student.
        MissingExtraError: Gradio is not installed.
    """
    if not students.names:
        raise ConfigError("serve: expected one student or more, got none.")
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise MissingExtraError(
            "the page needs Gradio, which is not installed: pip install 'spiritseg[web]'."
        ) from None
    from spiritseg.deploy.serve.endpoint import make_endpoint
    from spiritseg.deploy.serve.origins import OwnOrigin, ServedAs
    from spiritseg.deploy.serve.page import mount_page
    from spiritseg.deploy.serve.uploads import Limits

    limits = limits or Limits()

    async def made() -> FastAPI:  # Gradio leaves event loops open where it finds none running
        return mount_page(make_endpoint(students, limits), students.names, limits)

    app = asyncio.run(made())
    app.add_middleware(OwnOrigin, served_as=served_as or ServedAs())
    return app


def serve(
    paths: Sequence[str | Path],
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    names: Sequence[str] = (),
    limits: Limits | None = None,
    threads: int | None = None,
    device: str = "cpu",
    trust: bool = False,
) -> None:
    """Serve students until interrupted.

    Args:
        paths: runs, bundles or exported files.
        host: address that it listens on; the default is this machine alone.
        port: 0 for any free one.
        names: further host names under which it is reached, such as that of a proxy.
        limits: of uploads.
        threads: of a forward pass on the CPU.
        device: cpu or cuda.
        trust: open a .pt2, or a bundle of your own classes.

    Raises:
        BundleError: a student cannot be opened.
        ConfigError: there is no student, threads below 1, a device that is not there, or a name
            that is no host name.
        MissingExtraError: Gradio or a student's engine is not installed.
        RunError: the address is not one of this machine, or the port is taken.
    """
    from spiritseg.deploy.serve.origins import ServedAs
    from spiritseg.deploy.serve.students import open_students

    served_as = ServedAs(host, tuple(names))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen()  # until then another server may bind the same port
        except (OSError, OverflowError, UnicodeError) as error:
            raise RunError(
                f"cannot listen on {host[:100]}:{port}: {error}. Choose another --host or --port."
            ) from None
        students = open_students(paths, threads, device, trust)
        app = make_app(students, limits, served_as)
        students.warm_up()
        from spiritseg.deploy.serve.connections import make_server

        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{listening.getsockname()[1]}  (stop with Ctrl-C)", flush=True)
        with suppress(KeyboardInterrupt):  # the server stops, then passes the signal on
            make_server(app).run(sockets=[listening])
