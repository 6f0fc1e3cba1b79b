"""The command line: each command a thin wrapper of the Python function of its name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from spiritseg import __version__
from spiritseg.errors import ConfigError, SpiritsegError, unknown

__all__ = ["main"]

_FIELDS = """
Any field of the recipe can be set by its dotted name, such as --seed 1,
--stages.mimicry.max_steps 500 or --target.subset even:64. All of them, with what the
recipe sets: spiritseg distill RECIPE --help. As YAML: --print_config.
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 2 for a user's mistake, 130 interrupted.

    Args:
        argv: the words after the program's name; by default those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(words)
    except SpiritsegError as error:
        print(f"spiritseg: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nspiritseg: interrupted; the same command continues.", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _run(words: list[str]) -> None:
    commands: dict[str, Callable[[list[str]], None]] = {
        "demo": _demo,
        "distill": _distill,
        "evaluate": _evaluate,
        "recipes": _recipes,
    }
    if not words or words[0] in ("-h", "--help"):
        _print_help(commands)
    elif words[0] == "--version":
        print(__version__)
    elif words[0] in commands:
        commands[words[0]](words[1:])
    else:
        raise ConfigError(unknown("command", words[0], commands, "See spiritseg --help."))


def _print_help(commands: dict[str, Callable[[list[str]], None]]) -> None:
    print(f"spiritseg {__version__}: distil a compact segmentation network from a bulky one.\n")
    print("usage: spiritseg COMMAND [OPTION ...]\n\ncommands:")
    for name, command in commands.items():
        print(f"  {name:10} {(command.__doc__ or '').splitlines()[0]}")
    print("\nspiritseg COMMAND --help says more; python -m spiritseg is the same.")


def _parser(name: str, command: Callable[..., None]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"spiritseg {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = _usage_error(parser)  # type: ignore[assignment]
    return parser


def _usage_error(parser: argparse.ArgumentParser) -> Callable[[str], NoReturn]:
    def fail(message: str) -> NoReturn:
        raise ConfigError(f"{message}. Usage: {' '.join(parser.format_usage().split()[1:])}")

    return fail


def _demo(words: list[str]) -> None:
    """Run S, SD and ESD on the embedded scenes; print a table, draw a picture."""
    parser = _parser("demo", _demo)
    parser.add_argument("--out", default="demo", help="folder of the runs and the picture")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw")
    options = parser.parse_args(words)
    from spiritseg.demo import demo

    demo(options.out, options.seed)


def _distill(words: list[str]) -> None:
    """Train a recipe, stage by stage, and measure the result; the same command continues.

    RECIPE is a shipped name (see: spiritseg recipes) or a YAML file.
    """
    parser = _parser("distill", _distill)
    parser.epilog = _FIELDS
    parser.add_argument("recipe", help="a shipped recipe or a .yaml file")
    parser.add_argument("--run-dir", help="default: runs/RECIPE-HASH_OF_THE_CONFIG")
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out")
    parser.add_argument("--print_config", action="store_true", help="print the recipe and stop")
    if _asks_for_help(words):
        parser.print_help()
        if words[0] not in ("-h", "--help"):
            _print_fields(words[0])
        return
    options, rest = parser.parse_known_args(words)
    overrides = _overrides(rest)
    if options.skip_bad:
        overrides["input.skip_bad"] = True
    from spiritseg.recipes import load_experiment, to_yaml

    experiment = load_experiment(options.recipe, overrides, complete=not options.print_config)
    if options.print_config:
        print(to_yaml(experiment), end="")
        return
    from pathlib import Path

    from spiritseg.tables import metrics_table, print_table
    from spiritseg.training.runner import distill

    result = distill(experiment, options.run_dir, name=Path(options.recipe).stem)
    print_table(metrics_table({result.run_dir.name: result.metrics}))
    _print_skipped(result.metrics)
    print(f"student: {result.run_dir / 'student'}")


def _evaluate(words: list[str]) -> None:
    """Measure a run's student, or a bundle, on labelled images.

    Fields of its experiment can be set as in distill, such as --target.root DIR.
    """
    parser = _parser("evaluate", _evaluate)
    parser.add_argument("run", help="a run's folder, or a bundle")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out")
    options, rest = parser.parse_known_args(words)
    overrides = _overrides(rest)
    if options.skip_bad:
        overrides["input.skip_bad"] = True
    from spiritseg.tables import class_table, print_table
    from spiritseg.training.runner import evaluate

    scores = evaluate(options.run, overrides, options.split)
    print_table(class_table(scores))
    _print_skipped(scores)


def _recipes(words: list[str]) -> None:
    """List the shipped recipes."""
    _parser("recipes", _recipes).parse_args(words)
    from spiritseg.recipes import recipe_names, recipe_summary

    for name in recipe_names():
        print(f"{name:22} {recipe_summary(name)}")


def _asks_for_help(words: list[str]) -> bool:
    return bool(words) and ("-h" in words or "--help" in words)


def _print_fields(recipe: str) -> None:
    """Print every field of a recipe: its name, type, value and meaning."""
    import dataclasses

    from jsonargparse import ArgumentParser

    from spiritseg.config import Network, Stage
    from spiritseg.recipes import load_experiment

    experiment = load_experiment(recipe, complete=False)
    parser = ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    for field in dataclasses.fields(experiment):
        value = getattr(experiment, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            parser.add_class_arguments(type(value), field.name)
            parser.set_defaults({field.name: dataclasses.asdict(value)})
    kinds: dict[str, tuple[type, dict[str, Any]]] = {
        "networks": (Network, dict(experiment.networks)),
        "stages": (Stage, dict(experiment.stages)),
    }
    for group, (kind, members) in kinds.items():
        for name, value in members.items():
            parser.add_class_arguments(kind, f"{group}.{name}")
            parser.set_defaults({f"{group}.{name}": dataclasses.asdict(value)})
    print("fields:\n  --seed SEED           seed of every draw")
    print(parser.format_help())


def _overrides(words: list[str]) -> dict[str, Any]:
    """Read ``--a.b value``, ``--a.b=value``, ``--a.b one two`` and ``--flag``."""
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
        found[name.replace("-", "_")] = values[0] if len(values) == 1 else values or "true"
    return found


def _print_skipped(metrics: dict[str, Any]) -> None:
    if metrics.get("skipped"):
        print(f"{len(metrics['skipped'])} unreadable images were left out:")
        for path in metrics["skipped"]:
            print(f"  {path}")
