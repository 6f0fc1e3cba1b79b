"""The progress bar of a prediction."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

__all__ = ["Progress"]


class Progress:
    """Frames done, of how many, and frames per second.

    Args:
        shown: whether it is drawn.
    """

    def __init__(self, shown: bool) -> None:
        self._drawn = RichProgress(
            TextColumn("segmenting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._drawn.add_task("", total=0, rate="")
        self._total = self._done = 0
        self._started = 0.0

    def expect(self, count: int) -> None:
        """Say that further frames will come."""
        self._total += count
        self._drawn.update(self._task, total=self._total)

    def advance(self, count: int) -> None:
        """Say that frames are done."""
        now = time.perf_counter()
        self._started = self._started or now
        self._done += count
        seconds = now - self._started
        rate = f"{(self._done - 1) / seconds:.1f} frames/s" if seconds > 0 else ""
        total = max(self._total, self._done)
        self._drawn.update(self._task, advance=count, total=total, rate=rate)

    def __enter__(self) -> Progress:
        self._drawn.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._drawn.stop()
