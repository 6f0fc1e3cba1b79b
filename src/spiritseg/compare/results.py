"""Finished runs as tidy rows, whatever command made them."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from spiritseg.compare.matrix import MANIFEST, Cell, labels_of, ratio_of
from spiritseg.config import Experiment
from spiritseg.errors import RunError
from spiritseg.files import figures_are_whole, read_fields, write_atomically
from spiritseg.recipes import fingerprint, load_experiment

__all__ = [
    "Row",
    "Run",
    "is_paper",
    "read_runs",
    "rows_of",
    "settings_of",
    "write_results",
]

# What the papers call a recipe.
_TITLES = {
    "baseline": "S",
    "ct": "CT",
    "sd": "SD",
    "esd": "ESD",
    "paper-baseline": "S (paper's network)",
    "paper-ct": "CT (paper's network)",
    "paper-sd": "SD (paper's network)",
    "paper-esd": "ESD (paper's network)",
    "finetune-pretrained": "fine-tuned pretrained",
    "logits": "logit distillation only",
    "skd": "SKD",
    "skd-paper": "SKD (paper's networks)",
    "skd-released": "SKD (released code)",
    "sd-skd": "SD then SKD",
}
_AGAIN = "Delete the run's folder and run it again, or leave it out."


@dataclass(frozen=True)
class Run:
    """One finished run.

    Runs of one recipe that differ in more than seed, ratio and labels have the hash of their
    config appended to `recipe`.
    """

    folder: Path
    recipe: str
    experiment: Experiment
    metrics: dict[str, Any]  # metrics.json
    about: dict[str, Any]  # run.json: versions and machine

    @property
    def seed(self) -> int:
        """Its random seed."""
        return self.experiment.seed

    @property
    def ratio(self) -> float | None:
        """The ratio of target to proximity images, if a stage mixes them."""
        return ratio_of(self.experiment)

    @property
    def labels(self) -> str:
        """Which training images are labelled, such as 64, even:64 or all."""
        return labels_of(self.experiment)

    @property
    def title(self) -> str:
        """The recipe as the papers call it, with its ratio, such as ``ESD r=0.5``."""
        name, tilde, variant = self.recipe.partition("~")
        title = _TITLES.get(name, name) + (f" ({variant})" if tilde else "")
        return title if self.ratio is None else f"{title} r={self.ratio:g}"

    @cached_property
    def per_image(self) -> dict[str, float]:
        """The mIOU of each test image, by name."""
        path = self.folder / "per_image.csv"
        try:
            with path.open(newline="") as file:
                lines = [line for line in csv.reader(file) if line][1:]
        except (OSError, ValueError, csv.Error) as error:
            raise RunError(f"cannot read {path}: {error}. {_AGAIN}") from None
        if not lines:
            raise RunError(f"{path}: expected the mIOU of each test image, got none. {_AGAIN}")
        images = ((",".join(name), value) for *name, value in lines)
        return {name: _miou(path, name, value) for name, value in images}

    def explained(self) -> dict[str, float]:
        """R^2 of the mimicked features by domain, of the first mimicry stage."""
        stages = self.metrics["stages"].values()
        return dict(next(filter(None, (s.get("explained variance") for s in stages)), {}))

    def seconds(self) -> dict[str, float]:
        """Training seconds by stage."""
        return {name: stage["seconds"] for name, stage in self.metrics["stages"].items()}

    def as_dict(self) -> dict[str, Any]:
        """Return the run as one flat row of plain values."""
        test, cost, stages = (self.metrics[key] for key in ("test", "cost", "stages"))
        return {
            "run": self.folder.name,
            "recipe": self.recipe,
            "ratio": self.ratio,
            "labels": self.labels,
            "seed": self.seed,
            "fingerprint": fingerprint(self.experiment),
            **{name: test[name] for name in ("mIOU", "HP-Acc", "Var", "dataset mIoU", "images")},
            "val mIOU": self.metrics["val"]["mIOU"],
            **{f"IoU {name}": value for name, value in test["IoU"].items()},
            "params": cost["params"],
            "gflops": cost["gflops"],
            "latency_ms": cost.get("latency_ms"),
            **{f"R2 {domain}": value for domain, value in self.explained().items()},
            **{f"seconds {stage}": value for stage, value in self.seconds().items()},
            **{f"shared {n}": s["shared with"] for n, s in stages.items() if "shared with" in s},
        }


@dataclass(frozen=True)
class Row:
    """The runs of one recipe, ratio and label count under several seeds."""

    title: str  # such as S, SD or ESD r=0.5
    runs: Mapping[int, Run]  # by seed

    @property
    def first(self) -> Run:
        """The run of the lowest seed."""
        return self.runs[min(self.runs)]

    @property
    def recipe(self) -> str:
        """Their recipe, without the hash of a variant."""
        return self.first.recipe.partition("~")[0]

    def values(self, name: str) -> list[float]:
        """Return a test metric under each seed; the IoU of a class as ``IoU road``."""
        tests = [run.metrics["test"] for _, run in sorted(self.runs.items())]
        kind, _, label = name.partition("IoU ")
        found = [test["IoU"].get(label) if label and not kind else test[name] for test in tests]
        return [float("nan") if value is None else float(value) for value in found]

    def mean(self, name: str) -> float:
        """Return the mean over seeds of a test metric."""
        return float(np.mean(self.values(name)))

    def std(self, name: str) -> float:
        """Return the standard deviation over seeds (n - 1); NaN for one seed."""
        values = self.values(name)
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

    def per_image(self) -> dict[int, dict[str, float]]:
        """Return the mIOU of each image, by seed and name."""
        return {seed: run.per_image for seed, run in self.runs.items()}


def _miou(path: Path, image: str, value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise RunError(f"{path}: expected a finite mIOU of image {image}, got {value!r}. {_AGAIN}")
    return found


def read_runs(folders: Sequence[str | Path], trust: bool = False) -> list[Run]:
    """Read the finished runs in folders, at any depth.

    Args:
        folders: Runs, or folders of them.
        trust: Whether Python files that their configs name may run.

    Returns:
        The runs, sorted by recipe, ratio, labels and seed; of duplicates the first.

    Raises:
        RunError: There is no finished run, or one cannot be read.
    """
    paths = {
        path.parent.resolve(): None
        for folder in folders
        for path in sorted(Path(folder).expanduser().rglob("metrics.json"))
        if (path.parent / "config.yaml").is_file()
    }
    if not paths:
        raise RunError(
            f"no finished run in {', '.join(map(str, folders))}: expected folders with "
            "metrics.json and config.yaml, as spiritseg compare and spiritseg distill write them."
        )
    found = _apart([_read(path, trust) for path in paths])
    unique = {(run.recipe, run.ratio, run.labels, run.seed): run for run in reversed(found)}
    return sorted(
        unique.values(), key=lambda r: (r.recipe, -(r.ratio or 0), _order(r.labels), r.seed)
    )


def _read(folder: Path, trust: bool) -> Run:
    try:
        experiment = load_experiment(folder / "config.yaml", trust=trust)
        metrics = json.loads((folder / "metrics.json").read_text())
        path = folder / "run.json"
        about = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read the run {folder}: {error}") from None
    if not figures_are_whole(folder, metrics):
        raise RunError(
            f"metrics.json or per_image.csv of {folder} was changed after the run. Start its "
            "command again, which measures it anew, or leave it out."
        )
    return Run(folder, _recipe_of(folder, experiment), experiment, metrics, about)


def _recipe_of(folder: Path, experiment: Experiment) -> str:
    """Return the recipe in a ``matrix.json`` above, else the folder's name without seed, hash."""
    runs = read_fields(folder.parent / MANIFEST).get("runs", {})
    if folder.name in runs:
        return str(runs[folder.name]["recipe"])
    name = folder.name.removesuffix(Cell("", experiment).folder)
    name = re.sub(r"-[0-9a-f]{10}$", "", name)
    return re.sub(rf"-s?{experiment.seed}$", "", name)


def _apart(runs: list[Run]) -> list[Run]:
    """Rename runs of the same name that differ in more than their seed."""
    configs: dict[tuple[str, float | None, str], set[str]] = {}
    hashes = [fingerprint(replace(run.experiment, seed=0)) for run in runs]
    keys = [(run.recipe, run.ratio, run.labels) for run in runs]
    for key, found in zip(keys, hashes, strict=True):
        configs.setdefault(key, set()).add(found)
    return [
        replace(run, recipe=f"{run.recipe}~{found[:4]}") if len(configs[key]) > 1 else run
        for run, key, found in zip(runs, keys, hashes, strict=True)
    ]


def is_paper(recipe: str) -> bool:
    """Return whether a recipe has the paper's own networks."""
    return recipe.startswith("paper-")


def rows_of(runs: Iterable[Run], labels: str) -> dict[str, Row]:
    """Group the runs of one label count (64, all) by recipe and ratio.

    Returns:
        Rows by title, in the papers' order: S, CT, SD, ESD by falling r, then the others.
    """
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        if run.labels == labels:
            groups.setdefault(run.title, {})[run.seed] = run
    rows = [Row(title, group) for title, group in groups.items()]
    place = {name: number for number, name in enumerate(_TITLES)}

    def order(row: Row) -> tuple[int, str, float]:
        recipe = row.first.recipe
        return place.get(recipe, len(place)), recipe, -(row.first.ratio or 0)

    return {row.title: row for row in sorted(rows, key=order)}


def settings_of(runs: Sequence[Run]) -> list[str]:
    """Return the label counts, the one with the most runs first."""
    counts = [run.labels for run in runs]
    return sorted(dict.fromkeys(counts), key=lambda one: (-counts.count(one), _order(one)))


def _order(labels: str) -> tuple[float, str]:
    return (float(labels), "") if labels.isdecimal() else (float("inf"), labels)


def write_results(runs: Sequence[Run], folder: Path) -> None:
    """Write ``results.csv``: a row per run, a column per metric."""
    rows = [run.as_dict() for run in runs]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "results.csv", text.getvalue().encode())
