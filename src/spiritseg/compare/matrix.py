"""A matrix of runs: recipes x ratios x label counts x seeds, each in a folder of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiritseg.compare.executors import (
    Executor,
    InProcess,
    Outcome,
    RayCluster,
    Subprocesses,
    Task,
    run_tasks,
)
from spiritseg.compare.shared_stages import is_finished, stage_folders, stage_keys
from spiritseg.config import Experiment
from spiritseg.errors import ConfigError, DataError, RunError, SpiritsegError, listed
from spiritseg.files import json_bytes, make_folder, read_fields, write_atomically
from spiritseg.recipes import differences, fingerprint, load_experiment
from spiritseg.registry import names_in_files
from spiritseg.tables import Table, html, table_text

__all__ = ["MANIFEST", "Cell", "Matrix", "compare", "labels_of", "plan", "ratio_of", "run"]

MANIFEST = "matrix.json"


@dataclass(frozen=True)
class Cell:
    """One run of a matrix: a recipe's name, and everything that decides its result."""

    recipe: str
    experiment: Experiment

    @property
    def folder(self) -> str:
        """Name of its run's folder, such as ``esd-r0.5-n64-s0``."""
        ratio, labels = ratio_of(self.experiment), labels_of(self.experiment)
        mixed = [] if ratio is None else [f"r{ratio:g}"]
        count = f"n{labels}" if labels.isdecimal() else "".join(filter(str.isalnum, labels))
        return "-".join([self.recipe, *mixed, count, f"s{self.experiment.seed}"])


@dataclass(frozen=True, repr=False)
class Matrix:
    """A matrix whose runs are finished: their folder, for `spiritseg.report`, and outcomes."""

    folder: Path
    outcomes: tuple[Outcome, ...]

    def _table(self) -> Table:
        rows = [[one.name, one.state, f"{one.seconds:.0f}"] for one in self.outcomes]
        return [["run", "state", "seconds"], *rows]

    def __repr__(self) -> str:
        return f"{len(self.outcomes)} runs in {self.folder}\n{table_text(self._table())}"

    def _repr_html_(self) -> str:
        return html(self._table())


def ratio_of(experiment: Experiment) -> float | None:
    """Return r = |Dt| : |Dp| of the first stage that mimics on mixed images; None for none."""
    return next((experiment.stages[name].ratio for name in _mixed(experiment)), None)


def _mixed(experiment: Experiment) -> list[str]:
    """Return the stages that have the paper's r: they mimic on target and proximity images."""
    return [
        name
        for name, stage in experiment.stages.items()
        if stage.images == "target+proximity" and "mimicry" in stage.losses
    ]


def labels_of(experiment: Experiment) -> str:
    """Return which training images are labelled: ``64`` for the first 64, else the subset."""
    return experiment.target.subset.removeprefix("first:")


def compare(
    recipes: Sequence[str | Path],
    overrides: Mapping[str, Any] | None = None,
    *,
    seeds: int = 5,
    ratios: Sequence[float] | None = None,
    labels: Sequence[str | int] | None = None,
    out: str | Path = "runs/compare",
    jobs: int = 1,
    address: str | None = None,
    cpus_per_run: float = 1,
    gpus_per_run: float = 0,
    skip_bad: bool = False,
) -> Matrix:
    """Run recipes x ratios x label counts x seeds; the same call continues.

    Args:
        recipes, overrides, seeds, ratios, labels: See `plan`.
        out: Folder of the runs; several calls may add to it.
        jobs: Runs at once on this machine, each a process with its share of the threads; 1
            runs in this process.
        address: Address of a Ray cluster: auto, local, or HOST:PORT; `out` must be storage that
            all its machines share. Each run is a task, tried again when its machine dies.
        cpus_per_run, gpus_per_run: CPUs and GPUs that a Ray task declares.
        skip_bad: Whether unreadable images are left out.

    Returns:
        The finished matrix; `spiritseg.report` writes it up.

    Raises:
        ConfigError: A recipe, a field or an argument is wrong; all problems at once.
        RunError: Runs failed (the others are finished), or the folder belongs to another matrix.
        MissingExtraError: An address is given and Ray is not installed.
    """
    fields = {"trainer.progress": False, **(overrides or {})}
    if skip_bad:
        fields["input.skip_bad"] = True
    cells = plan(recipes, fields, seeds, ratios, labels)
    for recipe, absent in left_out(recipes, fields).items():
        print(f"{recipe} has no {', '.join(absent)}: not set there")
    print(f"{len(cells)} runs in {out}", flush=True)
    outcomes = run(cells, out, jobs, address, cpus_per_run, gpus_per_run)
    failed = [f"{one.name}: {one.error}" for one in outcomes if one.state == "failed"]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(cells)} runs failed:\n{listed(failed, 20)}\n"
            "The others are finished; fix the cause and start the same command again."
        )
    return Matrix(Path(out), tuple(outcomes))


def plan(
    recipes: Sequence[str | Path],
    overrides: Mapping[str, Any] | None = None,
    seeds: int = 5,
    ratios: Sequence[float] | None = None,
    labels: Sequence[str | int] | None = None,
) -> list[Cell]:
    """List the runs of a matrix, seed by seed, so that a part of it is already a comparison.

    Args:
        recipes: Shipped names or .yaml files.
        overrides: Values by dotted field, for all recipes; a field of a stage or a network goes
            to the recipes that have it, and one that begins with a recipe's name to that recipe
            (``skd.networks.teacher.bundle``).
        seeds: Number of seeds, 0 to seeds - 1.
        ratios: r = |Dt| : |Dp| of the recipes whose mimicry mixes proximity images in; 0 for
            proximity only. By default the recipe's own.
        labels: Numbers of labelled training images, or ``all``; by default target.subset. With
            a subset of evenly spaced images (``even:N``), these are evenly spaced too.

    Raises:
        ConfigError: The problems of all recipes at once.
    """
    shared = dict(overrides or {})
    _check_arguments(recipes, shared, seeds, labels)
    known = {str(recipe): load_experiment(recipe, complete=False) for recipe in recipes}
    own = {recipe: _taken_out(shared, Path(recipe).stem) for recipe in known}
    for field in shared:
        if not any(_fits(field, one) for one in known.values()):
            kind, name, *_ = field.split(".")
            raise ConfigError(f"--{field}: none of {', '.join(known)} has {name} in its {kind}.")
    if ratios and all(ratio_of(one) is None for one in known.values()):
        raise ConfigError(
            f"--ratios: in none of {', '.join(known)} does mimicry mix proximity images in."
        )
    cells: dict[str, Cell] = {}
    problems: list[str] = []
    for seed in range(seeds):
        for recipe, plain in known.items():
            for fields in _variants(plain, shared, ratios, labels):
                fields |= {**own[recipe], "seed": seed}
                try:
                    cell = Cell(Path(recipe).stem, load_experiment(recipe, fields))
                    cells.setdefault(cell.folder, cell)
                except ConfigError as error:
                    problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return list(cells.values())


def _check_arguments(
    recipes: Sequence[str | Path],
    fields: Mapping[str, Any],
    seeds: int,
    labels: Sequence[str | int] | None,
) -> None:
    stems = [Path(recipe).stem for recipe in recipes]
    if not stems:
        raise ConfigError("compare: expected one recipe or more; see spiritseg recipes.")
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ConfigError(f"compare: two recipes are called {', '.join(twice)}; rename one.")
    if seeds < 1:
        raise ConfigError(f"--seeds: expected 1 or more, got {seeds}.")
    if "seed" in fields:
        raise ConfigError("--seed: a matrix runs seeds 0 to N - 1; use --seeds N.")
    for count in map(str, labels or ()):
        if count != "all" and not (count.isdecimal() and int(count) > 0):
            raise ConfigError(f"--labels: expected numbers of images or all, got {count}.")


def _taken_out(fields: dict[str, Any], recipe: str) -> dict[str, Any]:
    """Remove the fields that begin with a recipe's name; return them without it."""
    if recipe in {field.name for field in dataclasses.fields(Experiment)}:
        return {}
    found = [field for field in fields if field.startswith(f"{recipe}.")]
    return {field.removeprefix(f"{recipe}."): fields.pop(field) for field in found}


def _fits(field: str, experiment: Experiment) -> bool:
    """Return whether an experiment has the stage or network that a dotted field belongs to."""
    kind, *names = field.split(".")
    return kind not in ("stages", "networks") or not names or names[0] in getattr(experiment, kind)


def left_out(recipes: Sequence[str | Path], overrides: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return by recipe the fields that `plan` does not set: of a stage or network it lacks."""
    shared = dict(overrides)
    known = {str(recipe): load_experiment(recipe, complete=False) for recipe in recipes}
    for recipe in known:
        _taken_out(shared, Path(recipe).stem)
    found = {recipe: [f for f in shared if not _fits(f, one)] for recipe, one in known.items()}
    return {recipe: fields for recipe, fields in found.items() if fields}


def _variants(
    plain: Experiment,
    shared: Mapping[str, Any],
    ratios: Sequence[float] | None,
    labels: Sequence[str | int] | None,
) -> Iterator[dict[str, Any]]:
    """Yield the fields of a recipe's cells, except the seed."""
    own = {field: value for field, value in shared.items() if _fits(field, plain)}
    mixed = _mixed(plain)
    rule = str(shared.get("target.subset", plain.target.subset)).partition(":")[0]
    kind = "even" if rule == "even" else "first"
    counts: Sequence[str | int | None] = labels or [None]
    sweep: Sequence[float | None] = (ratios or [None]) if mixed else [None]
    for count in counts:
        subset = "all" if str(count) == "all" else f"{kind}:{count}"
        chosen = {} if count is None else {"target.subset": subset}
        for ratio in sweep:
            at = {} if ratio is None else {f"stages.{name}.ratio": ratio for name in mixed}
            yield {**own, **chosen, **at}


def run(
    cells: Sequence[Cell],
    out: str | Path,
    jobs: int = 1,
    address: str | None = None,
    cpus_per_run: float = 1,
    gpus_per_run: float = 0,
    executor: Executor | None = None,
) -> list[Outcome]:
    """Run what is missing of a matrix; a finished run is kept, an interrupted one continues.

    A stage that several runs share (`stage_keys`) runs once: the others wait for the run that
    has it, and copy it. A run that fails does not stop the others.

    Args:
        cells: Cells from `plan`.
        out, jobs, address, cpus_per_run, gpus_per_run: See `compare`.
        executor: Where to run, in place of the last four.

    Returns:
        The outcome of each cell, in their order.

    Raises:
        RunError: The folder is of another matrix or other images, or no cluster answers.
        MissingExtraError: An address is given and Ray is not installed.
    """
    folder = Path(out).resolve()
    _check_folders(cells, folder)
    kept = [c.folder for c in cells if (folder / c.folder / "metrics.json").exists()]
    tasks = [task for task in _tasks(cells, folder) if task.name not in kept]
    outcomes = {name: Outcome(name, "kept") for name in kept}
    if tasks:
        _check_images(cells, folder)
        executor = executor or _executor(jobs, address, cpus_per_run, gpus_per_run)
    make_folder(folder)
    runs = read_fields(folder / MANIFEST).get("runs", {})
    runs |= {cell.folder: {"recipe": cell.recipe} for cell in cells}
    write_atomically(folder / MANIFEST, json_bytes({"version": 1, "runs": runs}))
    print("".join(f"{name}: kept\n" for name in kept), end="", flush=True)
    if tasks and executor is not None:
        outcomes |= {one.name: one for one in run_tasks(tasks, executor)}
    return [outcomes[cell.folder] for cell in cells]


def _executor(jobs: int, address: str | None, cpus: float, gpus: float) -> Executor:
    if jobs < 1:
        raise ConfigError(f"--jobs: expected 1 or more, got {jobs}.")
    if address is not None:
        return RayCluster(address, cpus, gpus)
    return InProcess() if jobs == 1 else Subprocesses(jobs)


def _tasks(cells: Iterable[Cell], out: Path) -> list[Task]:
    """Turn cells into tasks that know from where they may copy which stages."""
    keys = {cell.folder: stage_keys(cell.experiment) for cell in cells}
    owners: dict[str, dict[str, Path]] = {}  # by key, by cell: the stage's folder
    for cell in cells:
        folders = stage_folders(cell.experiment, out / cell.folder)
        for stage, key in keys[cell.folder].items():
            owners.setdefault(key, {})[cell.folder] = folders[stage]
    tasks = []
    for cell in cells:
        own = {s: key for s, key in keys[cell.folder].items() if len(owners[key]) > 1}
        shared = {
            stage: [str(path) for name, path in owners[key].items() if name != cell.folder]
            for stage, key in own.items()
        }
        wanted = (k for k in own.values() if not any(map(is_finished, owners[k].values())))
        fields, path = dataclasses.asdict(cell.experiment), str(out / cell.folder)
        tasks.append(Task(cell.folder, fields, path, shared, frozenset(wanted)))
    return tasks


def _check_folders(cells: Sequence[Cell], out: Path) -> None:
    """Refuse runs of another config, or of another teacher, before anything runs."""
    from spiritseg.training.run_files import refuse_other_weights

    problems = []
    for cell in cells:
        config = out / cell.folder / "config.yaml"
        try:
            files = names_in_files(dataclasses.asdict(cell.experiment))
            before = load_experiment(config, trust=files) if config.exists() else None
        except SpiritsegError as error:
            problems.append(f"{cell.folder}: {error}")
            continue
        if before is not None and fingerprint(before) != fingerprint(cell.experiment):
            problems += [f"{cell.folder}: {line}" for line in differences(before, cell.experiment)]
        elif (config.parent / "run.json").exists():
            refuse_other_weights(config.parent, cell.experiment)
    if problems:
        raise RunError(
            f"{out} holds runs of another config; what differs:\n{listed(problems)}\n"
            "Choose another --out."
        )


def _check_images(cells: Iterable[Cell], out: Path) -> None:
    """Refuse to add runs to those of other images or labels: one report would mix them."""
    from spiritseg.data.domains import open_domains
    from spiritseg.training.run_files import refuse_other_files

    now: dict[str, dict[str, Any]] = {}
    for cell in cells:
        folder, of = out / cell.folder, cell.experiment
        before = read_fields(folder / "run.json").get("files", {})
        if "images" not in before:
            continue
        key = repr((of.target, of.proximity, of.input))
        if key not in now:
            # They may be where the runs are, not here; each run opens its own.
            with suppress(DataError):
                now[key] = open_domains(of).record()
        if key in now:
            refuse_other_files(folder, {"images": before["images"]}, {"images": now[key]})
