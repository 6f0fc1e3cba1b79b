"""The results under one number of labels: rows, statistics, and what they say in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from spiritseg.compare.paper import TABLE_III
from spiritseg.compare.results import Row, Run, rows_of
from spiritseg.compare.statistics import (
    LEAST_SEEDS,
    LEAST_UNITS,
    Difference,
    compare_all,
    sequence_of,
)
from spiritseg.config import Experiment
from spiritseg.tables import Table

__all__ = ["Section", "cautions", "gaps", "labelled", "make_section", "verdict"]

_PICK = "finetune-pretrained"  # what a user would pick instead


@dataclass
class Section:
    """The results under one number of labels.

    Args:
        labels: such as 64 or all.
        rows: by title.
        reference: title of the baseline's row; empty where there is none.
        differences: to the baseline.
        picked: differences to the fine-tuned pretrained network.
        note: what the intervals speak of.
    """

    labels: str
    rows: dict[str, Row]
    reference: str
    differences: list[Difference]
    picked: list[Difference]
    note: str
    latency: dict[str, float] = field(default_factory=dict)
    head: dict[int, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)


def make_section(runs: Sequence[Run], labels: str, baseline: str, resamples: int) -> Section:
    """Group the runs of one number of labels, and compare them.

    Args:
        runs: all of them.
        labels: which.
        baseline: recipe of the row that the others are compared with.
        resamples: of the bootstrap.

    Returns:
        Rows and statistics.
    """
    rows = rows_of(runs, labels)
    reference = next((t for t, row in rows.items() if row.first.recipe == baseline), "")
    pick = next((t for t, row in rows.items() if row.first.recipe == _PICK), "")
    images = {title: row.per_image() for title, row in rows.items()}
    threshold = next(iter(rows.values())).first.experiment.evaluation.threshold
    compared = partial(compare_all, threshold=threshold, resamples=resamples)
    return Section(
        labels,
        rows,
        reference,
        compared(images, reference) if reference else [],
        compared(images, pick) if pick and pick != reference else [],
        _note(rows),
    )


def _note(rows: Mapping[str, Row]) -> str:
    names = list(next(iter(rows.values())).first.per_image)
    drives = len({sequence_of(name) for name in names})
    said = f"{len(names)} test images from {drives} sequence{'s' * (drives != 1)}"
    if drives >= LEAST_UNITS:
        return f"{said}, which the intervals resample."
    return (
        f"{said}: too few to resample, so each is cut into blocks of consecutive images. "
        "The intervals speak of these sequences, not of other drives."
    )


def labelled(labels: str) -> str:
    """Say in words which images are labelled, such as ``the first 64 labelled images``."""
    rule, _, count = labels.partition(":")
    if labels.isdecimal():
        return f"the first {labels} labelled images"
    return {"all": "all labelled images", "even": f"{count} evenly spaced labelled images"}.get(
        rule, f"labelled images: {labels}"
    )


def verdict(section: Section) -> dict[str, Any]:
    """Say in words what the main setting shows."""
    seeds = max((len(row.runs) for row in section.rows.values()), default=0)
    said = [one for one in section.differences if one.metric == "mIOU"]
    distilled = [one for one in said if _is_distilled(section.rows[one.name])]
    gains = [one for one in distilled if one.verdict == "significant gain"]
    where = f"With {labelled(section.labels)} and {seeds} seed{'s' * (seeds != 1)}"
    if not section.reference:
        head = f"{where} there is no baseline among the runs: nothing to compare with."
    elif not distilled:
        head = f"{where} no distilled network has been run beside the baseline."
    elif gains:
        best = max(gains, key=lambda one: one.value)
        head = (
            f"{where}, distillation helped: {', '.join(one.name for one in gains)} gained mIOU "
            f"over {section.reference}, at the most {100 * best.value:.1f} points ({best.name})."
        )
    elif any(one.verdict == "too few seeds" for one in distilled):
        head = (
            f"{where}: too few for a verdict, which takes {LEAST_SEEDS}. The differences below "
            "are what these seeds show."
        )
    else:
        head = f"{where}, no distilled network gained mIOU over {section.reference} significantly."
    return {
        "head": head,
        "sentences": [one.sentence for one in said],
        "picked": [
            one.sentence
            for one in section.picked
            if one.metric == "mIOU" and _is_distilled(section.rows[one.name])
        ],
    }


def _is_distilled(row: Row) -> bool:
    return any(stage.teacher is not None for stage in row.first.experiment.stages.values())


def cautions(rows: Mapping[str, Row]) -> list[str]:
    """Say where the rows' budgets differ: steps with labels of the network that is measured."""
    steps = {title: _supervised(row.first.experiment) for title, row in rows.items()}
    steps = {title: count for title, count in steps.items() if count}  # distilled alone: no labels
    if len(set(steps.values())) < 2:
        return []
    said = ", ".join(f"{title} {count}" for title, count in steps.items())
    return [f"Unequal budgets. Supervised steps: {said}."]


def _supervised(experiment: Experiment) -> int:
    return sum(
        stage.max_steps
        for stage in experiment.stages.values()
        if stage.network == experiment.result and stage.losses.cross_entropy is not None
    )


def gaps(section: Section) -> list[str]:
    """Name what a complete matrix would have and this one has not."""
    gaps = []
    ratios = {row.first.ratio for row in section.rows.values()} - {None}
    lacking = [f"{ratio:g}" for ratio in TABLE_III if ratio not in ratios]
    if lacking:
        gaps.append(f"Table III: no run at r = {', '.join(lacking)}.")
    for recipe in ("ct", "sd", "esd", _PICK, "logits"):
        if all(row.first.recipe.partition("~")[0] != recipe for row in section.rows.values()):
            gaps.append(f"No run of the recipe {recipe}.")
    seeds = {title: len(row.runs) for title, row in section.rows.items()}
    most = max(seeds.values())
    few = [f"{title} ({count} of {most})" for title, count in seeds.items() if count < most]
    if few:
        gaps.append(f"Fewer seeds than the others: {', '.join(few)}.")
    return gaps
