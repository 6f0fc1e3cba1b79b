"""Options as frozen dataclasses that validate themselves: the types, the ranges, the errors.

Every field of an experiment and every option of a loss is declared once, as
``Annotated[float, Ge(0)]``; pydantic validates it, here every problem becomes one line.
"""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, cast

import yaml
from annotated_types import Ge, Gt, Interval, Lt
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, PydanticCustomError

from spiritseg.errors import ConfigError, unknown

__all__ = [
    "MAX_CHANNELS",
    "STRICT",
    "Mapping_",
    "Nullable",
    "Optimizer",
    "Pair",
    "ProblemsError",
    "Share",
    "ShareBelowOne",
    "Words",
    "build",
    "check_options",
    "renamed",
    "shown",
    "without_nulls",
]

MAX_CHANNELS = 16_384  # of a layer; no segmentation network comes near it

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

T = TypeVar("T")

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
shown = _REPR.repr


_WARNED: dict[Any, Any] = {}  # so that each old name is told once


def renamed(**names: str) -> Any:
    """Read fields of a dataclass by their old names as well, with a warning.

    Args:
        **names: New name by old name.
    """

    def read(value: Any) -> Any:
        given = value.kwargs if isinstance(value, ArgsKwargs) else value
        if not isinstance(given, Mapping):
            return value
        fields = dict(given)
        for old, new in names.items():
            if old in fields:
                message = f"the field {old} is now called {new}; the old name goes with 0.3."
                warnings.warn_explicit(message, FutureWarning, "fields", 0, registry=_WARNED)
                fields[new] = fields.pop(old)
        return ArgsKwargs(value.args, fields) if isinstance(value, ArgsKwargs) else fields

    return model_validator(mode="before")(read)


def _words(value: Any) -> Any:
    """Read ``0.5 2`` and ``[0.5, 2]`` from a command line as a list."""
    if not isinstance(value, str):
        return value
    return value.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()


def _mapping(value: Any) -> Any:
    """Read ``{road: 2}`` from a command line as a mapping."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        return value


Words = BeforeValidator(_words)
Mapping_ = BeforeValidator(_mapping)
Nullable = BeforeValidator(lambda value: None if value == "null" else value)

Share = Annotated[float, Interval(ge=0, le=1)]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]
Pair = Annotated[tuple[float, float], Words]


@dataclass(frozen=True, config=STRICT)
class Optimizer:
    """Optimizer and learning-rate schedule.

    Args:
        name: sgd, adam or adamw.
        lr: Learning rate; the highest one under one_cycle.
        momentum: Momentum of sgd; the first beta of adam and adamw is 0.9.
        weight_decay: L2 penalty (decoupled under adamw).
        schedule: constant, one_cycle, or poly (power 0.9).
        warmup: Share of the steps in which one_cycle rises.
    """

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Annotated[float, Gt(0)] = 2e-3
    momentum: ShareBelowOne = 0.9
    weight_decay: Annotated[float, Ge(0)] = 1e-2
    schedule: Literal["constant", "one_cycle", "poly"] = "one_cycle"
    warmup: Annotated[float, Gt(0), Lt(1)] = 0.3


class ProblemsError(PydanticCustomError):
    """Several problems, already one line each, raised inside a validator."""

    def __new__(cls, problems: list[str]) -> ProblemsError:
        """Carry the lines to `build`."""
        return super().__new__(cls, "problems", "several problems", {"problems": problems})


def build(kind: type[T], fields: Any, path: str = "") -> tuple[T | None, list[str]]:
    """Build a dataclass of options from plain values.

    Args:
        kind: Dataclass to build, possibly of other dataclasses.
        fields: Nested mapping of its fields.
        path: Dotted name of the whole, for the errors.

    Returns:
        The dataclass, or None with one line for each problem: field, what was expected, what came.
    """
    try:
        return _adapter(cast(Any, kind)).validate_python(fields), []
    except ValidationError as error:
        return None, [line for one in error.errors() for line in _lines(kind, one, path)]


def check_options(kind: type, name: str, /, **options: Any) -> None:
    """Check the arguments of a function by the fields of the same names.

    Raises:
        ConfigError: One or several are out of range.
    """
    _, problems = build(kind, options, name)
    if problems:
        raise ConfigError(f"{'; '.join(problems)}.")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _lines(kind: type, error: Any, path: str) -> Iterator[str]:
    place = _dotted(path, error["loc"])
    context = error.get("ctx", {})
    if error["type"] == "problems":
        yield from (_joined(place, line) for line in context["problems"])
        return
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        yield f"{place}: {unknown('field', str(error['loc'][-1]), _fields_at(kind, error['loc']))}"
    elif error["type"] == "literal_error":
        choices = [
            word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")
        ]
        yield f"{place}: {unknown('value', str(error['input']), choices)}"
    else:
        yield f"{place or 'the recipe'}: expected {_expected(error)}, got {shown(error['input'])}"


def _joined(place: str, line: str) -> str:
    return f"{place}.{line}" if place else line


def _dotted(path: str, location: tuple[Any, ...]) -> str:
    """Join a location; numbers are places in a list, words with brackets are pydantic's own."""
    names = [one for one in location if isinstance(one, str) and "[" not in one]
    return ".".join([path, *names] if path else names)


def _expected(error: Any) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "greater_than":
            return f"more than {context['gt']:g}"
        case "greater_than_equal":
            return f"{context['ge']:g} or more"
        case "less_than":
            return f"less than {context['lt']:g}"
        case "less_than_equal":
            return f"{context['le']:g} or less"
        case "dataclass_type" | "dict_type" | "dataclass_exact_type":
            return "a mapping of fields"
        case "value_error":
            return f"{context['error']}"
        case name:
            return _KINDS.get(name.partition("_")[0], str(error["msg"]))


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a word",
    "tuple": "a list",
    "list": "a list",
    "missing": "the right number of values",
    "too": "the right number of values",
}


def _fields_at(kind: Any, location: tuple[Any, ...]) -> list[str]:
    """Return the names of the fields of the innermost dataclass of a location."""
    for name in location[:-1]:
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        kind = _member(hints.get(name, kind))
    return [field.name for field in dataclasses.fields(kind)]


def _member(hint: Any) -> Any:
    """Return D of ``D``, ``D | None`` and ``dict[str, D]``."""
    if typing.get_origin(hint) is dict:
        return _member(typing.get_args(hint)[1])
    if isinstance(hint, types.UnionType):
        return next(t for t in typing.get_args(hint) if t is not type(None))
    return hint


def without_nulls(value: Any) -> Any:
    """Leave out the entries that are null; other values stay as they are."""
    if not isinstance(value, Mapping):
        return value
    return {key: one for key, one in value.items() if one is not None and one != "null"}
