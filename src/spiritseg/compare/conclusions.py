"""What the runs with one number of labels show: statistics, words and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from spiritseg.compare.results import Row, Run, is_paper, rows_of
from spiritseg.compare.sequences import LEAST_UNITS, sequence_of
from spiritseg.compare.statistics import LEAST_SEEDS, Difference, compare_all
from spiritseg.tables import Table

__all__ = ["Setting", "Verdict", "cautions", "labelled", "make_setting", "tables", "verdict"]

_DASH = "–"
# GFLOPs, params M, mIOU %, HP-Acc % and Var e-3 in Tables II and III of Wu et al.
# (arXiv:2103.13733), by recipe and ratio: on Cityscapes-64, with DeepLabV3-ResNet50 as teacher.
_PAPER = {
    ("paper-ct", None): (
        "405.7",
        "23.6",
        "58.9 to 62.6",
        _DASH,
        _DASH,
    ),  # without fine-tuning, with
    ("paper-baseline", None): ("169.4", "9.5", "81.7", "81.2", "5.77"),
    ("paper-sd", None): ("169.4", "9.5", "83.5", "84.6", "5.70"),
    ("paper-esd", 0.5): ("169.4", "9.5", "83.3", "89.2", "4.71"),
    ("paper-esd", 0): ("169.4", "9.5", "83.1", "89.4", "4.51"),
}


@dataclass
class Setting:
    """The results with one number of labels."""

    labels: str  # such as 64 or all
    rows: dict[str, Row]  # by title
    reference: str  # title of the baseline's row; empty if there is none
    note: str  # what the intervals describe
    lacking: str  # what to do about a missing baseline
    differences: list[Difference] = field(default_factory=list)  # from the baseline
    latency: dict[str, float] = field(default_factory=dict)  # ms by title; empty if not measured

    @property
    def threshold(self) -> float:
        """The threshold of HP-Acc."""
        return next(iter(self.rows.values())).first.experiment.evaluation.threshold


@dataclass(frozen=True)
class Verdict:
    """What a setting shows, in words."""

    head: str  # whether distillation helped
    sentences: list[str]  # mIOU of each network against the baseline


def make_setting(runs: Sequence[Run], labels: str, baseline: str, resamples: int) -> Setting:
    """Group the runs with one number of labels, and compare them with a baseline recipe."""
    rows = rows_of(runs, labels)
    reference = next((t for t, row in rows.items() if row.first.recipe == baseline), "")
    lacking = "" if reference else _lacking(rows, baseline)
    setting = Setting(labels, rows, reference, _note(rows), lacking)
    if reference:
        images = {title: row.per_image() for title, row in rows.items()}
        setting.differences = compare_all(images, reference, setting.threshold, resamples)
    return setting


def _lacking(rows: Mapping[str, Row], baseline: str) -> str:
    """Name the recipes that could be the baseline."""
    names = ", ".join(dict.fromkeys(row.first.recipe for row in rows.values()))
    why = " (~ marks runs that differ in more than their seeds)" if "~" in names else ""
    return (
        f"No run is of the recipe {baseline}: nothing to compare with. Pass --baseline to "
        f"spiritseg report, one of: {names}{why}."
    )


def _note(rows: Mapping[str, Row]) -> str:
    names = list(next(iter(rows.values())).first.per_image)
    drives = len({sequence_of(name) for name in names})
    count = f"{len(names)} test images from {drives} sequence{'s' * (drives != 1)}"
    if drives >= LEAST_UNITS:
        return f"{count}, which the intervals resample."
    return (
        f"{count}: too few to resample, so each is cut into blocks of consecutive images, longer "
        f"where neighbouring images' differences are alike; below {LEAST_UNITS} blocks there is no "
        "verdict. The intervals describe these sequences, not other drives."
    )


def labelled(labels: str) -> str:
    """Return which images are labelled in words, such as ``the first 64 labelled images``."""
    if labels.isdecimal():
        return f"the first {labels} labelled images"
    if labels.startswith("even:"):
        return f"{labels.removeprefix('even:')} evenly spaced labelled images"
    return "all labelled images" if labels == "all" else f"labelled images: {labels}"


def verdict(setting: Setting) -> Verdict:
    """Return what a setting shows, in words."""
    main = [one for one in setting.differences if one.metric == "mIOU"]
    distilled = [one for one in main if _is_distilled(setting.rows[one.name])]
    return Verdict(_head(setting, distilled), [one.sentence for one in main])


def _is_distilled(row: Row) -> bool:
    stages = row.first.experiment.stages.values()
    return any(set(stage.losses) - {"cross_entropy"} for stage in stages)


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
    lacking = [one.name for one in distilled if one.verdict == "too few independent images"]
    if not lacking:
        return ""
    return (
        f": too few independent images for a verdict on {', '.join(lacking)}. Neighbouring "
        f"images are so alike that the {count} make fewer than {LEAST_UNITS} independent "
        "blocks. Measure on images of more drives."
    )


def cautions(rows: Mapping[str, Row]) -> list[str]:
    """Return where rows were not treated alike: supervised steps of the result, and seeds."""
    found = []
    steps = {t: round(fmean(map(_supervised, row.runs.values()))) for t, row in rows.items()}
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


def _supervised(run: Run) -> int:
    """Return the steps with labels that the result took (early stopping decides)."""
    taken: dict[str, dict[str, int]] = run.metrics.get("stages", {})
    return sum(
        taken.get(name, {}).get("steps", stage.max_steps)
        for name, stage in run.experiment.stages.items()
        if stage.network == run.experiment.result and "cross_entropy" in stage.losses
    )


def tables(setting: Setting) -> dict[str, Table]:
    """Tabulate results, differences and classes; a table without rows is left out."""
    found = {
        "results": _result_table(setting),
        "differences": _difference_table(setting.differences),
        "classes": _class_table(setting.rows),
    }
    return {name: table for name, table in found.items() if len(table) > 1}


def _spread(values: Sequence[float], factor: float = 100, digits: int = 1) -> str:
    """Format a mean over seeds with its standard deviation."""
    known = [factor * value for value in values if not math.isnan(value)]
    if not known:
        return _DASH
    spread = f" ± {stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{fmean(known):.{digits}f}{spread}"


def _result_table(setting: Setting) -> Table:
    """Tables II and III of the paper; its own numbers next to those of the paper's recipes."""
    own = ["GFLOPs", "params M", "mIOU %", "HP-Acc %", "Var e-3"]
    has_paper = any(is_paper(row.recipe) for row in setting.rows.values())
    paper = [f"paper {name}" for name in own] if has_paper else []
    timed = ["latency ms"] if setting.latency else []
    table = [["network", "seeds", *own, "dataset mIoU %", *timed, *paper]]
    for title, row in setting.rows.items():
        cost = row.first.metrics["cost"]
        line = [title, str(len(row.runs)), f"{cost['gflops']:.2f}", f"{cost['params'] / 1e6:.3f}"]
        line += [_spread(row.values("mIOU")), _spread(row.values("HP-Acc"))]
        line += [_spread(row.values("Var"), 1000, 2), _spread(row.values("dataset mIoU"))]
        line += [f"{setting.latency[title]:.1f}"] if timed else []
        theirs = _PAPER.get((row.recipe, row.first.ratio), (_DASH,) * len(own))
        table.append([*line, *(theirs if has_paper else ())])
    return table


def _difference_table(differences: Sequence[Difference]) -> Table:
    head = ["network", "metric", "difference", "95 % interval", "p", "p, Holm", "seeds"]
    table = [[*head, "units", "verdict"]]
    for one in differences:
        factor, digits, unit = (1000, 2, "e-3") if one.metric == "Var" else (100, 1, "points")
        # Adding 0.0 removes the sign of a zero.
        numbers = (
            round(factor * number, digits) + 0.0 for number in (one.value, one.low, one.high)
        )
        value, low, high = (f"{number:+.{digits}f}" for number in numbers)
        seeds = dict.fromkeys(map(str, (one.seeds, one.reference_seeds)))
        interval = f"{low} to {high}" if math.isfinite(one.low) else _DASH
        line = [one.name, f"{one.metric} {unit}", value, interval]
        line += [_probability(one.p), _probability(one.p_holm)]
        table.append([*line, " and ".join(seeds), str(one.units), one.verdict])
    return table


def _probability(p: float) -> str:
    if math.isnan(p):
        return _DASH
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _class_table(rows: Mapping[str, Row]) -> Table:
    names = list(next(iter(rows.values())).first.metrics["test"]["IoU"])
    table = [["network", *(f"{name} %" for name in names)]]
    for title, row in rows.items():
        table.append([title, *(_spread(row.values(f"IoU {name}")) for name in names)])
    return table
