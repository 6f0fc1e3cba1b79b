"""Recipes: experiments on disk. Read one, lay overrides over it, check all of it at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from spiritseg.config import Experiment
from spiritseg.errors import BundleError, ConfigError, listed, unknown
from spiritseg.options import build, shown, without_nulls
from spiritseg.registry import names_in_files

__all__ = [
    "Recipe",
    "Recipes",
    "experiment_from_dict",
    "load_experiment",
    "recipe_names",
    "recipes",
    "recorded_experiment",
]

_HERE = Path(__file__).parent

# More than any experiment has: of levels, and of values.
_DEEPEST, _MOST = 40, 100_000
_DOTS = re.compile(r"\.(?!py:)")  # of a dotted name; not those of losses/mine.py:NAME


class Recipe(NamedTuple):
    """A shipped recipe.

    Args:
        name: Name for `load_experiment` and ``spiritseg distill``.
        summary: What it does, in one sentence.
        needs: What the user must have.
    """

    name: str
    summary: str
    needs: str


class Recipes(list[Recipe]):
    """The shipped recipes; printed, they are grouped by what the user must have."""

    def __str__(self) -> str:
        lines = []
        for needs in dict.fromkeys(one.needs for one in self):
            lines.append(f"\n{needs}:")
            group = [one for one in self if one.needs == needs]
            lines += [f"  {one.name:20} {one.summary}" for one in group]
        return "\n".join(lines).lstrip("\n")

    __repr__ = __str__


def recipes() -> Recipes:
    """List the shipped recipes: name, summary, and what the user must have."""
    found = []
    for path in _HERE.glob("*.yaml"):
        summary, needs = path.read_text().splitlines()[:2]
        found.append(Recipe(path.stem, summary.lstrip("# "), needs.removeprefix("# Needs: ")[:-1]))
    return Recipes(sorted(found, key=lambda one: (len(one.needs), one.needs, one.name)))


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in _HERE.glob("*.yaml"))


def load_experiment(
    name_or_yaml: str | Path,
    overrides: Mapping[str, Any] | None = None,
    complete: bool = True,
    trust: bool | Collection[str] = True,
) -> Experiment:
    """Read a recipe, lay overrides over it and check it.

    Args:
        name_or_yaml: name of a shipped recipe, or path of a YAML file. ``extends: NAME``
            in a file starts from another recipe.
        overrides: dotted fields and their values, such as ``{"target.root": "camvid"}``. A
            stage or a network is added by a mapping of its fields and taken out by None.
        complete: whether the folders of images must be named; to look at a recipe they
            need not be.
        trust: Whether Python files that it names (``file.py:NAME``) may run, or those that may;
            those that the overrides name always may. False for a file of somebody else's.

    Returns:
        The experiment: frozen, typed and checked.

    Raises:
        ConfigError: with all problems at once.
    """
    fields, name = _read(name_or_yaml), str(name_or_yaml)
    return experiment_from_dict(fields, overrides, complete, name, trust)


def experiment_from_dict(
    fields: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    complete: bool = True,
    name: str = "the experiment",
    trust: bool | Collection[str] = True,
) -> Experiment:
    """Build an experiment from plain values, as `load_experiment` does from a file.

    Args:
        fields: nested fields, as in a recipe.
        overrides: dotted fields and their values.
        complete: whether the folders of images must be named.
        name: what error messages call it.
        trust: as in `load_experiment`.

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
        *parents, leaf = _DOTS.split(dotted)
        _merge(tree, _nest(parents, {leaf: value}))
    _refuse_strange(tree, name)
    if trust is not True:
        trusted = names_in_files(overrides or {}) | set(trust or ())
        _refuse_files(names_in_files(tree) - trusted, name)
    experiment, wrong = build(Experiment, tree)
    problems += wrong
    if experiment is not None and not problems:
        from spiritseg.recipes.check import check  # it loads the losses, and torch

        problems = check(experiment, complete)
    if experiment is None or problems:
        raise ConfigError(f"{name}: {len(problems)} problem(s)\n{listed(problems, 40)}")
    return experiment


def recorded_experiment(
    training: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    complete: bool = True,
    trust: bool = False,
) -> Experiment:
    """Return the experiment that a bundle says it was trained by.

    Args:
        training: The bundle's `BundleInfo.training`.
        overrides: Values by dotted field, such as ``{"target.root": DIR}``. A bundle keeps
            only the last part of the folders of its images.
        complete: Whether the folders of the images must be given.
        trust: Whether Python files that it names may run.

    Raises:
        BundleError: The bundle was saved without its experiment.
        ConfigError: The experiment is not valid; lists all problems.
    """
    fields = training.get("experiment")
    if not isinstance(fields, Mapping):
        raise BundleError(
            "the bundle was saved without its experiment, so its images and settings are "
            "unknown. Use the bundle of a run (RUN/student), or save it with "
            "training={'experiment': ...}."
        )
    return experiment_from_dict(fields, overrides, complete, "the bundle's experiment", trust)


def _refuse_files(files: Collection[str], name: str) -> None:
    if files:
        raise ConfigError(
            f"{name} names Python files ({', '.join(sorted(files))}), which would run. Pass "
            "--trust (trust=True) if they are yours, or name others, such as --target.dataset."
        )


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
        raise ConfigError(f"{path}: extends names one recipe or YAML file, got {shown(base)}.")
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
                        f"{shown(key)}. Put it in quotes."
                    )
                waiting.append((f"{path}.{key}" if path else key, inner, depth + 1))
        elif isinstance(value, list | tuple):
            waiting += [(path, inner, depth + 1) for inner in value]
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ConfigError(f"{name}: {path}: expected a number of 64 bits, got a larger one.")
        elif not isinstance(value, str | int | float | None):  # a date, bytes or a set of YAML's
            raise ConfigError(
                f"{name}: {path}: expected words, numbers, lists or fields, got "
                f"{shown(value)}. Put it in quotes if it is a word."
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
    known = list(without_nulls(members or {}))
    if name in known or not (field or value is None or value == "null"):
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
