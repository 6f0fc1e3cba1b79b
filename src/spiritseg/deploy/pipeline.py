"""What keeps a network busy: batches, several passes at once, encoding behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from spiritseg.images import Pixels

__all__ = ["Writers", "batches", "segmented"]

T = TypeVar("T")


def batches(pairs: Iterable[tuple[T, Pixels]], most: int) -> Iterator[tuple[list[T], list[Pixels]]]:
    """Group neighbours of one size.

    Args:
        pairs: keys and images (H, W, 3) uint8.
        most: images in a group, 1 or more.

    Yields:
        The keys of a group and its images, in order; none is held back for longer than it
        takes to fill its group, or to meet an image of another size.
    """
    keys: list[T] = []
    images: list[Pixels] = []
    for key, pixels in pairs:
        if images and (len(images) == most or pixels.shape != images[0].shape):
            yield keys, images
            keys, images = [], []
        keys.append(key)
        images.append(pixels)
        if len(images) == most:
            yield keys, images
            keys, images = [], []
    if images:
        yield keys, images


def segmented(
    masks: Callable[[Pixels], Pixels],
    groups: Iterable[tuple[list[T], list[Pixels]]],
    streams: int,
) -> Iterator[tuple[T, Pixels, Pixels]]:
    """Run groups of images through a network, several groups at once.

    Args:
        masks: from images (N, H, W, 3) to masks (N, H, W); called in threads.
        groups: of `batches`.
        streams: calls at once; one more group waits, so that none of them does.

    Yields:
        Key, image and mask, in the order of the groups.
    """
    waiting: deque[tuple[list[T], list[Pixels], Future[Pixels]]] = deque()

    def oldest() -> Iterator[tuple[T, Pixels, Pixels]]:
        keys, images, found = waiting.popleft()
        yield from zip(keys, images, found.result(), strict=True)

    with ThreadPoolExecutor(streams, "network") as pool:
        try:
            for keys, images in groups:
                waiting.append((keys, images, pool.submit(masks, np.stack(images))))
                if len(waiting) > streams:
                    yield from oldest()
            while waiting:
                yield from oldest()
        finally:
            for _, _, found in waiting:
                found.cancel()


class Writers:
    """Threads that encode and write behind the network, never many files behind."""

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, "encode")
        self._waiting: deque[Future[None]] = deque()
        self._most = 4 * workers

    def do(self, work: Callable[..., None], *args: Any) -> None:
        """Run work in a thread; what an earlier one raised is raised here."""
        self._waiting.append(self._pool.submit(work, *args))
        while len(self._waiting) > self._most or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            for future in self._waiting:
                future.result()
