"""The HTTP server; a connection says in time what it asks for, or is closed."""

from __future__ import annotations

import asyncio
from operator import itemgetter

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["PromptProtocol", "make_server"]

_MOST_WAITING = 64  # connections without the head of a request
_MOST = 128  # connections; beyond these, requests are refused


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Make the server of an application.

    Args:
        app: what answers.

    Returns:
        The server, to be run on a socket.
    """
    config = uvicorn.Config(
        app,
        http=PromptProtocol,
        ws="none",
        log_config=None,  # setting logging up anew would close what else in this process logs
        log_level="warning",
        access_log=False,
        limit_concurrency=_MOST,
        timeout_graceful_shutdown=3,  # an open page never closes its connection by itself
    )
    return uvicorn.Server(config)


class PromptProtocol(H11Protocol):
    """uvicorn's HTTP protocol with a time limit for the head of a request.

    A connection is closed if the head does not arrive in time, or if the client goes on sending
    the body of a request that was answered already. If too many connections wait for a head, the
    one that has waited longest is closed, so that they never use up the server's connections.
    """

    head_s = 10.0  # seconds for the head of a request
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a head."""
        super().connection_made(transport)
        self._watch()
        waiting = [
            (one._due.when(), one)
            for one in self.connections
            if isinstance(one, PromptProtocol) and one._due is not None
        ]
        if len(waiting) > _MOST_WAITING:
            min(waiting, key=itemgetter(0))[1]._give_up()

    def data_received(self, data: bytes) -> None:
        """Stop waiting if the head is complete, or start again after an answer."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._due is None and not self.transport.is_closing():
            self._due = self.loop.call_later(self.head_s, self._give_up)

    def _stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _give_up(self) -> None:
        self._stop()
        self.transport.close()
