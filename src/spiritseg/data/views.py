"""Training views that come round again, kept in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from spiritseg.data.images import Budget
from spiritseg.data.transforms import View

__all__ = ["KeptViews"]


class KeptViews:
    """Views by what they are a function of, in 8 bits; what is kept changes no number.

    When the memory is full, what came first stays: views come round in turn, so that
    replacing would never hit.

    Args:
        budget: memory that decoded images share; what the views took goes back with them.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._kept: dict[tuple[int, int, int], View] = {}
        self._taken = 0

    def __call__(self, key: tuple[int, int, int], draw: Callable[[], View]) -> View:
        """Return a view, drawn if it is not kept.

        Args:
            key: (domain, index, view).
            draw: makes it.
        """
        if (kept := self._kept.get(key)) is not None:
            return kept
        view = draw()
        nbytes = sum(part.nbytes for part in view if isinstance(part, Tensor))
        if self._budget.take(nbytes):
            copies = [_clone(part) for part in view[1:]]
            self._kept[key] = View(view.image.clone(), *copies)
            self._taken += nbytes
        return view

    def __len__(self) -> int:
        return len(self._kept)

    def __getstate__(self) -> dict[str, Any]:
        return {"_budget": self._budget, "_kept": {}, "_taken": 0}  # workers draw for themselves

    def __del__(self) -> None:
        self._budget.give(self._taken)


def _clone(part: Tensor | None) -> Tensor | None:
    """Copy a crop out of its image, which would stay in memory with it."""
    return None if part is None else part.clone()
