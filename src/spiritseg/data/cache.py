"""Bounded memory for what is slow to make: decoded images, drawn views, frozen outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor

__all__ = ["Budget", "Cache"]

V = TypeVar("V")


class Budget:
    """Memory that several caches of this process share.

    Args:
        mib: size in MiB.
    """

    def __init__(self, mib: float) -> None:
        self._total = self._left = int(mib * 2**20)
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        """Free memory in bytes."""
        return self._left

    def take(self, nbytes: int) -> bool:
        """Reserve memory; False if too little is left."""
        with self._lock:
            if nbytes > self._left:
                return False
            self._left -= nbytes
            return True

    def give(self, nbytes: int) -> None:
        """Return reserved memory."""
        with self._lock:
            self._left += nbytes

    def __getstate__(self) -> int:
        return self._total  # a spawned worker starts with an empty memory of its own

    def __setstate__(self, total: int) -> None:
        self._total = self._left = total
        self._lock = threading.Lock()


class Cache(Generic[V]):
    """Values by key, kept while the memory lasts; caching never changes a number.

    When the memory is full, what came first stays: images and views come round in turn, so that
    replacing the oldest would never hit. A pickled cache arrives empty in a worker.

    Args:
        budget: memory shared with other caches; returned when the cache is deleted.
        copy: applied to a value before it is kept, such as a clone of a view of a larger tensor.
    """

    def __init__(self, budget: Budget, copy: Callable[[V], V] | None = None) -> None:
        self.budget = budget
        self.nbytes = 0
        self._copy = copy
        self._kept: dict[Hashable, V] = {}

    def __call__(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return the value of a key, made if it is not kept."""
        if (kept := self._kept.get(key)) is not None:
            return kept
        value = make()
        self.keep(key, value)
        return value

    def get(self, key: Hashable) -> V | None:
        """Return the value of a key, or None if it is not kept."""
        return self._kept.get(key)

    def keep(self, key: Hashable, value: V) -> None:
        """Keep a value of tensors, if it is new and the memory suffices."""
        if key not in self._kept and self.budget.take(nbytes := _nbytes(value)):
            self._kept[key] = self._copy(value) if self._copy else value
            self.nbytes += nbytes

    def __len__(self) -> int:
        return len(self._kept)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "nbytes": 0}

    def __del__(self) -> None:
        self.budget.give(self.nbytes)


def _nbytes(value: object) -> int:
    """Return the bytes of a tensor, or of all tensors in a tuple or mapping."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return sum(map(_nbytes, value)) if isinstance(value, tuple) else 0
