"""What a report measures anew: latency turn by turn, CT's head stage, predictions to look at."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spiritseg.compare.figures import pictures_figure
from spiritseg.compare.paper import method_of
from spiritseg.compare.results import Row, Run
from spiritseg.compare.stages import stage_folders
from spiritseg.data.domains import Domains, open_domains
from spiritseg.errors import SpiritsegError
from spiritseg.evaluation import latencies_ms
from spiritseg.files import json_bytes, write_atomically
from spiritseg.models.bundle import bundle_info, refuse_foreign
from spiritseg.recipes import experiment_from_dict
from spiritseg.student import Student, bundle_folder, load

__all__ = [
    "Images",
    "head_only",
    "latencies",
    "machine",
    "manifest",
    "pictures",
    "refuse_untrusted",
]

_NETWORKS = 3  # predictions beside each other
_EACH = 3  # images of each kind
_LEAST = 0.005  # smaller differences of mIOU cannot be seen


@dataclass(frozen=True)
class Images:
    """The images that runs were measured on, if they can be opened here.

    Args:
        run: whose images.
        overrides: dotted fields, such as ``{"target.root": DIR}``.
    """

    run: Run
    overrides: Mapping[str, Any]

    @cached_property
    def _opened(self) -> tuple[Domains | None, str]:
        reason = ""
        for target_only in (False, True):
            try:
                fields = dataclasses.asdict(self.run.experiment)
                experiment = experiment_from_dict(fields, self.overrides)
                return open_domains(experiment, target_only), ""
            except SpiritsegError as error:
                reason = str(error).splitlines()[0]
        return None, reason

    @property
    def domains(self) -> Domains | None:
        """The images; None where they cannot be opened."""
        return self._opened[0]

    @property
    def reason(self) -> str:
        """Why they cannot be opened."""
        return self._opened[1]


def refuse_untrusted(runs: Iterable[Run]) -> None:
    """Refuse runs whose students are of classes of their own, before any of them is loaded.

    Args:
        runs: from anywhere; a ``config.yaml`` beside a bundle makes it nobody's own.

    Raises:
        BundleError: loading a student would run code that its bundle names.
    """
    for run in runs:
        folder = bundle_folder(run.folder)
        if (folder / "student.json").is_file():
            refuse_foreign(folder, bundle_info(folder))


def latencies(rows: Mapping[str, Row]) -> dict[str, float]:
    """Measure the latency of one student a row, all in one run, turn by turn.

    Args:
        rows: by title.

    Returns:
        Medians in ms by title, at the size of a test image after the pool, batch 1.
    """
    networks: dict[str, torch.nn.Module] = {}
    for title, row in rows.items():
        network = _student(row.first).network
        networks[title] = network.to(memory_format=torch.channels_last)
    if not networks:
        return {}
    height, width = next(iter(rows.values())).first.metrics["cost"]["size"]
    times = latencies_ms(networks, (height, width), rounds=25)
    return {title: statistics.median(found) for title, found in times.items()}


def head_only(row: Row, images: Images) -> dict[int, dict[str, Any]]:
    """Measure fine-tuning transfer before its fine-tuning: after the stage that trains the head.

    Training measures a stage on the validation images; what the test images say is measured
    here, once, and kept in the stage's folder as ``test.json``. With overrides, which may name
    other images, nothing is kept, and nothing that was kept is taken.

    Args:
        row: runs of a recipe with a stage that trains the head before the last one.
        images: the test images.

    Returns:
        Test figures by seed; of the runs that have them or can be measured here.
    """
    found: dict[int, dict[str, Any]] = {}
    for seed, run in row.runs.items():
        stages = run.experiment.stages
        name = next((n for n in list(stages)[:-1] if stages[n].trains == "head"), None)
        if name is None:
            continue
        folder = stage_folders(run.experiment, run.folder)[name]
        kept = folder / "test.json"
        if not images.overrides and kept.exists():
            found[seed] = json.loads(kept.read_text())
        elif (folder / "network.safetensors").exists() and images.domains:
            said = json_bytes(_score(run, folder, images.domains))
            if not images.overrides:
                write_atomically(kept, said)
            found[seed] = json.loads(said)
    return found


def _score(run: Run, stage: Path, domains: Domains) -> dict[str, Any]:
    from safetensors.torch import load_file

    from spiritseg.training.measure import score

    network = _student(run).network
    network.load_state_dict(load_file(stage / "network.safetensors"))
    names = list(domains.classes.names)
    return score(network, domains.evaluation("test"), names, run.experiment).as_dict()


def pictures(rows: Mapping[str, Row], reference: str, images: Domains) -> Any:
    """Draw figure 6: the largest gains and losses against the reference, and the worst images.

    Args:
        rows: by title; the reference and up to two others are shown, under their first seed.
        reference: title of the row that gains and losses are counted from.
        images: the test images.

    Returns:
        A matplotlib figure; None where there is nothing to compare.
    """
    shown = _shown(rows, reference)
    if len(shown) < 2:
        return None
    names = images.names("test")
    place = {name: index for index, name in enumerate(names)}
    scores = {
        title: {place[n]: v for n, v in row.first.per_image.items() if n in place}
        for title, row in shown.items()
    }
    common = sorted(set.intersection(*(set(found) for found in scores.values())))
    if not common:
        return None
    last = list(shown)[-1]
    gain = {index: scores[last][index] - scores[reference][index] for index in common}
    by_gain = sorted(common, key=lambda index: gain[index])
    each = min(_EACH, max(1, len(common) // 3))
    groups = {
        "gain": [index for index in by_gain[::-1][:each] if gain[index] > _LEAST],
        "loss": [index for index in by_gain[:each] if gain[index] < -_LEAST],
        "worst": sorted(common, key=lambda index: scores[last][index])[:each],
    }
    students = {title: _student(row.first) for title, row in shown.items()}
    return pictures_figure(groups, images.test, students, scores, names, images.classes)


def _student(run: Run) -> Student:
    # Whoever was not asked for trust has been through refuse_untrusted.
    return load(run.folder, trust=True)


def _shown(rows: Mapping[str, Row], reference: str) -> dict[str, Row]:
    """Choose the reference, SD and ESD; others where these are missing."""
    methods = {t: method_of(row.recipe) for t, row in rows.items()}
    order = [t for t, method in methods.items() if method in ("sd", "esd")]
    order += [t for t in rows if t not in order and t != reference and methods[t] != "ct"]
    chosen = [reference, *order][:_NETWORKS]
    return {title: rows[title] for title in chosen if title in rows}


def manifest(run: Run, images: Domains | None) -> dict[str, Any]:
    """Say which images were used: names, and a hash of their list.

    Args:
        run: any run of the setting.
        images: the same, opened; without them only the test images are known.

    Returns:
        By split: count, sha256 of the names (one a line), and the names.
    """
    lists = {"test": sorted(run.per_image)}
    if images is not None:
        lists = {split: images.names(split) for split in ("train", "val", "test")}
        for name, unlabelled in zip(("proximity", "held out"), images.proximity, strict=True):
            if len(unlabelled):
                lists[name] = [item.name for item in unlabelled.items]
    return {
        split: {
            "count": len(names),
            "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
            "names": names,
        }
        for split, names in lists.items()
    }


def machine() -> dict[str, Any]:
    """Describe the machine that the report was made on: where latency was measured."""
    import os
    import platform

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = named[0] if named else cpu
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "system": platform.platform(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
