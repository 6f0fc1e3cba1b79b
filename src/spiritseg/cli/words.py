"""Reading the words of a command: options, and the fields of an experiment."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any, NoReturn

from spiritseg.errors import ConfigError

__all__ = ["FIELDS", "make_parser", "read_fields", "read_words"]

FIELDS = """
Any field of the recipe can be set by its dotted name, such as --seed 1,
--stages.mimicry.max_steps 500 or --target.subset even:64. All of them, with what the
recipe sets: spiritseg distill RECIPE --help; as YAML: spiritseg distill RECIPE --print_config.
"""


def make_parser(name: str, command: Callable[..., None]) -> argparse.ArgumentParser:
    """Make the parser of a command; its description is the command's docstring.

    Args:
        name: the command's.
        command: the function behind it.

    Returns:
        A parser that raises `ConfigError` for a wrong word.
    """
    parser = argparse.ArgumentParser(
        f"spiritseg {name}",
        description=inspect.getdoc(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = _usage_error(parser)  # type: ignore[assignment]
    return parser


def read_words(
    parser: argparse.ArgumentParser, words: list[str]
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Read a command's own options, and the fields among them.

    Args:
        parser: of the command, from `make_parser`.
        words: after the command's name.

    Returns:
        The options; values by dotted field, see `read_fields`.

    Raises:
        ConfigError: for a wrong word, or a field before what it is a field of.
    """
    options, rest = parser.parse_known_args(words)
    fields = [word for word in rest if word.startswith("--") and "=" not in word]
    if fields:
        try:  # argparse takes a field's value for the recipe or run where that comes later
            parser.parse_known_args(words[: words.index(fields[0])])
        except ConfigError:
            usage = " ".join(parser.format_usage().split()[1:])
            raise ConfigError(
                f"{fields[0]} is no option of {parser.prog}; if it is a field, it came too early: "
                f"the recipe or run comes first, then its fields. Usage: {usage} "
                "[--its.name VALUE ...]"
            ) from None
    return options, read_fields(rest)


def read_fields(words: list[str]) -> dict[str, Any]:
    """Read ``--a.b value``, ``--a.b=value``, ``--a.b one two`` and ``--flag``.

    Args:
        words: what is left of the command line after its own options. A field may be written
            with dashes (``--stages.all.max-steps``); names of stages, networks and recipes stay
            as they are.

    Returns:
        Values by dotted field, for `load_experiment`.

    Raises:
        ConfigError: for a word that sets no field.
    """
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"unexpected word {word!r}; a field is set by --its.name VALUE.")
        name, equals, value = word[2:].partition("=")
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        found[_field(name)] = values[0] if len(values) == 1 else values or "true"
    return found


def _field(name: str) -> str:
    """Write the fields in a dotted name with underscores; what a recipe named stays."""
    parts = name.split(".")
    # No field of an experiment itself has a dash: what comes first may be a recipe's name.
    before = ["stages", *parts]
    return ".".join(
        part if above in ("stages", "networks") else part.replace("-", "_")
        for above, part in zip(before, parts, strict=False)
    )


def _usage_error(parser: argparse.ArgumentParser) -> Callable[[str], NoReturn]:
    def fail(message: str) -> NoReturn:
        raise ConfigError(f"{message}. Usage: {' '.join(parser.format_usage().split()[1:])}")

    return fail
