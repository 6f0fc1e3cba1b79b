"""Files that are either whole under their name or not there."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import sys
import threading
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from spiritseg.errors import RunError

__all__ = [
    "clear_parts",
    "fields_digest",
    "json_bytes",
    "make_folder",
    "part_of",
    "read_fields",
    "without_folders",
    "write_atomically",
]

# Of a file that is being written: its name, the machine, its process and thread.
_PART = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-\d+\.part", re.DOTALL)
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
_DAY_S = 86_400

# A rule such as list: (of two letters and more, for C: is a drive), then a path from the root,
# from a home, from a drive, or one that leads up.
_RULE = re.compile(r"(?:[\w-]{2,}:)*")
_OUTSIDE = re.compile(r"[/\\]|~|[A-Za-z]:[/\\]|(?:[^/\\]*[/\\])*\.\.(?:[/\\]|$)")


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Args:
        path: the folder.

    Raises:
        RunError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {path}: {error.strerror}.") from None


def part_of(path: Path) -> Path:
    """Name the file that is written in a file's place until it is whole.

    Args:
        path: the file.

    Returns:
        A hidden file beside it, whose name no other thread, process or machine uses.
    """
    # A name has 255 bytes at the most.
    name = path.name.encode(errors="surrogateescape")[:200].decode(errors="ignore")
    writer = f"{_MACHINE}-{os.getpid()}-{threading.get_native_id()}"
    return path.with_name(f".{name}.{writer}.part")


def clear_parts(folder: Path) -> None:
    """Remove what killed processes have left of `part_of` in a folder.

    Args:
        folder: what is below it stays; what cannot be removed, too.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            found = _PART.fullmatch(path.name)
            if found is not None:
                with suppress(OSError):
                    if _left(path, found[1], int(found[2])):
                        path.unlink()


_clear_once = lru_cache(maxsize=1024)(clear_parts)  # a folder may hold a file a frame


def _left(part: Path, machine: str, process: int) -> bool:
    """Whether nobody writes it any more: its process is gone, or has not touched it for a day."""
    if time.time() - part.stat().st_mtime > _DAY_S:
        return True
    if machine != _MACHINE or sys.platform == "win32":  # where to ask for a process is to end it
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole under its name or not there.

    Args:
        path: the file; its folder exists.
        data: its contents.

    Raises:
        RunError: there is no space left, or the folder cannot be written.
    """
    _clear_once(path.parent.absolute())
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # where nothing can be written, nothing can be removed
            part.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {path}: {error.strerror or error}. What was written before is whole; "
            "make room or choose another folder, and start the same command again."
        ) from None


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; file systems that cannot are left alone."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def json_bytes(value: Any) -> bytes:
    """Return plain values as JSON; what is not finite becomes null, which JSON has.

    Args:
        value: dicts, lists, tuples, numbers and words.
    """
    return json.dumps(_finite(value), indent=1, allow_nan=False).encode()


def fields_digest(fields: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain values, without the one in their own field ``sha256``."""
    plain = json.loads(json_bytes({k: v for k, v in fields.items() if k != "sha256"}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_fields(path: Path) -> dict[str, Any]:
    """Read a JSON file of fields; nothing where it is not there, or holds something else.

    Args:
        path: the file.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def without_folders(value: Any) -> Any:
    """Return plain values without the folders of this machine: of a path only the last part.

    Absolute paths, those of a home (~) and those that lead up (..) are shortened to
    ``.../NAME``, which opens nothing: a bare name could be a folder where somebody else works.
    Paths below the working folder and URLs stay.

    Args:
        value: dicts, lists, tuples, numbers and words; ``folder:/a/b`` becomes ``folder:.../b``.
    """
    if isinstance(value, str):
        return _short(value)
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    return [without_folders(item) for item in value] if isinstance(value, list | tuple) else value


def _short(value: str) -> str:
    if "://" in value and not value.startswith("file:"):
        return value
    rule = _RULE.match(value)
    assert rule is not None  # it matches nothing, too
    path = value[rule.end() :]
    if not _OUTSIDE.match(path):
        return value
    *_, last = ["", *(part for part in re.split(r"[/\\]", path) if part)]
    named = last not in (".", "..") and last[:1] != "~" and last[1:] != ":"
    return f"{rule.group()}.../{last if named else ''}"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
