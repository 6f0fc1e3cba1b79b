"""What the fuzzers share: odd values, and where to put them; a case is a function of its seed."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from spiritseg.errors import SpiritsegError

__all__ = ["CASES", "FetchedError", "is_clear", "mutate", "no_network", "odd", "paths"]

# make fuzz runs more.
CASES = range(int(os.environ.get("SPIRITSEG_FUZZ", "110")))

_ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 10**6, 2**31, 2**63, 10**30, -(10**18)),
    *(0.5, -1.5, 1e308, float("nan"), float("inf")),
    *("", "x", ".", "..", "../../x", "/etc/passwd", "http://127.0.0.1:9/x", "hf-hub:a/b", "\0"),
    *("null", "1e400", "é", "a" * 10_000, "sd", "{", "[", "&a *a", "2024-01-01", "word word"),
    *([], [[]], [1, 2, 3, 4], [None], ["x", 1], [1] * 1000, [-1, -1, -1], [1.5, "a", {}]),
    *({}, {"": 0}, {"a": {"b": [1]}}, {"name": 3}, {"class_path": "os.system"}),
)


class FetchedError(BaseException):
    """Something asked for the network; no handler of exceptions hides it."""


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kw: object) -> None:
        raise FetchedError(args)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def is_clear(error: SpiritsegError) -> None:
    """Check that a message says something, and not everything."""
    assert 20 < len(str(error)) < 20_000


def odd(draw: random.Random) -> Any:
    """Draw an odd value; one in ten is nested."""
    value = draw.choice(_ODD)
    for _ in range(draw.choice([0] * 9 + [60])):
        value = [value] if draw.random() < 0.5 else {"a": value}
    return value


def paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where every value of nested dicts and lists is."""
    for key in (
        tree if isinstance(tree, dict) else range(len(tree) if isinstance(tree, list) else 0)
    ):
        yield (*path, key)
        yield from paths(tree[key], (*path, key))


def mutate(tree: Any, draw: random.Random, values: tuple[Any, ...] = ()) -> None:
    """Replace, take out, double or add one value somewhere in a tree, in place."""
    places = [*paths(tree)]
    if not places:
        return
    *above, last = draw.choice(places)
    for key in above:
        tree = tree[key]
    value = draw.choice(values) if values and draw.random() < 0.5 else odd(draw)
    how = draw.random()
    if how < 0.7:
        tree[last] = value
    elif how < 0.85:
        del tree[last]
    elif isinstance(tree, list):
        tree.append(value)
    else:
        tree[
            draw.choice(["x", "", "a.b", "../x", "weights", "checkpoint_path", str(last) + "_"])
        ] = value
