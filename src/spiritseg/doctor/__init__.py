"""Examining an experiment before it is run: what is wrong with it, and what it will cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spiritseg.config import Experiment
from spiritseg.doctor.cut_points import examine_cut_points
from spiritseg.doctor.findings import Examination, Finding, Known, Report, reason
from spiritseg.doctor.images import examine_images
from spiritseg.doctor.training_steps import examine_training
from spiritseg.doctor.weights import examine_normalisation, examine_weights
from spiritseg.errors import ConfigError, SpiritsegError
from spiritseg.recipes import load_experiment
from spiritseg.recipes.check import check

__all__ = ["Examination", "Finding", "Report", "doctor"]


def doctor(
    recipe: str | Path | Experiment,
    overrides: Mapping[str, Any] | None = None,
    *,
    skip_bad: bool = False,
    show: Callable[[Examination], None] | None = None,
) -> Report:
    """Find out what is wrong with an experiment, and what it will cost, before any training.

    Everything is examined, however much of it is bad: the recipe, the images and their labels,
    each network's weights, input normalisation and cut points; a few real steps of each stage
    measure time and memory. No file is written.

    Args:
        recipe: Name of a shipped recipe, path of a YAML file, or an experiment.
        overrides: Dotted fields and their values, as for `load_experiment`.
        skip_bad: Leave unreadable images out.
        show: Called with each examination as soon as it is done.

    Returns:
        Findings (ok, warning, problem) with what to do, and tables; it prints as text.

    Raises:
        ConfigError: if a field is unknown or of the wrong type.
    """
    fields = {**(overrides or {}), **({"input.skip_bad": True} if skip_bad else {})}
    if isinstance(recipe, Experiment):
        if fields:
            raise ConfigError(
                "doctor: expected overrides with a recipe's name or file only, got them with an "
                "experiment. Give them to load_experiment."
            )
        experiment = recipe
    else:
        experiment = load_experiment(recipe, fields, complete=False)
    report = Report()
    for examination in _examine(experiment):
        report.examinations.append(examination)
        if show is not None:
            show(examination)
    return report


def _examine(experiment: Experiment) -> Iterator[Examination]:
    """Yield the examinations as they are done; one that fails is a finding."""
    known = Known(experiment)
    for title, look in _EXAMINATIONS.items():
        found = Examination(title)
        try:
            look(found, known)
        except SpiritsegError as error:
            found.refused(title.lower(), str(error))
        except Exception as error:  # networks and files may fail in any way
            stopped = f"the examination stopped: {type(error).__name__}: {reason(error)}"
            found.problem(title.lower(), stopped)
        yield found


def _examine_recipe(found: Examination, known: Known) -> None:
    problems = check(known.experiment)
    for line in problems:
        found.refused("recipe", line)
    if not problems:
        stages, result = known.experiment.stages, known.experiment.result
        found.ok("recipe", f"{len(stages)} stages ({', '.join(stages)}); the result is {result}")


_EXAMINATIONS: dict[str, Callable[[Examination, Known], None]] = {
    "Recipe": _examine_recipe,
    "Images and labels": examine_images,
    "Weights": examine_weights,
    "Input normalisation": examine_normalisation,
    "Cut points and cost": examine_cut_points,
    "Training steps": examine_training,  # last: it changes the networks
}
