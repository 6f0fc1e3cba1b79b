"""Stages that several runs share: identified by everything that they depend on, run once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spiritseg.config import Experiment, Stage
from spiritseg.files import json_bytes, write_atomically
from spiritseg.recipes import fingerprint
from spiritseg.training.run_folder import RunFolder

__all__ = ["is_finished", "share_stages", "stage_folders", "stage_keys"]

_FILES = ("network.safetensors", "stage.json")  # the second says that the stage is finished


def stage_keys(experiment: Experiment) -> dict[str, str]:
    """Return a hash of everything that each stage's weights and measurements depend on.

    That is: the seed; the stage and its name, which enters every random draw; the labelled
    images and the input; the proximity images, where it trains on them or is measured on them
    (mimicry); the networks that it trains and distils from, with those that they are made of,
    by name, since a name enters a network's random initialisation; the stages before it that
    trained any of these; and the trainer's fields that affect the result. Stages with equal keys
    end in equal weights.
    """
    keys: dict[str, str] = {}
    for name, stage in experiment.stages.items():
        keys[name] = _key(experiment, name, stage, keys)
    return keys


def _key(experiment: Experiment, name: str, stage: Stage, before: dict[str, str]) -> str:
    teachers = {stage.teacher, *stage.co_teachers} if stage.teacher else set[str]()
    involved = _closure(experiment, {stage.network, *teachers})
    history = {
        earlier: key
        for earlier, key in before.items()
        if experiment.stages[earlier].network in involved
    }
    # An experiment of this stage alone: its fingerprint leaves out what has no effect.
    alone = dataclasses.replace(
        experiment,
        networks={network: experiment.networks[network] for network in sorted(involved)},
        stages={name: stage},
        result=stage.network,
    )
    if stage.images == "target" and "mimicry" not in stage.losses and not stage.fda_prob:
        alone = dataclasses.replace(alone, proximity=Experiment().proximity)
    content = json.dumps([fingerprint(alone), list(history.items())])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _closure(experiment: Experiment, names: set[str]) -> set[str]:
    """Add the networks that these start from."""
    found, rest = set[str](), list(names)
    while rest:
        name = rest.pop()
        if name not in found:
            found.add(name)
            of = experiment.networks[name].extractor.base
            rest += [of] if of else []
    return found


def stage_folders(experiment: Experiment, run_dir: Path) -> dict[str, Path]:
    """Return the folder of each stage in a run's folder, by the stage's name."""
    run = RunFolder(run_dir)
    return {name: run.stage(number, name) for number, name in enumerate(experiment.stages, 1)}


def share_stages(
    experiment: Experiment, run_dir: Path, sources: Mapping[str, Iterable[Path]]
) -> list[str]:
    """Copy finished stages into a run's folder, where `spiritseg.distill` finds them.

    Args:
        experiment: Experiment of the run.
        run_dir: Folder of the run, created if missing.
        sources: By stage, folders of stages with the same key in other runs.

    Returns:
        The copied stages; ``shared with`` in their ``stage.json`` names the other run.

    Raises:
        RunError: The run's folder belongs to another config, is in use or is full.
    """
    folders = stage_folders(experiment, run_dir)
    wanted: dict[str, Path] = {}
    for name, folder in folders.items():
        finished = (p for p in sources.get(name, ()) if is_finished(p) and p != folder)
        if not is_finished(folder) and (source := next(finished, None)):
            wanted[name] = source
    if not wanted:
        return []
    with RunFolder(run_dir).claim(experiment):
        for name, source in wanted.items():
            _copy(source, folders[name])
    return list(wanted)


def is_finished(folder: Path) -> bool:
    """Return whether a stage's folder holds all that `spiritseg.distill` reads from it."""
    return all((folder / file).is_file() for file in _FILES)


def _copy(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights, summary = _FILES
    write_atomically(folder / weights, (source / weights).read_bytes())
    fields: dict[str, Any] = json.loads((source / summary).read_text())
    fields.setdefault("shared with", source.parent.parent.name)
    write_atomically(folder / summary, json_bytes(fields))
