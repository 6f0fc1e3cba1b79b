"""What makes two experiments the same: their fingerprint, their differences, their YAML."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import yaml

from spiritseg.config import Experiment

__all__ = ["differences", "fingerprint", "to_yaml"]

# What may change between two calls without changing the result: such fields do not enter the
# fingerprint, so a run is found again with more workers or without progress bars.
_NO_EFFECT = frozenset(
    {
        "input.cache_mib",
        "evaluation.batch_size",
        "evaluation.latency",
        "evaluation.pictures",
        "trainer.workers",
        "trainer.progress",
        "trainer.checkpoint_every_s",
        "trainer.log_every_steps",
    }
)


def to_yaml(experiment: Experiment) -> str:
    """Return an experiment as YAML text that `load_experiment` reads back to the same."""
    return yaml.safe_dump(_plain(dataclasses.asdict(experiment)), sort_keys=False, width=100)


def fingerprint(experiment: Experiment) -> str:
    """Return a short hash of all fields that decide the result.

    Args:
        experiment: any experiment.

    Returns:
        Ten hexadecimal digits, equal for experiments that must end in equal weights.
    """
    fields = {k: v for k, v in _leaves(dataclasses.asdict(experiment)) if not _no_effect(k)}
    text = json.dumps([fields, list(experiment.stages)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def differences(one: Experiment, other: Experiment) -> list[str]:
    """List the fields that decide the result and differ between two experiments.

    Args:
        one: an experiment.
        other: another.

    Returns:
        Lines such as ``seed: 0 became 1``.
    """
    left = dict(_leaves(dataclasses.asdict(one)))
    right = dict(_leaves(dataclasses.asdict(other)))
    changed = [
        f"{key}: {left.get(key, 'absent')} became {right.get(key, 'absent')}"
        for key in sorted(left.keys() | right.keys())
        if not _no_effect(key) and left.get(key) != right.get(key)
    ]
    if list(one.stages) != list(other.stages):
        orders = (", ".join(each.stages) or "none" for each in (one, other))
        changed.append("order of the stages: {} became {}".format(*orders))
    return changed


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, list(tree) if isinstance(tree, tuple) else tree


def _no_effect(key: str) -> bool:
    return key in _NO_EFFECT or (key.startswith("stages.") and key.endswith(".cache_mib"))


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(item) for item in tree] if isinstance(tree, (tuple, list)) else tree
