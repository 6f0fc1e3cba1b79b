"""The results under one number of labels: rows, statistics, and what they say in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from spiritseg.compare.paper import TABLE_III, method_of
from spiritseg.compare.results import Row, Run, rows_of
from spiritseg.compare.statistics import (
    LEAST_SEEDS,
    LEAST_UNITS,
    Difference,
    compare_all,
    sequence_of,
)
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
        lacking: what to do about a baseline that there is none of; empty where there is one.
        latency: of a network in ms, by title.
        head: CT's test figures before its fine-tuning, by title and seed.
        tables: by name.
    """

    labels: str
    rows: dict[str, Row]
    reference: str
    differences: list[Difference]
    picked: list[Difference]
    note: str
    lacking: str = ""
    latency: dict[str, float] = field(default_factory=dict)
    head: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
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
        "" if reference else _lacking(rows, baseline),
    )


def _lacking(rows: Mapping[str, Row], baseline: str) -> str:
    """Name the recipes that could be the baseline: its variants, its method's other networks."""
    method = method_of(baseline.partition("~")[0])
    found = dict.fromkeys(r.first.recipe for r in rows.values() if method_of(r.recipe) == method)
    said = f"No run is of the recipe {baseline}: nothing to compare with."
    if not found:
        return said
    names = ", ".join(found)
    why = " (~ tells runs apart that differ in more than their seeds)" if "~" in names else ""
    return f"{said} Pass --baseline to spiritseg report, one of: {names}{why}."


def _note(rows: Mapping[str, Row]) -> str:
    names = list(next(iter(rows.values())).first.per_image)
    drives = len({sequence_of(name) for name in names})
    said = f"{len(names)} test images from {drives} sequence{'s' * (drives != 1)}"
    if drives >= LEAST_UNITS:
        return f"{said}, which the intervals resample."
    return (
        f"{said}: too few to resample, so each is cut into blocks of consecutive images, longer "
        "where neighbouring images' differences are alike; below "
        f"{LEAST_UNITS} blocks there is no verdict. "
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
    said = [one for one in section.differences if one.metric == "mIOU"]
    return {
        "head": _head(section, [one for one in said if _is_distilled(section.rows[one.name])]),
        "sentences": [one.sentence for one in said],
        "picked": [
            one.sentence
            for one in section.picked
            if one.metric == "mIOU" and _is_distilled(section.rows[one.name])
        ],
    }


def _head(section: Section, distilled: Sequence[Difference]) -> str:
    """Say in a sentence or two whether distillation helped."""
    seeds = max((len(row.runs) for row in section.rows.values()), default=0)
    where = f"With {labelled(section.labels)} and {seeds} seed{'s' * (seeds != 1)}"
    if not section.reference:
        return f"{where} there is no baseline among the runs. {section.lacking}"
    if not distilled:
        return f"{where} no distilled network has been run beside the baseline."
    gains = [one for one in distilled if one.verdict == "significant gain"]
    if gains:
        best = max(gains, key=lambda one: one.value)
        return (
            f"{where}, distillation helped: {', '.join(one.name for one in gains)} gained mIOU "
            f"over {section.reference}, at the most {100 * best.value:.1f} points ({best.name})."
        )
    if few := _too_few(distilled):
        return f"{where}{few}"
    if all(one.verdict == "no difference" for one in distilled):
        return f"{where}, every distilled network has exactly the results of {section.reference}."
    return f"{where}, no distilled network gained mIOU over {section.reference} significantly."


def _too_few(distilled: Sequence[Difference]) -> str:
    """Say what a verdict lacks; nothing where it lacks nothing."""
    verdicts = {one.verdict for one in distilled}
    images = min(one.images for one in distilled)
    counted = f"{images} test image{'s' * (images != 1)}"
    if "too few seeds" in verdicts:
        return (
            f": too few for a verdict, which takes {LEAST_SEEDS}. The differences below are what "
            "these seeds show."
        )
    if "too few images" in verdicts:
        return (
            f": {counted}, too few for a verdict. The differences below are what these images show."
        )
    if "too few independent images" in verdicts:
        lacking = [one.name for one in distilled if one.verdict == "too few independent images"]
        return (
            f": too few independent images for a verdict on {', '.join(lacking)}. Neighbouring "
            f"images are so alike that the {counted} make fewer than {LEAST_UNITS} independent "
            "blocks: these sequences cannot tell. Measure on images of more drives."
        )
    return ""


def _is_distilled(row: Row) -> bool:
    stages = row.first.experiment.stages.values()
    return any(set(stage.losses) - {"cross_entropy"} for stage in stages)


def cautions(rows: Mapping[str, Row]) -> list[str]:
    """Say where the rows' budgets differ: steps with labels of the network that is measured."""
    steps = {title: _supervised(row) for title, row in rows.items()}
    steps = {title: count for title, count in steps.items() if count}  # distilled alone: no labels
    if len(set(steps.values())) < 2:
        return []
    said = ", ".join(f"{title} {count}" for title, count in steps.items())
    return [f"Unequal budgets. Supervised steps: {said}."]


def _supervised(row: Row) -> int:
    """Return the steps that were really taken, which early stopping decides; mean over seeds."""
    return round(fmean(sum(_steps(run).values()) for run in row.runs.values()))


def _steps(run: Run) -> dict[str, int]:
    """Return the steps of the stages that train the result with labels."""
    taken, result = run.metrics.get("stages", {}), run.experiment.result
    return {
        name: taken.get(name, {}).get("steps", stage.max_steps)
        for name, stage in run.experiment.stages.items()
        if stage.network == result and "cross_entropy" in stage.losses
    }


def gaps(section: Section) -> list[str]:
    """Name what a complete matrix would have and this one has not."""
    gaps = []
    ratios = {row.first.ratio for row in section.rows.values()} - {None}
    lacking = [f"{ratio:g}" for ratio in TABLE_III if ratio not in ratios]
    if lacking:
        gaps.append(f"Table III: no run at r = {', '.join(lacking)}.")
    for recipe in ("ct", "sd", "esd", _PICK, "logits"):
        if all(method_of(row.recipe) != recipe for row in section.rows.values()):
            gaps.append(f"No run of the recipe {recipe}.")
    seeds = {title: len(row.runs) for title, row in section.rows.items()}
    most = max(seeds.values())
    few = [f"{title} ({count} of {most})" for title, count in seeds.items() if count < most]
    if few:
        gaps.append(f"Fewer seeds than the others: {', '.join(few)}.")
    return gaps
