"""A matrix of runs: recipes x ratios x label counts x seeds, each in a folder of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiritseg.compare.pools import Outcome, Pool, Task, drive, make_pool
from spiritseg.compare.stages import is_finished, stage_folders, stage_keys
from spiritseg.config import Experiment
from spiritseg.errors import ConfigError, DataError, RunError, SpiritsegError, listed
from spiritseg.files import json_bytes, read_fields, write_atomically
from spiritseg.recipes import differences, fingerprint, load_experiment

__all__ = ["MANIFEST", "Cell", "Outcome", "labels_of", "left_out", "plan", "ratio_of", "run"]

MANIFEST = "matrix.json"


@dataclass(frozen=True)
class Cell:
    """One run of a matrix.

    Args:
        recipe: name of the recipe.
        experiment: everything that decides its result.
    """

    recipe: str
    experiment: Experiment

    @property
    def folder(self) -> str:
        """Name of its run's folder, such as ``esd-r0.5-n64-s0``."""
        ratio = ratio_of(self.experiment)
        labels = labels_of(self.experiment)
        parts = [
            self.recipe,
            *([f"r{ratio:g}"] if ratio is not None else []),
            f"n{labels}" if labels.isdecimal() else "".join(c for c in labels if c.isalnum()),
            f"s{self.experiment.seed}",
        ]
        return "-".join(parts)


def ratio_of(experiment: Experiment) -> float | None:
    """Return r = |Dt| : |Dp| of the first stage that mimics on mixed images; None for none."""
    return next((experiment.stages[name].ratio for name in _mixed(experiment)), None)


def _mixed(experiment: Experiment) -> list[str]:
    """Name the stages that have the paper's r: they mimic on target and proximity images."""
    return [
        name
        for name, stage in experiment.stages.items()
        if stage.images == "target+proximity" and "mimicry" in stage.losses
    ]


def labels_of(experiment: Experiment) -> str:
    """Say which training images are labelled: ``64`` for the first 64, else the subset's rule."""
    subset = experiment.target.subset
    return subset.removeprefix("first:")


def plan(
    recipes: Sequence[str | Path],
    overrides: Mapping[str, Any] | None = None,
    seeds: int = 5,
    ratios: Sequence[float] | None = None,
    labels: Sequence[str | int] | None = None,
) -> list[Cell]:
    """List the runs of a matrix, seed by seed, so that a part of it is already a comparison.

    Args:
        recipes: shipped names or .yaml files.
        overrides: dotted fields for all of them; a field of a stage or a network goes to the
            recipes that have it, and one that begins with a recipe's name to that recipe
            (``skd.networks.teacher.bundle``).
        seeds: 0 to seeds - 1.
        ratios: r = |Dt| : |Dp| of the recipes whose mimicry mixes proximity images in; 0 for
            proximity only. By default the recipe's own.
        labels: numbers of labelled training images, or ``all``; by default target.subset. With
            a subset of evenly spaced images (``even:N``), these are evenly spaced too.

    Returns:
        The cells; the same one comes once.

    Raises:
        ConfigError: with the problems of all recipes at once.
    """
    given = dict(overrides or {})
    _check_plan(recipes, given, seeds)
    for count in labels or ():
        if str(count) != "all" and not (str(count).isdecimal() and int(count) > 0):
            raise ConfigError(f"--labels: expected numbers of images or all, got {count}.")
    known = {str(recipe): load_experiment(recipe, complete=False) for recipe in recipes}
    own = {recipe: _taken_out(given, Path(recipe).stem) for recipe in known}
    _check_owners(known, given)
    if ratios and all(ratio_of(one) is None for one in known.values()):
        raise ConfigError(
            f"--ratios: in none of {', '.join(known)} does mimicry mix proximity images in."
        )
    cells: dict[str, Cell] = {}
    problems: list[str] = []
    for seed in range(seeds):
        for recipe, plain in known.items():
            for fields in _variants(plain, given, ratios, labels):
                fields |= {**own[recipe], "seed": seed}
                try:
                    experiment = load_experiment(recipe, fields)
                except ConfigError as error:
                    problems.append(str(error))
                    continue
                cell = Cell(Path(recipe).stem, experiment)
                cells.setdefault(cell.folder, cell)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return list(cells.values())


def _check_plan(recipes: Sequence[str | Path], given: Mapping[str, Any], seeds: int) -> None:
    if not recipes:
        raise ConfigError("compare: expected one recipe or more; see spiritseg recipes.")
    stems = [Path(recipe).stem for recipe in recipes]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ConfigError(f"compare: two recipes are called {', '.join(twice)}; rename one.")
    if seeds < 1:
        raise ConfigError(f"--seeds: expected 1 or more, got {seeds}.")
    if "seed" in given:
        raise ConfigError("--seed: a matrix runs seeds 0 to N - 1; use --seeds N.")


def _taken_out(given: dict[str, Any], recipe: str) -> dict[str, Any]:
    """Take the fields out that begin with a recipe's name; return them without it."""
    if recipe in {field.name for field in dataclasses.fields(Experiment)}:
        return {}
    found = [field for field in given if field.startswith(f"{recipe}.")]
    return {field.removeprefix(f"{recipe}."): given.pop(field) for field in found}


def _owner(field: str) -> tuple[str, str] | None:
    """Return (stages or networks, name) of a field that belongs to one of these."""
    parts = field.split(".")
    return (parts[0], parts[1]) if parts[0] in ("stages", "networks") and parts[1:] else None


def _fits(field: str, experiment: Experiment) -> bool:
    owner = _owner(field)
    return owner is None or owner[1] in getattr(experiment, owner[0])


def left_out(recipes: Sequence[str | Path], overrides: Mapping[str, Any]) -> dict[str, list[str]]:
    """Say which fields `plan` does not set, since a recipe has no such stage or network.

    Args:
        recipes: shipped names or .yaml files.
        overrides: dotted fields for all of them.

    Returns:
        Dotted fields by recipe; only recipes with some.
    """
    known = {str(recipe): load_experiment(recipe, complete=False) for recipe in recipes}
    given = dict(overrides)
    for recipe in known:
        _taken_out(given, Path(recipe).stem)
    found = {recipe: [f for f in given if not _fits(f, one)] for recipe, one in known.items()}
    return {recipe: fields for recipe, fields in found.items() if fields}


def _check_owners(known: Mapping[str, Experiment], given: Mapping[str, Any]) -> None:
    for field in given:
        if (owner := _owner(field)) is None:
            continue
        kind, name = owner
        if not any(name in getattr(one, kind) for one in known.values()):
            raise ConfigError(f"--{field}: none of {', '.join(known)} has {name} in its {kind}.")


def _variants(
    plain: Experiment,
    given: Mapping[str, Any],
    ratios: Sequence[float] | None,
    labels: Sequence[str | int] | None,
) -> Iterator[dict[str, Any]]:
    """Yield the fields of a recipe's cells, but for the seed."""
    own = {field: value for field, value in given.items() if _fits(field, plain)}
    mixed = _mixed(plain)
    rule = str(given.get("target.subset", plain.target.subset)).partition(":")[0]
    counts: Sequence[str | int | None] = labels or [None]
    sweep: Sequence[float | None] = (ratios or [None]) if mixed else [None]
    for count in counts:
        fields = dict(own)
        if count is not None:
            kind = "even" if rule == "even" else "first"
            fields["target.subset"] = "all" if str(count) == "all" else f"{kind}:{count}"
        for ratio in sweep:
            at = {f"stages.{n}.ratio": ratio for n in mixed} if ratio is not None else {}
            yield {**fields, **at}


def run(
    cells: Sequence[Cell],
    out: str | Path,
    jobs: int = 1,
    address: str | None = None,
    cpus_per_run: float = 1,
    gpus_per_run: float = 0,
    pool: Pool | None = None,
) -> list[Outcome]:
    """Run what is missing of a matrix; a finished run is kept, an interrupted one continues.

    A stage that several runs share (`stages.stage_key`) runs once: the others wait for the run
    that has it, and take it over. A run that fails does not stop the others.

    Args:
        cells: from `plan`.
        out: folder of the runs. Its ``matrix.json`` says what belongs to the matrix; several
            calls may add to it.
        jobs: runs at once on this machine, each a process with its share of the threads; 1
            runs in this process.
        address: of a Ray cluster: auto, local, or HOST:PORT; `out` must be storage that all
            its machines share. Each run is a task, tried again when its machine dies.
        cpus_per_run: CPUs that a Ray task declares.
        gpus_per_run: GPUs that it declares.
        pool: where runs run, instead of all these.

    Returns:
        What became of each cell, in their order: finished, kept or failed.

    Raises:
        RunError: the folder belongs to another matrix, its runs were begun with other images, or
            the cluster does not answer.
        MissingExtraError: an address is given and Ray is not installed.
    """
    folder = Path(out).resolve()
    _check_folders(cells, folder)
    kept = [c.folder for c in cells if (folder / c.folder / "metrics.json").exists()]
    tasks = [task for task in _tasks(cells, folder) if task.name not in kept]
    outcomes = {name: Outcome(name, "kept") for name in kept}
    if tasks:
        _check_images(cells, folder)
        pool = pool or make_pool(jobs, address, cpus_per_run, gpus_per_run)
    _write_manifest(cells, folder)
    for name in outcomes:
        print(f"{name}: kept", flush=True)
    if tasks and pool is not None:
        outcomes |= {one.name: one for one in drive(tasks, pool)}
    return [outcomes[cell.folder] for cell in cells]


def _tasks(cells: Iterable[Cell], out: Path) -> list[Task]:
    """Turn cells into tasks that know from where they may take which stages."""
    keys = {cell.folder: stage_keys(cell.experiment) for cell in cells}
    owners: dict[str, dict[str, Path]] = {}  # by key, by cell: the stage's folder
    for cell in cells:
        folders = stage_folders(cell.experiment, out / cell.folder)
        for stage, key in keys[cell.folder].items():
            owners.setdefault(key, {})[cell.folder] = folders[stage]
    tasks = []
    for cell in cells:
        shared = {
            stage: [str(path) for name, path in owners[key].items() if name != cell.folder]
            for stage, key in keys[cell.folder].items()
            if len(owners[key]) > 1
        }
        wanted = frozenset(
            keys[cell.folder][stage]
            for stage in shared
            if not any(is_finished(path) for path in owners[keys[cell.folder][stage]].values())
        )
        fields = dataclasses.asdict(cell.experiment)
        tasks.append(Task(cell.folder, fields, str(out / cell.folder), shared, wanted))
    return tasks


def _check_folders(cells: Sequence[Cell], out: Path) -> None:
    """Refuse runs of another config, or of another teacher, before anything runs."""
    from spiritseg.training.record import refuse_other_weights

    problems = []
    for cell in cells:
        config = out / cell.folder / "config.yaml"
        try:
            before = load_experiment(config) if config.exists() else None
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
    from spiritseg.training.record import refuse_other_files

    now: dict[str, dict[str, Any]] = {}
    for cell in cells:
        path = out / cell.folder / "run.json"
        before = read_fields(path).get("files", {})
        if "images" not in before:
            continue
        of = cell.experiment
        key = json.dumps([dataclasses.asdict(part) for part in (of.target, of.proximity, of.input)])
        if key not in now:
            try:
                now[key] = open_domains(of).record()
            except DataError:  # they may be where the runs are, not here; each run opens its own
                now[key] = {}
        if now[key]:
            refuse_other_files(path.parent, {"images": before["images"]}, {"images": now[key]})


def _write_manifest(cells: Sequence[Cell], out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {out}: {error.strerror}.") from None
    path = out / MANIFEST
    before = read_fields(path).get("runs", {})
    runs = {
        cell.folder: {
            "recipe": cell.recipe,
            "ratio": ratio_of(cell.experiment),
            "labels": labels_of(cell.experiment),
            "seed": cell.experiment.seed,
            "fingerprint": fingerprint(cell.experiment),
        }
        for cell in cells
    }
    write_atomically(path, json_bytes({"version": 1, "runs": {**before, **runs}}))
