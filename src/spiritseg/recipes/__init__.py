"""Recipes: experiments on disk. Read one, lay overrides over it, check all of it at once."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from spiritseg.config import Experiment
from spiritseg.errors import ConfigError, listed, unknown
from spiritseg.recipes.check import check

__all__ = [
    "differences",
    "experiment_from_dict",
    "fingerprint",
    "load_experiment",
    "recipe_names",
    "recipe_summary",
    "to_yaml",
]

_HERE = Path(__file__).parent

# More than any experiment has: of levels, and of values.
_DEEPEST, _MOST = 40, 100_000

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
_said = _REPR.repr

# What may change between two calls without changing the result: such fields do not enter the
# fingerprint, so a run is found again with more workers or without progress bars.
_NO_EFFECT = frozenset(
    {
        "input.cache_mib",
        "evaluation.batch_size",
        "evaluation.latency",
        "evaluation.pictures",
        "trainer.workers",
        "trainer.progress",
        "trainer.checkpoint_every_s",
        "trainer.log_every_steps",
    }
)


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in _HERE.glob("*.yaml"))


def recipe_summary(name: str) -> str:
    """Return what a shipped recipe is for: the comment in its first line."""
    return (_HERE / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ")


def load_experiment(
    name_or_yaml: str | Path,
    overrides: Mapping[str, Any] | None = None,
    complete: bool = True,
) -> Experiment:
    """Read a recipe, lay overrides over it and check it.

    Args:
        name_or_yaml: name of a shipped recipe, or path of a YAML file. ``extends: NAME``
            in a file starts from another recipe.
        overrides: dotted fields and their values, such as ``{"target.root": "camvid"}``. A
            stage or a network is added by a mapping of its fields and taken out by None.
        complete: whether the folders of images must be named; to look at a recipe they
            need not be.

    Returns:
        The experiment: frozen, typed and checked.

    Raises:
        ConfigError: with all problems at once.
    """
    return experiment_from_dict(_read(name_or_yaml), overrides, complete, str(name_or_yaml))


def experiment_from_dict(
    fields: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    complete: bool = True,
    name: str = "the experiment",
) -> Experiment:
    """Build an experiment from plain values, as `load_experiment` does from a file.

    Args:
        fields: nested fields, as in a recipe.
        overrides: dotted fields and their values.
        complete: whether the folders of images must be named.
        name: what error messages call it.

    Returns:
        The experiment: frozen, typed and checked.

    Raises:
        ConfigError: with all problems at once.
    """
    _refuse_strange(fields, name)
    tree = copy.deepcopy(dict(fields))
    problems: list[str] = []
    for dotted, value in (overrides or {}).items():
        if (problem := _misnamed(tree, dotted, value)) is not None:
            problems.append(problem)
            continue
        *parents, leaf = dotted.split(".")
        _merge(tree, _nest(parents, {leaf: value}))
    _refuse_strange(tree, name)
    experiment: Experiment = _build(Experiment, tree, "", problems)
    if not problems:
        problems = check(experiment, complete)
    if problems:
        raise ConfigError(f"{name}: {len(problems)} problem(s)\n{listed(problems, 40)}")
    return experiment


def to_yaml(experiment: Experiment) -> str:
    """Return an experiment as YAML text that `load_experiment` reads back to the same."""
    return yaml.safe_dump(_plain(dataclasses.asdict(experiment)), sort_keys=False, width=100)


def fingerprint(experiment: Experiment) -> str:
    """Return a short hash of all fields that decide the result.

    Args:
        experiment: any experiment.

    Returns:
        Ten hexadecimal digits, equal for experiments that must end in equal weights.
    """
    fields = {k: v for k, v in _leaves(dataclasses.asdict(experiment)) if not _no_effect(k)}
    said = json.dumps([fields, list(experiment.stages)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:10]


def differences(one: Experiment, other: Experiment) -> list[str]:
    """List the fields that decide the result and differ between two experiments.

    Args:
        one: an experiment.
        other: another.

    Returns:
        Lines such as ``seed: 0 became 1``.
    """
    left = dict(_leaves(dataclasses.asdict(one)))
    right = dict(_leaves(dataclasses.asdict(other)))
    changed = [
        f"{key}: {left.get(key, 'absent')} became {right.get(key, 'absent')}"
        for key in sorted(left.keys() | right.keys())
        if not _no_effect(key) and left.get(key) != right.get(key)
    ]
    if list(one.stages) != list(other.stages):
        orders = (", ".join(each.stages) or "none" for each in (one, other))
        changed.append("order of the stages: {} became {}".format(*orders))
    return changed


def _read(name_or_yaml: str | Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = Path(name_or_yaml)
    if path.suffix not in (".yaml", ".yml"):
        path = _HERE / f"{name_or_yaml}.yaml"
        if not _is_file(path):
            hint = "Or give the path of a .yaml file."
            raise ConfigError(unknown("recipe", str(name_or_yaml), recipe_names(), hint))
    if not _is_file(path):
        raise ConfigError(f"there is no recipe file {path}. Shipped: {', '.join(recipe_names())}.")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}.") from None
    except Exception as error:  # besides YAMLError: ValueError, KeyError, RecursionError ...
        deep = isinstance(error, RecursionError)
        reason = "it is nested too deep" if deep else str(error) or repr(error)
        raise ConfigError(f"{path} is not valid YAML: {reason}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}; a recipe is a mapping of fields.")
    _refuse_strange(tree, str(path))
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends names one recipe or YAML file, got {_said(base)}.")
    if str(path) in seen:
        raise ConfigError(f"{path} extends itself, by way of {' -> '.join(seen)}.")
    beside = path.parent / base
    merged = _read(beside if beside.suffix and _is_file(beside) else base, (*seen, str(path)))
    _merge(merged, tree)
    return merged


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _refuse_strange(tree: Any, name: str) -> None:
    """Refuse values that no field takes, and trees without end (YAML aliases can make one).

    Args:
        tree: of a recipe, or a value of one.
        name: what error messages call it.

    Raises:
        ConfigError: the first such value and where it is.
    """
    waiting: list[tuple[str, Any, int]] = [("", tree, 0)]
    count = 0
    while waiting:
        path, value, depth = waiting.pop()
        count += 1
        if depth > _DEEPEST or count > _MOST:
            raise ConfigError(
                f"{name}: expected at most {_DEEPEST} levels of fields and {_MOST} values, got "
                f"more{f' in {path[:80]}' if path else ''}. Look for aliases (*name) and brackets."
            )
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise ConfigError(
                        f"{name}: {path}: expected words as names of fields, got "
                        f"{_said(key)}. Put it in quotes."
                    )
                waiting.append((f"{path}.{key}" if path else key, inner, depth + 1))
        elif isinstance(value, list | tuple):
            waiting += [(path, inner, depth + 1) for inner in value]
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ConfigError(f"{name}: {path}: expected a number of 64 bits, got a larger one.")
        elif not isinstance(value, str | int | float | None):  # a date, bytes or a set of YAML's
            raise ConfigError(
                f"{name}: {path}: expected words, numbers, lists or fields, got "
                f"{_said(value)}. Put it in quotes if it is a word."
            )


def _misnamed(tree: Mapping[str, Any], dotted: str, value: Any) -> str | None:
    """Return what is wrong with an override whose stage or network is not there.

    A field of a name that is not there would make a new stage or network of defaults, beside
    the one that was meant; a mapping of fields says that a new one is wanted.
    """
    kind, _, rest = dotted.partition(".")
    name, _, field = rest.partition(".")
    members = tree.get(kind)
    if kind not in ("stages", "networks") or not name or not isinstance(members, dict | None):
        return None
    known = [str(key) for key, member in (members or {}).items() if not _is_none(member)]
    if name in known or not (field or _is_none(value)):
        return None
    hint = "A new one needs a YAML file that extends the recipe." if field else ""
    return f"{dotted}: {unknown(kind.removesuffix('s'), name, known, hint)}"


def _nest(parents: list[str], leaf: dict[str, Any]) -> dict[str, Any]:
    for key in reversed(parents):
        leaf = {key: leaf}
    return leaf


def _merge(under: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(under.get(key), dict):
            _merge(under[key], value)
        else:
            under[key] = value


def _build(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    """Turn plain values into the dataclass of `hint`, and note every problem on the way."""
    inner = [t for t in typing.get_args(hint) if t is not type(None)]
    optional = isinstance(hint, types.UnionType) and len(inner) == 1
    if optional and dataclasses.is_dataclass(inner[0]):
        return None if _is_none(value) else _build(inner[0], value, path, problems)
    if typing.get_origin(hint) is dict and dataclasses.is_dataclass(inner[1]):
        if not isinstance(value, dict):
            problems.append(f"{path}: expected names with their fields, got {_said(value)}")
            return {}
        # A name set to null takes an inherited entry out of a recipe.
        kept = {k: v for k, v in value.items() if not _is_none(v)}
        return {k: _build(inner[1], v, f"{path}.{k}", problems) for k, v in kept.items()}
    if not dataclasses.is_dataclass(hint):
        return _leaf(hint, value, path, problems)
    if not isinstance(value, dict):
        problems.append(f"{path or 'the recipe'}: expected a mapping of fields, got {_said(value)}")
        return None
    hints = typing.get_type_hints(hint)
    for key in value.keys() - hints.keys():
        problems.append(f"{path + '.' if path else ''}{key}: {unknown('field', str(key), hints)}")
    known = {k: v for k, v in value.items() if k in hints}
    built = {
        k: _build(hints[k], v, f"{path}.{k}" if path else k, problems) for k, v in known.items()
    }
    return typing.cast(Any, hint)(**built)


def _is_none(value: Any) -> bool:
    return value is None or value == "null"


@cache
def _parser(hint: Any) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def _leaf(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    if typing.get_origin(hint) is tuple and isinstance(value, str):
        value = value.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    if choices and value not in choices:
        problems.append(f"{path}: {unknown('value', str(value), map(str, choices))}")
        return value
    try:
        parser = _parser(hint)
        # A word from the command line is read as one; anything else as it stands.
        found = (
            parser.parse_args([f"--value={value}"])
            if isinstance(value, str)
            else parser.parse_object({"value": value})
        )["value"]
        _refuse_strange(found, path)
        accepted = _is_finite(found) and (found is not None or type(None) in typing.get_args(hint))
    except Exception:  # jsonargparse raises several types; the hint says what was expected
        accepted = False
    if not accepted:
        name = getattr(hint, "__name__", None) if not typing.get_args(hint) else None
        problems.append(f"{path}: expected {name or hint}, got {_said(value)}")
        return value
    return found


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, list(tree) if isinstance(tree, tuple) else tree


def _no_effect(key: str) -> bool:
    return key in _NO_EFFECT or (key.startswith("stages.") and key.endswith(".cache_mib"))


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(item) for item in tree] if isinstance(tree, (tuple, list)) else tree
