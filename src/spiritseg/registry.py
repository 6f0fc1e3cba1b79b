"""Registries: named entries that carry everything the rest of the code needs to know of them.

An entry comes from the project itself, from an installed package (entry point group
``spiritseg.<kind>``), or from a Python file, by a name of the form ``path/to/file.py:NAME``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from spiritseg.errors import ConfigError, unknown

__all__ = ["Registry", "is_in_file", "names_in_files"]

T = TypeVar("T")
_LONGEST = 200  # characters of a name in an error message


class Registry(Generic[T]):
    """Entries by name; those of installed packages are imported when they are first used.

    Args:
        kind: What an entry is, in the singular, for error messages (``"export format"``).
        group: Entry point group (``"spiritseg.formats"``).
        type: Class of the entries, checked for those from outside; any by default.
    """

    def __init__(self, kind: str, group: str, type: type[T] | None = None) -> None:
        self.kind, self.group, self.type = kind, group, type
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Add an entry of the project's own, and return it; ValueError if the name is taken."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice.")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        """Return an entry by its name, or by ``path/to/file.py:NAME``, which runs that file.

        Raises:
            ConfigError: if the name is unknown, or what it names cannot be imported.
        """
        if name in self._entries:
            return self._entries[name]
        if name not in self._installed and not is_in_file(name):
            hint = "Your own: path/to/file.py:NAME."
            raise ConfigError(unknown(self.kind, _shortened(name), self, hint))
        try:
            point = self._installed.get(name)
            entry = point.load() if point else _load_from_file(name)
        except ConfigError:
            raise
        except Exception as error:  # whatever a user's file or package raises
            where = f"{self._installed[name].value}: " if name in self._installed else ""
            reason = f"{type(error).__name__}: {_shortened(str(error))}"
            raise ConfigError(
                f"{self.kind} {_shortened(name)!r} cannot be imported: {where}{reason}."
            ) from error
        if self.type is not None and not isinstance(entry, self.type):
            wanted, got = self.type.__name__, type(entry).__name__
            raise ConfigError(f"{self.kind} {name!r}: expected type {wanted}, got {got}.")
        return cast(T, entry)

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._installed

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names: the project's own first, then those of installed packages."""
        return iter(dict.fromkeys((*self._entries, *self._installed)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def items(self) -> Iterator[tuple[str, T]]:
        """Iterate over names and entries; this imports the entries of installed packages."""
        return ((name, self[name]) for name in self)

    @cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}


def is_in_file(name: str) -> bool:
    """Return whether a name has the form ``path/to/file.py:NAME``; using it runs that file."""
    path, _, attribute = name.rpartition(":")
    return path.endswith(".py") and attribute.isidentifier()


def names_in_files(fields: Any) -> set[str]:
    """Return the names of the form ``path/to/file.py:NAME`` anywhere in nested plain values."""
    if isinstance(fields, str):
        return {fields} if is_in_file(fields) else set()
    if isinstance(fields, Mapping):
        return names_in_files([*fields.keys(), *fields.values()])
    if isinstance(fields, (list, tuple)):
        return set[str]().union(*map(names_in_files, fields))
    return set()


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _load_from_file(name: str) -> Any:
    path, _, attribute = name.rpartition(":")
    module = _import_file(Path(path).expanduser().resolve())
    if not hasattr(module, attribute):
        names = [name for name in vars(module) if not name.startswith("_")]
        raise ConfigError(f"{path}: {unknown('name', attribute, names)}")
    return getattr(module, attribute)


def _import_file(path: Path) -> ModuleType:
    """Import a file once, under a name of its own, so that its classes can be pickled."""
    own = f"spiritseg_file_{hashlib.sha256(bytes(path)).hexdigest()[:16]}"
    if own not in sys.modules:
        spec = importlib.util.spec_from_file_location(own, path)
        assert spec  # its name ends in .py
        sys.modules[own] = importlib.util.module_from_spec(spec)
        try:
            cast(Any, spec.loader).exec_module(sys.modules[own])
        except BaseException:
            del sys.modules[own]
            raise
    return sys.modules[own]
