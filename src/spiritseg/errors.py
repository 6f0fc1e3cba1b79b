"""Every error that spiritseg raises on purpose.

::

    SpiritsegError                what was expected, what came, where, what to do
    ├── ConfigError               a recipe, a field, a name or a value
    ├── DataError                 images, masks, class maps, splits
    │   └── BadImageError         one unreadable image (``skip_bad`` leaves it out)
    ├── WeightsError              weights that do not fit their network
    ├── RunError                  a run folder: another config, no space, no checkpoint
    ├── BundleError               a saved student: missing, altered or foreign files
    ├── DivergedError             training left the finite numbers
    └── MissingExtraError         an optional dependency is not installed

The command line prints the message of a `SpiritsegError` and exits with code 2,
without a traceback. Anything else that escapes is a bug of spiritseg.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "BadImageError",
    "BundleError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "MissingExtraError",
    "RunError",
    "SpiritsegError",
    "WeightsError",
    "listed",
    "unknown",
]


class SpiritsegError(Exception):
    """The root of all errors that a user can cause and mend.

    Args:
        message: what was expected, what came, where, and what to do. Of a data loader's worker
            only the error's own message is kept.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_own_message(type(self), str(message)))


class ConfigError(SpiritsegError):
    """A recipe, a field, a name or a value is not what it should be."""


class DataError(SpiritsegError):
    """Images, masks, a class map or a split is missing or inconsistent."""


class BadImageError(DataError):
    """One image or mask cannot be read.

    Args:
        path: the file.
        reason: what the decoder said. Without it `path` is the whole message: data loaders and
            pickle rebuild an error from that.
    """

    def __init__(self, path: object, reason: str | None = None) -> None:
        whole = (
            f"cannot read the image {path}: {reason}. "
            "Replace the file, or leave such files out with --skip-bad."
        )
        super().__init__(path if reason is None else whole)
        self.path = None if reason is None else path
        self.reason = reason or ""


class WeightsError(SpiritsegError):
    """Weights do not fit the network that they were given for."""


class RunError(SpiritsegError):
    """A run folder cannot be used: another config, no disk space, no checkpoint."""


class BundleError(SpiritsegError):
    """A saved student is incomplete, altered, or not a spiritseg bundle."""


class DivergedError(SpiritsegError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""


class MissingExtraError(SpiritsegError):
    """An optional dependency is not installed; the message says which extra brings it."""


def _own_message(kind: type[SpiritsegError], message: str) -> str:
    """Return an error's message without the traceback of a data loader's worker.

    torch raises what a worker raised as ``kind("Caught ... Original Traceback ...")``.
    """
    if not (message.startswith(f"Caught {kind.__name__} in ") and "\nOriginal " in message):
        return message
    # The last one in a traceback is the error itself; what caused it comes before.
    return message.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2].rstrip("\n")


def unknown(kind: str, name: str, choices: Iterable[str], hint: str = "") -> str:
    """Say that a name is unknown, with the nearest names and all choices.

    Args:
        kind: what the name stands for, such as ``"recipe"``.
        name: what came.
        choices: what there is.
        hint: one more sentence, appended.

    Returns:
        One line for an error message.
    """
    names = sorted(choices)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    tail = f" {hint}" if hint else ""
    return f"unknown {kind} {name!r}.{guess} Choices: {', '.join(names)}.{tail}"


def listed(items: Sequence[object], most: int = 10) -> str:
    """Join up to `most` items one a line, and count the rest.

    Args:
        items: what to list.
        most: how many at the most.

    Returns:
        A block of lines, each indented by two spaces.
    """
    lines = [f"  {item}" for item in items[:most]]
    if len(items) > most:
        lines.append(f"  ... and {len(items) - most} more")
    return "\n".join(lines)
