"""What a run was begun with: versions, machine, and the files that its config only names."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spiritseg.config import Experiment
from spiritseg.data.domains import Domains
from spiritseg.errors import BundleError, RunError, listed
from spiritseg.files import read_fields
from spiritseg.models.bundle import bundle_digest
from spiritseg.training.trainer import quiet

__all__ = ["refuse_other_files", "refuse_other_weights", "run_record"]

_PACKAGES = ("spiritseg", "torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy")


def run_record(experiment: Experiment, domains: Domains) -> dict[str, Any]:
    """Return a run's record, for its ``run.json``.

    Args:
        experiment: what runs.
        domains: its images.

    Returns:
        ``versions``, ``machine``, and ``files``: see `files_record`.
    """
    from importlib.metadata import version

    with quiet():
        versions = {name: version(name) for name in _PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "machine": platform.platform(),
        "files": files_record(experiment, domains),
    }


def files_record(experiment: Experiment, domains: Domains) -> dict[str, Any]:
    """Say what tells the images and weights of a run from others under the same names.

    Args:
        experiment: what runs.
        domains: its images.

    Returns:
        Plain values, without the folders: data may move between the parts of a run.
    """
    return {"images": domains.record(), "weights": weights_record(experiment)}


def weights_record(experiment: Experiment) -> dict[str, str]:
    """Return the SHA-256 of the weights that an experiment takes from files, by network."""
    found = {}
    for name, network in experiment.networks.items():
        path = Path(network.extractor.weights).expanduser()
        if network.bundle is not None:
            found[name] = bundle_digest(network.bundle)
        elif path.is_file():
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def refuse_other_files(run: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other files than those that a run was begun with.

    Args:
        run: its folder.
        before: its `files_record`; what it does not tell is not compared.
        now: the present one, or a part of it.

    Raises:
        RunError: they differ, and in what.
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    parts = tuple(now)
    changed = [
        f"{key}: {old[key]} became {new.get(key, 'absent')}"
        for key in sorted(old)
        if key.startswith(parts) and old[key] != new.get(key)
    ]
    if changed:
        raise RunError(
            f"{run} was begun with other files than there are now:\n{listed(changed)}\n"
            "Put them back, or choose another --run-dir (compare: --out) for the new ones."
        )


def refuse_other_weights(run: Path, experiment: Experiment) -> None:
    """Refuse a run whose teacher's files have changed since; its images are not read.

    Args:
        run: its folder.
        experiment: what is asked for.

    Raises:
        RunError: they differ, and in what; a file that is gone changes nothing any more.
    """
    path = run / "run.json"
    files = read_fields(path).get("files", {})
    with suppress(BundleError):
        now = {"weights": weights_record(experiment)}
        there = dict(_leaves(now))
        before = {key: value for key, value in _leaves(files) if there.get(key) is not None}
        refuse_other_files(run, before, now)


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
