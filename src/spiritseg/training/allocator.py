"""Freed memory stays with the process while a network is trained."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["freed_memory_kept"]

# The parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1
# What glibc's own adjustment ends with in a process that has freed large blocks.
_USUAL_TRIM_THRESHOLD, _USUAL_MMAP_MAX = 64 * 2**20, 65536


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the C allocator keep what a step frees for the next step; give it back at the end.

    By default glibc returns blocks of more than some MiB to the system as soon as they are
    freed. Each step on a CPU then waits for the system to hand it zeroed pages again: a fifth
    of the time of a step with a teacher (``benchmarks/skd_step.py``), two thirds of a step of
    Table II's student (``benchmarks/train_step.py``). Other C libraries and systems are left
    as they are, and so are builds of torch that do not ask malloc (2.11's). Threads beside the
    main one may still get the largest blocks from the system. What is given back at the end
    is what is free by then.

    Source: mallopt(3), malloc_trim(3).
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM_THRESHOLD)
        libc.mallopt(_MMAP_MAX, _USUAL_MMAP_MAX)
        gc.collect()
        libc.malloc_trim(0)
