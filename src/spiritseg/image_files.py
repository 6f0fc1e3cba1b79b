"""Finding files below a folder; training and deployment look at a folder alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from spiritseg.errors import DataError

__all__ = ["files_below"]


def files_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Find files at any depth, sorted by their path below the folder.

    Args:
        folder: where to look; hidden files and folders are left out, links are followed, and a
            folder that several links lead to counts once.
        suffixes: lower-case suffixes that count, in any case.

    Returns:
        The files, a link that leads nowhere among them.

    Raises:
        DataError: a folder below cannot be read.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for here, below, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(here)
        if real in seen:  # a link that leads back up, or to where another one led
            below.clear()
            continue
        seen.add(real)
        # A disk's own lost+found is nobody's to read, and holds no images.
        below[:] = sorted(n for n in below if n[0] != "." and n != "lost+found")
        wanted = (n for n in names if n.lower().endswith(tuple(suffixes)) and n[0] != ".")
        found.extend(Path(here, name) for name in wanted)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _refuse(error: OSError) -> None:
    raise DataError(
        f"cannot look into the folder {error.filename}: {error.strerror or error}. Make it "
        "readable, or move it elsewhere: its images would be left out."
    ) from error
