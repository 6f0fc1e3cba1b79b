"""Every field of an experiment with its meaning, for the command line's help."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from spiritseg.config import Experiment

__all__ = ["describe"]


# Fields that depend on the user's images and machine: shown whether a recipe sets them or not.
_ALWAYS = ("seed", "target.root", "target.classes", "target.subset", "proximity.root", "input.crop")


def describe(experiment: Experiment, everything: bool = False) -> str:
    """List the fields of an experiment: dotted name, value and meaning.

    Args:
        experiment: Experiment whose networks, stages and losses are listed.
        everything: Whether to list all fields, those of losses that a stage does not use
            included; by default those that the recipe sets, and the most common ones.

    Returns:
        Lines for a terminal.
    """
    if everything:
        return "\n".join(["all fields, with the values of this recipe:", *_lines(experiment, "")])
    lines = ["fields that this recipe sets, and the most common others (--help-all: all of them):"]
    lines += _own_lines(experiment, Experiment(), "")
    return "\n".join(lines)


def _own_lines(value: Any, default: Any, path: str) -> Iterator[str]:
    """Yield the lines of fields whose value is not that of `default`."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        inner, usual = getattr(value, field.name), getattr(default, field.name)
        name = f"{path}{field.name}"
        if dataclasses.is_dataclass(inner):
            yield from _own_lines(inner, usual, f"{name}.")
        elif _named_parts(inner):
            for key, member in inner.items():
                yield f"\n  {name}.{key}"
                yield from _own_lines(member, type(member)(), f"{name}.{key}.")
        elif name in _ALWAYS or inner != usual:
            yield from _line(name, inner, hints[field.name], _meanings(value.__class__)[field.name])


def _named_parts(value: Any) -> bool:
    """Return whether a value holds networks, stages or losses by name."""
    return isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values()))


def _lines(value: Any, path: str) -> Iterator[str]:
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), f"{path}{field.name}"
        meaning = _meanings(value.__class__)[field.name]
        if field.name == "losses":
            inner = {**_unused_losses(inner), **inner}
        if dataclasses.is_dataclass(inner):
            yield f"\n  {name}: {meaning}"
            yield from _lines(inner, f"{name}.")
        elif _named_parts(inner):
            yield f"\n  {name}: {meaning}"
            for key, member in inner.items():
                unused = field.name == "losses" and key not in getattr(value, field.name)
                yield f"\n  {name}.{key}{': not used; any field set below uses it' * unused}"
                yield from _lines(member, f"{name}.{key}.")
        else:
            yield from _line(name, inner, hints[field.name], meaning)


def _unused_losses(used: Mapping[str, Any]) -> dict[str, Any]:
    from spiritseg.losses import LOSSES

    return {name: loss.options() for name, loss in LOSSES.items() if name not in used}


def _line(name: str, value: Any, hint: Any, meaning: str) -> Iterator[str]:
    yield f"  --{name} {_shown(value)}  ({_kind(hint)})"
    yield textwrap.indent(textwrap.fill(meaning, 88), " " * 8)


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
