"""Whose requests are answered: pages of other sites may not ask through a visitor's browser."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from spiritseg.errors import ConfigError

__all__ = ["OwnOrigin", "ServedAs"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EVERY_ADDRESS = ("0.0.0.0", "::", "")
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::\d*)?")


@dataclass(frozen=True)
class ServedAs:
    """The host names under which a server is reached; localhost is always one of them.

    Args:
        address: that it listens on. A server that listens on every address (0.0.0.0, ::) is
            reached under any address, and under the name of this machine.
        names: further host names, such as that of a proxy in front of it.

    Raises:
        ConfigError: a name is none.
    """

    address: str = "127.0.0.1"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.names:
            if not (re.fullmatch(r"[\w.-]+", name) or _is_address(name)):
                raise ConfigError(
                    f"serve: expected a host name without scheme, port and path, such as "
                    f"road.example.org, got {name[:100]!r}."
                )

    def refusal(self, hosts: Iterable[str], origins: Iterable[str]) -> str | None:
        """Return why a request is refused, or None where it is not.

        Args:
            hosts: values of its Host header; a request without one comes from no browser.
            origins: values of its Origin header, which says whose page asks.
        """
        hosts = [host.lower() for host in hosts]
        for host in hosts:
            if not self._is_own(_name(host)):
                return (
                    f"this server does not answer as {host[:100]!r}. If it should, start it with "
                    "that name as --allow-host."
                )
        for origin in origins:
            site = origin.lower().partition("://")[2]
            if site not in hosts and not self._is_given(_name(site)):
                return f"this server does not answer pages of {origin[:100]!r}."
        return None

    def _is_own(self, name: str) -> bool:
        if name in (*_LOOPBACK, self.address.lower()) or self._is_given(name):
            return True
        everywhere = self.address in _EVERY_ADDRESS
        return everywhere and (_is_address(name) or name == socket.gethostname().lower())

    def _is_given(self, name: str) -> bool:
        return name in (given.lower() for given in self.names)


class OwnOrigin:
    """Refuses requests under a foreign host name (DNS rebinding) and those of foreign pages.

    Args:
        app: what answers the others.
        served_as: the server's own names.
    """

    def __init__(self, app: ASGIApp, served_as: ServedAs) -> None:
        self._app = app
        self._served_as = served_as

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given: dict[bytes, list[str]] = {b"host": [], b"origin": []}
        for name, value in scope["headers"]:
            if name in given:
                given[name].append(value.decode("latin-1"))
        refusal = self._served_as.refusal(given[b"host"], given[b"origin"])
        answer = JSONResponse({"error": refusal}, 403) if refusal else self._app
        await answer(scope, receive, send)


def _name(host: str) -> str:
    """Return a host without its port; nothing where it is no host."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).rstrip(".") if found else ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
