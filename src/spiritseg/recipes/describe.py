"""Every field of an experiment with its meaning, for the command line's help."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

from spiritseg.config import Experiment

__all__ = ["describe"]


def describe(experiment: Experiment) -> str:
    """List every field of an experiment: dotted name, value and meaning.

    Args:
        experiment: whose networks, stages and losses are spelled out.

    Returns:
        Lines for a terminal. A loss that a stage does not use is shown with its defaults.
    """
    lines = ["fields, with the values of this recipe:"]
    lines += _lines(experiment, "")
    return "\n".join(lines)


def _lines(value: Any, path: str) -> Iterator[str]:
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), f"{path}{field.name}"
        meaning = _meanings(value.__class__).get(field.name, "")
        unused = _dataclass_of(hints[field.name]) if inner is None else None
        if unused is not None:
            inner, meaning = unused(), f"{meaning} Not used; any field set below uses it."
        if dataclasses.is_dataclass(inner):
            yield f"\n  {name}: {meaning}"
            yield from _lines(inner, f"{name}.")
        elif isinstance(inner, dict) and any(map(dataclasses.is_dataclass, inner.values())):
            yield f"\n  {name}: {meaning}"
            for key, member in inner.items():
                yield f"\n  {name}.{key}"
                yield from _lines(member, f"{name}.{key}.")
        else:
            kind = _kind(hints[field.name])
            yield f"  --{name} {_shown(inner)}  ({kind})"
            yield textwrap.indent(textwrap.fill(meaning, 88), " " * 8)


def _dataclass_of(hint: Any) -> Any:
    """Return D of an optional ``D | None``, where D is a dataclass."""
    return next((t for t in typing.get_args(hint) if dataclasses.is_dataclass(t)), None)


@cache
def _meanings(kind: Any) -> dict[str, str]:
    """Read the Args section of a dataclass's docstring."""
    text = inspect.getdoc(kind) or ""
    section = text.partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.split(r"^    (?=\w+:)", section, flags=re.MULTILINE)
    pairs = (entry.partition(":") for entry in entries if entry.strip())
    return {name.strip(): " ".join(meaning.split()) for name, _, meaning in pairs}


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    plain = re.sub(r"(\w+\.)+", "", str(hint))
    return plain.replace("NoneType", "null").replace("None", "null")


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(str, value)) or "[]"
    return {"None": "null", "True": "true", "False": "false", "": "''"}.get(str(value), str(value))
