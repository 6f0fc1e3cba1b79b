"""Files that are either whole under their name or not there."""

from __future__ import annotations

import os
from pathlib import Path

from spiritseg.errors import RunError

__all__ = ["write_atomically"]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole under its name or not there.

    Args:
        path: the file; its folder exists.
        data: its contents.

    Raises:
        RunError: there is no space left, or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {path}: {error.strerror or error}. What was written before is whole; "
            "make room or choose another folder, and start the same command again."
        ) from None
