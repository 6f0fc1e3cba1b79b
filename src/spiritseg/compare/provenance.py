"""Everything that it takes to reproduce a report's runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from spiritseg.compare.measured import Images, machine, manifest
from spiritseg.compare.results import Run
from spiritseg.compare.sections import Section, labelled

__all__ = ["provenance"]


def provenance(runs: Sequence[Run], main: Section, images: Images) -> dict[str, Any]:
    """Collect versions, machines, seeds, images and configs.

    Args:
        runs: all of them.
        main: the results whose images are listed.
        images: the same, if they can be opened.

    Returns:
        Plain values.
    """
    leaves = [_leaves(dataclasses.asdict(run.experiment)) for run in runs]
    everywhere = set.intersection(*(set(one.items()) for one in leaves))
    common = {key: value for key, value in leaves[0].items() if (key, value) in everywhere}
    own: dict[str, str] = {}
    for run, fields in zip(runs, leaves, strict=True):
        title = f"{run.title}, {labelled(run.labels)}"
        kept = {k: v for k, v in fields.items() if k not in common and k != "seed"}
        own.setdefault(title, _fields(kept))
    seeds: dict[str, list[int]] = {}
    for run in runs:
        seeds.setdefault(f"{run.title}, {labelled(run.labels)}", []).append(run.seed)
    return {
        "versions": _distinct([run.about.get("versions", {}) for run in runs]),
        "machines": _distinct([{"machine": run.about.get("machine", "unknown")} for run in runs]),
        "here": machine(),
        "seeds": _seeds(seeds),
        "common": _fields(common),
        "own": own,
        "manifest": manifest(images.run, images.domains),
        "labels": labelled(main.labels),
        "skipped": sorted({path for run in runs for path in run.metrics.get("skipped", [])}),
    }


def _seeds(found: Mapping[str, list[int]]) -> dict[str, str]:
    said = {title: ", ".join(map(str, sorted(seeds))) for title, seeds in found.items()}
    alike = set(said.values())
    return {"every network": alike.pop()} if len(alike) == 1 else said


def _leaves(tree: Any, path: str = "") -> dict[str, str]:
    if isinstance(tree, dict) and tree:
        found: dict[str, str] = {}
        for key, value in tree.items():
            found |= _leaves(value, f"{path}.{key}" if path else str(key))
        return found
    plain = list(tree) if isinstance(tree, tuple) else tree
    said = yaml.safe_dump(plain, default_flow_style=True, width=10**6)
    return {path: said.strip().removesuffix("\n...")}


def _fields(leaves: Mapping[str, str]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in leaves.items())


def _distinct(found: Sequence[dict[str, Any]]) -> list[str]:
    said = (", ".join(f"{k} {v}" for k, v in one.items()) for one in found if one)
    return list(dict.fromkeys(said))
