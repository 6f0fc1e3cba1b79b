"""Atomic file writes, JSON, and values without local folders."""

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
    "figures_are_whole",
    "json_bytes",
    "make_folder",
    "part_of",
    "read_fields",
    "without_folders",
    "write_atomically",
]

# A partial file: .NAME.MACHINE-PROCESS-THREAD.part
_PART = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-\d+\.part", re.DOTALL)
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
_DAY_S = 86_400

# A prefix such as list: (at least two letters, as C: is a drive), then a path that starts at
# the root, a home or a drive, or contains "..".
_RULE = re.compile(r"(?:[\w-]{2,}:)*")
_OUTSIDE = re.compile(r"[/\\]|~|[A-Za-z]:[/\\]|(?:[^/\\]*[/\\])*\.\.(?:[/\\]|$)")


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they are missing.

    Args:
        path: the folder.

    Raises:
        RunError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {path}: {error.strerror}.") from None


def part_of(path: Path) -> Path:
    """Return a path for the partial contents of a file.

    Args:
        path: the file.

    Returns:
        A hidden file in the same folder, unique to this thread, process and machine.
    """
    # File names have at most 255 bytes.
    name = path.name.encode(errors="surrogateescape")[:200].decode(errors="ignore")
    writer = f"{_MACHINE}-{os.getpid()}-{threading.get_native_id()}"
    return path.with_name(f".{name}.{writer}.part")


def clear_parts(folder: Path) -> None:
    """Remove the partial files that killed processes have left, as far as possible.

    Args:
        folder: searched without its subfolders.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            found = _PART.fullmatch(path.name)
            if found is not None:
                with suppress(OSError):
                    if _abandoned(path, found[1], int(found[2])):
                        path.unlink()


_clear_once = lru_cache(maxsize=1024)(clear_parts)  # a folder may hold many files


def _abandoned(part: Path, machine: str, process: int) -> bool:
    """Whether the writing process has ended, or not touched the file for a day."""
    if time.time() - part.stat().st_mtime > _DAY_S:
        return True
    if machine != _MACHINE or sys.platform == "win32":  # os.kill would end the process
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError, OverflowError) as error:
        return isinstance(error, ProcessLookupError)
    return False


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file atomically and durably: readers see all of it or nothing.

    Args:
        path: the file, in an existing folder.
        data: its contents.

    Raises:
        RunError: no space left, or no permission to write.
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
        with suppress(OSError):  # the folder may be read-only
            part.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {path}: {error.strerror or error}. Earlier files are intact; free disk "
            "space or choose another folder, and run the same command again."
        ) from None


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system supports it."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def json_bytes(value: Any) -> bytes:
    """Return plain values as JSON, with null for NaN and infinities.

    Args:
        value: dicts, lists, tuples, numbers and strings.
    """
    return json.dumps(_finite(value), indent=1, allow_nan=False).encode()


def fields_digest(fields: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain values, without the one in their own field ``sha256``."""
    plain = json.loads(json_bytes({k: v for k, v in fields.items() if k != "sha256"}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def figures_are_whole(run: Path, metrics: Mapping[str, Any]) -> bool:
    """Return whether ``metrics.json`` and ``per_image.csv`` of a run are as they were written.

    Args:
        run: Folder of the run.
        metrics: Contents of its ``metrics.json``; those of older runs have no digests.
    """
    whole = metrics.get("sha256") in (None, fields_digest(metrics))
    with suppress(OSError):  # a missing table is reported where it is read
        digest = hashlib.sha256((run / "per_image.csv").read_bytes()).hexdigest()
        whole &= metrics.get("per_image") in (None, digest)
    return whole


def read_fields(path: Path) -> dict[str, Any]:
    """Read a JSON object, or {} if the file is missing or holds something else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def without_folders(value: Any) -> Any:
    """Return plain values with the folders of this machine removed from paths.

    Absolute paths and those with ~ or .. become ``.../NAME``, which, unlike a bare name, cannot
    exist on another machine. Paths below the working folder and URLs stay.

    Args:
        value: dicts, lists, tuples, numbers and strings; ``folder:/a/b`` becomes
            ``folder:.../b``.
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
    assert rule is not None  # it also matches the empty string
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
