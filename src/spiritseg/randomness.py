"""Seeds derived from names and numbers: every random draw is a function of one of these."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


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
