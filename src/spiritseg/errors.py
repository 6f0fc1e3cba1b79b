"""The errors of spiritseg.

::

    SpiritsegError                expected and actual value, place, remedy
    ├── ConfigError               a recipe, a field, a name or a value
    ├── DataError                 images, masks, class maps, splits
    │   └── BadImageError         one unreadable image (``skip_bad`` leaves it out)
    ├── WeightsError              weights that do not fit their network
    ├── RunError                  a run folder: another config, no space, no checkpoint
    ├── BundleError               a saved student: missing, altered or foreign files
    ├── DivergedError             NaN or infinite loss
    └── MissingExtraError         an optional dependency is not installed

The command line prints the message of a `SpiritsegError` without a traceback and exits with
code 2. Any other exception is a bug in spiritseg.
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
    """Base class of all errors that a user can cause and fix.

    Args:
        message: expected and actual value, place and remedy; the traceback of a data loader's
            worker is removed.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_own_message(type(self), str(message)))


class ConfigError(SpiritsegError):
    """A recipe, a field, a name or a value is invalid."""


class DataError(SpiritsegError):
    """Images, masks, a class map or a split is missing or inconsistent."""


class BadImageError(DataError):
    """One image or mask cannot be read.

    Args:
        path: the file.
        reason: message of the decoder. Without it `path` is the whole message, from which data
            loaders and pickle rebuild the error.
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
    """Weights do not fit their network."""


class RunError(SpiritsegError):
    """A run folder cannot be used: another config, no disk space, no checkpoint."""


class BundleError(SpiritsegError):
    """A saved student is incomplete, altered, or not a spiritseg bundle."""


class DivergedError(SpiritsegError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""


class MissingExtraError(SpiritsegError):
    """An optional dependency is not installed; the message names the extra."""


def _own_message(kind: type[SpiritsegError], message: str) -> str:
    """Remove the traceback of a data loader's worker from an error's message.

    torch re-raises a worker's error as ``kind("Caught ... Original Traceback ...")``.
    """
    if not (message.startswith(f"Caught {kind.__name__} in ") and "\nOriginal " in message):
        return message
    # The last entry of a traceback is the error itself, after its causes.
    return message.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2].rstrip("\n")


def unknown(kind: str, name: str, choices: Iterable[str], hint: str = "") -> str:
    """Return an error message for an unknown name, with similar names and all choices.

    Args:
        kind: such as ``"recipe"``.
        name: unknown name.
        choices: known names.
        hint: sentence to append.
    """
    names = sorted(choices)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    tail = f" {hint}" if hint else ""
    return f"unknown {kind} {name!r}.{guess} Choices: {', '.join(names)}.{tail}"


def listed(items: Sequence[object], most: int = 10) -> str:
    """Return up to `most` items as indented lines, and the number of the rest."""
    lines = [f"  {item}" for item in items[:most]]
    if len(items) > most:
        lines.append(f"  ... and {len(items) - most} more")
    return "\n".join(lines)
