"""Graceful stops on SIGTERM, as sent by docker, SLURM, systemd and Kubernetes.

SIGTERM raises `Terminated`, as Ctrl-C raises KeyboardInterrupt. Training first completes the
epoch if that takes at most `_PATIENCE_S`; docker kills after ten seconds.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Terminated", "patient", "stop_behind", "stop_requested", "take_signal", "terminable"]

_PATIENCE_S = 5.0


class Terminated(SystemExit):
    """The process received SIGTERM; its exit code is 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class _State:
    """Whether SIGTERM was received, and whether an epoch may be completed first."""

    requested = False
    patient = False


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM inside the block (in the main thread only)."""
    if not _in_main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    _State.requested = False
    take_signal()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def take_signal() -> None:
    """Install the SIGTERM handler over any other (in the main thread only)."""
    if _in_main_thread():
        signal.signal(signal.SIGTERM, _on_signal)


@contextmanager
def patient(*, if_alone: bool) -> Iterator[None]:
    """Delay `Terminated` inside the block, which polls `stop_requested` after each epoch.

    Args:
        if_alone: whether this is the only process; in distributed training a waiting process
            would block the stopped ones, so nothing is delayed.
    """
    can = if_alone and _in_main_thread() and hasattr(signal, "setitimer")
    _State.patient = can
    try:
        yield
    finally:
        _State.patient = False
        if can and _State.requested:
            signal.setitimer(signal.ITIMER_REAL, 0)


def stop_requested() -> bool:
    """Whether SIGTERM was received."""
    return _State.requested


def stop_behind(error: BaseException) -> BaseException | None:
    """Return the stop (Ctrl-C or SIGTERM) among an error's causes, or None.

    Interrupted code may raise other errors during its cleanup.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        if isinstance(one, KeyboardInterrupt):
            return KeyboardInterrupt()
        # Lightning's SIGTERMException is a SystemExit without a code.
        if isinstance(one, Terminated) or type(one).__name__ == "SIGTERMException":
            return Terminated()
        seen.add(id(one))
        pending += [one.__context__, one.__cause__]
    return None


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _on_signal(number: int, frame: Any) -> None:
    first = not _State.requested
    _State.requested = True
    if not (first and _State.patient):
        raise Terminated
    signal.signal(signal.SIGALRM, _out_of_patience)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)


def _out_of_patience(number: int, frame: Any) -> None:
    raise Terminated
