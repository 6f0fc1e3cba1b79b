"""What the server accepts: whose requests, on which routes, how large, and how slow."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from spiritseg.errors import ConfigError

__all__ = ["Guard", "PromptProtocol"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EVERY_ADDRESS = ("0.0.0.0", "::", "")
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::\d*)?")
_UPLOAD = "/gradio_api/upload"
_SMALL = 64 * 1024  # bytes of a request other than an upload, and of what a form adds to a file
_MOST_INCOMPLETE = 64  # connections
# Gradio's routes that the page and gradio_client need. The others stay closed: the editor, the
# proxy, streams, recordings.
_OPEN = {
    "GET": re.compile(
        r"/(config|theme\.css|favicon\.ico|(assets|static)/[\w./@-]+|gradio_api/"
        r"(info|startup-events|heartbeat/\w+|queue/data|upload_progress|file=(?!\w+:/).+))?"
    ),
    "POST": re.compile(r"/gradio_api/(upload|queue/join|cancel|reset|(run|api)/segment)/?"),
}
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        b"font-src 'self' data:; object-src 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """ASGI middleware that refuses foreign hosts and pages, other routes, and long bodies.

    Args:
        app: The application.
        folder: Folder of uploads and results; when it is full, uploads are refused.
        max_bytes: Largest upload in bytes.
        address: Address that the server listens on. With 0.0.0.0 or ::, it answers under every
            IP address and the name of this machine; under localhost it always does.
        names: Further host names, such as that of a proxy in front of it.

    Raises:
        ConfigError: Not a host name.
    """

    def __init__(
        self,
        app: ASGIApp,
        folder: Path,
        max_bytes: int,
        address: str = "127.0.0.1",
        names: Sequence[str] = (),
    ) -> None:
        for name in names:
            if not (re.fullmatch(r"[\w.-]+", name) or _is_address(name)):
                raise ConfigError(
                    "serve: expected a host name without scheme, port and path, such as "
                    f"road.example.org, got {name[:100]!r}."
                )
        self._app = app
        self._folder = folder
        self._max_bytes = max_bytes
        self._everywhere = address in _EVERY_ADDRESS
        self._given = {name.lower() for name in names}
        self._own = {*_LOOPBACK, address.lower(), *self._given}
        if self._everywhere:
            self._own.add(socket.gethostname().lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, 404, 413 or 503, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = _SMALL + (self._max_bytes if scope["path"] == _UPLOAD else 0)
        if refused := self._refusal(scope, most):
            await JSONResponse({"error": refused[1]}, refused[0])(scope, receive, send)
            return
        count = 0

        async def bounded() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > most:
                raise HTTPException(413, _too_large(most))
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        with suppress(ClientDisconnect):
            await self._app(scope, bounded, guarded)

    def _refusal(self, scope: Scope, most: int) -> tuple[int, str] | None:
        """Return the status and the reason if a request is refused by its head alone."""
        headers = Headers(scope=scope)
        hosts, origins, lengths = (
            [value.lower() for value in headers.getlist(name)]
            for name in ("host", "origin", "content-length")
        )
        if reason := self._foreign(hosts, origins):
            return 403, reason
        path, method = scope["path"], scope["method"].replace("HEAD", "GET")
        if method not in _OPEN or not _OPEN[method].fullmatch(path) or ".." in path:
            return 404, f"there is no {method} {path[:200]}."
        if any(length.isdigit() and int(length) > most for length in lengths):
            return 413, _too_large(most)
        if path == _UPLOAD and _size(self._folder) > 32 * self._max_bytes:
            return 503, "the server holds too many uploads; try again in a few minutes."
        return None

    def _foreign(self, hosts: list[str], origins: Iterable[str]) -> str | None:
        """Return why a request is refused: a foreign host name (DNS rebinding) or page."""
        for host in hosts:
            name = _name(host)
            if name not in self._own and not (self._everywhere and _is_address(name)):
                return (
                    f"this server does not answer as {host[:100]!r}. If it should, start it with "
                    "that name as --allow-host."
                )
        for origin in origins:  # the site of the page that sent it
            site = origin.partition("://")[2]
            if site not in hosts and _name(site) not in self._given:
                return f"this server does not answer pages of {origin[:100]!r}."
        return None


class PromptProtocol(H11Protocol):
    """uvicorn's HTTP protocol with a time limit for receiving a request, head and body.

    If too many connections have not sent a whole request, the oldest of them is closed, so that
    they never use up the server's connections.
    """

    request_s = 60.0  # seconds for a whole request
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request."""
        super().connection_made(transport)
        self._watch()
        incomplete = [
            (one._due.when(), one)
            for one in self.connections
            if isinstance(one, PromptProtocol) and one._due is not None
        ]
        if len(incomplete) > _MOST_INCOMPLETE:
            min(incomplete, key=lambda pair: pair[0])[1]._close()

    def data_received(self, data: bytes) -> None:
        """Stop waiting if the request is complete; start again with the next."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            self._stop()
        elif self._due is None and not self.transport.is_closing():
            self._due = self.loop.call_later(self.request_s, self._close)

    def _stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _close(self) -> None:
        self._stop()
        self.transport.close()


def _name(host: str) -> str:
    """Return a host without its port; empty if it is not a host."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).rstrip(".") if found else ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _too_large(most: int) -> str:
    return f"the request has more than {most / 2**20:.3g} MiB, this server's limit."


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # deleted meanwhile
            size += path.stat().st_size
    return size
