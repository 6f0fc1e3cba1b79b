"""Decoding, the network and encoding at once, in threads and in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from typing import TypeVar

import numpy as np

from spiritseg.images import Pixels

__all__ = ["batches", "mapped", "segmented"]

T = TypeVar("T")
R = TypeVar("R")


def mapped(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """Call a function on items in several threads.

    Args:
        function: Called in the threads.
        items: Read in the caller's thread, when their results are asked for.
        workers: Number of threads.
        ahead: Number of items beyond the result that is waited for.

    Yields:
        The results, in order. An exception is raised in the place of its result.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def batches(pairs: Iterable[tuple[T, Pixels]], most: int) -> Iterator[list[tuple[T, Pixels]]]:
    """Group neighbouring images of one size.

    Args:
        pairs: Keys and images (H, W, 3) uint8.
        most: Largest number of images in a group.

    Yields:
        The pairs of each group, as soon as it is full or the next image has another size.
    """
    for _, same in groupby(pairs, key=lambda pair: pair[1].shape):
        while group := list(islice(same, most)):
            yield group


def segmented(
    masks: Callable[[Pixels], Pixels],
    pairs: Iterable[tuple[T, Pixels]],
    batch: int = 1,
    streams: int = 1,
) -> Iterator[tuple[T, Pixels, Pixels]]:
    """Segment images, several batches at once.

    Args:
        masks: Maps images (N, H, W, 3) to masks (N, H, W); called in threads.
        pairs: Keys and images (H, W, 3) uint8.
        batch: Largest number of images of one size in a batch.
        streams: Number of batches at once; one more waits, so that no thread idles.

    Yields:
        Key, image and mask, in order.
    """

    def run(group: list[tuple[T, Pixels]]) -> list[tuple[T, Pixels, Pixels]]:
        found = masks(np.stack([pixels for _, pixels in group]))
        return [(key, pixels, mask) for (key, pixels), mask in zip(group, found, strict=True)]

    for found in mapped(run, batches(pairs, batch), streams, streams):
        yield from found
