"""Seeds derived from names and numbers: every random draw is a function of one of these."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["derive_seed", "seeded"]


def derive_seed(*parts: int | str) -> int:
    """Mix names and numbers into one seed, the same on every machine and Python.

    Args:
        *parts: what the draw belongs to, such as ``(seed, stage, epoch, index)``; ``1`` and
            ``"1"`` are different parts.

    Returns:
        An integer in [0, 2**63).
    """
    text = repr(tuple(part if isinstance(part, str) else int(part) for part in parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers on the CPU from a seed, and leave its global state as it was.

    Args:
        seed: of the draws inside the block; only the CPU's generator is touched.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
