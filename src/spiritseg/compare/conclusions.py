"""What the runs with one number of labels show: rows, statistics, and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from spiritseg.compare.paper import method_of
from spiritseg.compare.results import Row, Run, rows_of
from spiritseg.compare.sequences import LEAST_UNITS, sequence_of
from spiritseg.compare.statistics import LEAST_SEEDS, Difference, compare_all
from spiritseg.tables import Table

__all__ = ["Setting", "Verdict", "cautions", "labelled", "make_setting", "verdict"]

_PICK = "finetune-pretrained"  # what a user would pick instead


@dataclass
class Setting:
    """The results with one number of labels."""

    labels: str  # such as 64 or all
    rows: dict[str, Row]  # by title
    reference: str  # title of the baseline's row; empty if there is none
    note: str  # what the intervals describe
    lacking: str  # what to do about a missing baseline
    differences: list[Difference] = field(default_factory=list)  # from the baseline
    picked: list[Difference] = field(default_factory=list)  # from the fine-tuned pretrained network
    latency: dict[str, float] = field(default_factory=dict)  # ms by title; empty if not measured
    # Test metrics of CT before its fine-tuning, by title and seed.
    head_only: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """The threshold of HP-Acc."""
        return next(iter(self.rows.values())).first.experiment.evaluation.threshold


@dataclass(frozen=True)
class Verdict:
    """What a setting shows, in words."""

    head: str  # whether distillation helped
    sentences: list[str]  # mIOU of each network against the baseline
    picked: list[str]  # mIOU of each distilled network against the fine-tuned pretrained one


def make_setting(runs: Sequence[Run], labels: str, baseline: str, resamples: int) -> Setting:
    """Group the runs with one number of labels, and compare them with a baseline recipe."""
    rows = rows_of(runs, labels)
    reference = next((t for t, row in rows.items() if row.first.recipe == baseline), "")
    pick = next((t for t, row in rows.items() if row.first.recipe == _PICK), "")
    lacking = "" if reference else _lacking(rows, baseline)
    setting = Setting(labels, rows, reference, _note(rows), lacking)
    images = {title: row.per_image() for title, row in rows.items()}
    compared = partial(compare_all, images, threshold=setting.threshold, resamples=resamples)
    if reference:
        setting.differences = compared(reference)
    if pick and pick != reference:
        setting.picked = compared(pick)
    return setting


def _lacking(rows: Mapping[str, Row], baseline: str) -> str:
    """Name the recipes that could be the baseline: its variants, its method's other networks."""
    method = method_of(baseline.partition("~")[0])
    found = dict.fromkeys(r.first.recipe for r in rows.values() if method_of(r.recipe) == method)
    problem = f"No run is of the recipe {baseline}: nothing to compare with."
    if not found:
        return problem
    names = ", ".join(found)
    why = " (~ marks runs that differ in more than their seeds)" if "~" in names else ""
    return f"{problem} Pass --baseline to spiritseg report, one of: {names}{why}."


def _note(rows: Mapping[str, Row]) -> str:
    names = list(next(iter(rows.values())).first.per_image)
    drives = len({sequence_of(name) for name in names})
    count = f"{len(names)} test images from {drives} sequence{'s' * (drives != 1)}"
    if drives >= LEAST_UNITS:
        return f"{count}, which the intervals resample."
    return (
        f"{count}: too few to resample, so each is cut into blocks of consecutive images, longer "
        "where neighbouring images' differences are alike; below "
        f"{LEAST_UNITS} blocks there is no verdict. "
        "The intervals describe these sequences, not other drives."
    )


def labelled(labels: str) -> str:
    """Return which images are labelled in words, such as ``the first 64 labelled images``."""
    rule, _, count = labels.partition(":")
    if labels.isdecimal():
        return f"the first {labels} labelled images"
    return {"all": "all labelled images", "even": f"{count} evenly spaced labelled images"}.get(
        rule, f"labelled images: {labels}"
    )


def verdict(setting: Setting) -> Verdict:
    """Return what a setting shows, in words."""
    main = [one for one in setting.differences if one.metric == "mIOU"]
    distilled = {title for title, row in setting.rows.items() if _is_distilled(row)}
    return Verdict(
        _head(setting, [one for one in main if one.name in distilled]),
        [one.sentence for one in main],
        [one.sentence for one in setting.picked if one.metric == "mIOU" and one.name in distilled],
    )


def _head(setting: Setting, distilled: Sequence[Difference]) -> str:
    """Return in a sentence or two whether distillation helped."""
    seeds = max((len(row.runs) for row in setting.rows.values()), default=0)
    where = f"With {labelled(setting.labels)} and {seeds} seed{'s' * (seeds != 1)}"
    if not setting.reference:
        return f"{where} there is no baseline among the runs. {setting.lacking}"
    if not distilled:
        return f"{where} no distilled network has been run besides the baseline."
    gains = [one for one in distilled if one.verdict == "significant gain"]
    if gains:
        best = max(gains, key=lambda one: one.value)
        return (
            f"{where}, distillation helped: {', '.join(one.name for one in gains)} gained mIOU "
            f"over {setting.reference}, at most {100 * best.value:.1f} points ({best.name})."
        )
    if few := _too_few(distilled):
        return f"{where}{few}"
    if all(one.verdict == "no difference" for one in distilled):
        return f"{where}, every distilled network has exactly the results of {setting.reference}."
    return f"{where}, no distilled network gained mIOU over {setting.reference} significantly."


def _too_few(distilled: Sequence[Difference]) -> str:
    """Return what a verdict lacks; empty if it lacks nothing."""
    verdicts = {one.verdict for one in distilled}
    images = min(one.images for one in distilled)
    count = f"{images} test image{'s' * (images != 1)}"
    if "too few seeds" in verdicts:
        return (
            f": too few for a verdict, which takes {LEAST_SEEDS}. The differences below are what "
            "these seeds show."
        )
    if "too few images" in verdicts:
        return f": {count}, too few for a verdict. The differences below are what these show."
    if "too few independent images" in verdicts:
        lacking = [one.name for one in distilled if one.verdict == "too few independent images"]
        return (
            f": too few independent images for a verdict on {', '.join(lacking)}. Neighbouring "
            f"images are so alike that the {count} make fewer than {LEAST_UNITS} independent "
            "blocks. Measure on images of more drives."
        )
    return ""


def _is_distilled(row: Row) -> bool:
    stages = row.first.experiment.stages.values()
    return any(set(stage.losses) - {"cross_entropy"} for stage in stages)


def cautions(rows: Mapping[str, Row]) -> list[str]:
    """Return where rows were not treated alike: supervised steps of the result, and seeds."""
    found = []
    steps = {title: _supervised(row) for title, row in rows.items()}
    steps = {title: count for title, count in steps.items() if count}  # distilled alone: no labels
    if len(set(steps.values())) > 1:
        counts = ", ".join(f"{title} {count}" for title, count in steps.items())
        found.append(f"Unequal budgets. Supervised steps: {counts}.")
    seeds = {title: len(row.runs) for title, row in rows.items()}
    most = max(seeds.values())
    few = [f"{title} ({count} of {most})" for title, count in seeds.items() if count < most]
    if few:
        found.append(f"Fewer seeds than the others: {', '.join(few)}.")
    return found


def _supervised(row: Row) -> int:
    """Return the steps with labels that were taken (early stopping decides); mean over seeds."""
    return round(fmean(sum(_steps(run).values()) for run in row.runs.values()))


def _steps(run: Run) -> dict[str, int]:
    """Return the steps of the stages that train the result with labels."""
    taken, result = run.metrics.get("stages", {}), run.experiment.result
    return {
        name: taken.get(name, {}).get("steps", stage.max_steps)
        for name, stage in run.experiment.stages.items()
        if stage.network == result and "cross_entropy" in stage.losses
    }
