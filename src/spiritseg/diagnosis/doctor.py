"""Examines an experiment before any training, part by part."""

from __future__ import annotations

from collections.abc import Iterator

from spiritseg.config import Experiment
from spiritseg.diagnosis.costs import examine_costs
from spiritseg.diagnosis.findings import Report, Section
from spiritseg.diagnosis.images import examine_images
from spiritseg.diagnosis.inputs import examine_inputs
from spiritseg.diagnosis.splits import examine_splits
from spiritseg.diagnosis.weights import build_each, examine_weights
from spiritseg.recipes.check import check

__all__ = ["doctor", "examine"]


def doctor(experiment: Experiment) -> Report:
    """Say what is wrong with an experiment and what it will cost, before any training.

    Everything is looked at, however much of it is bad: the recipe, the images and their labels,
    crops, each network's weights, its input normalisation and its legal split points, and by a
    few real steps of each stage the memory and the time of the run on this machine.

    Args:
        experiment: from `load_experiment`, possibly with ``complete=False``.

    Returns:
        Findings (ok, warning, problem) with what to do, and tables.
    """
    return Report(list(examine(experiment)))


def examine(experiment: Experiment) -> Iterator[Section]:
    """Yield the sections of `doctor` as they are done.

    Args:
        experiment: from `load_experiment`, possibly with ``complete=False``.
    """
    yield _recipe(experiment)
    images = examine_images(experiment)
    yield images.section
    networks, weights = build_each(experiment, images.num_classes, images.classes)
    yield examine_weights(experiment, networks, images.samples, weights)
    yield examine_inputs(experiment, networks, images.samples)
    yield examine_splits(experiment, networks, images.size)
    yield from examine_costs(experiment, networks, images)


def _recipe(experiment: Experiment) -> Section:
    section = Section("Recipe")
    problems = check(experiment)
    for line in problems:
        section.problem(line)
    if not problems:
        stages = ", ".join(experiment.stages)
        section.ok(f"{len(experiment.stages)} stages ({stages}); the result is {experiment.result}")
    return section
