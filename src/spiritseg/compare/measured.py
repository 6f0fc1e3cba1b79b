"""What a report measures anew, latency and CT's head stage, and what it takes to reproduce it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritseg.compare.conclusions import labelled
from spiritseg.compare.results import Row, Run
from spiritseg.compare.shared_stages import stage_folders
from spiritseg.errors import RunError, SpiritsegError
from spiritseg.files import json_bytes, write_atomically
from spiritseg.recipes import experiment_from_dict, to_yaml

if TYPE_CHECKING:
    from spiritseg.data.domains import Domains
    from spiritseg.student import Student

__all__ = [
    "MeasuredImages",
    "head_only",
    "latencies",
    "refuse_untrusted",
    "reproduction",
    "student_of",
]


@dataclass(frozen=True)
class MeasuredImages:
    """The images that a run was measured on, if they can be opened here, with overrides."""

    run: Run
    overrides: Mapping[str, Any]

    @cached_property
    def _opened(self) -> tuple[Domains | None, str]:
        from spiritseg.data.domains import open_domains

        reason = ""
        for target_only in (False, True):
            try:
                fields = dataclasses.asdict(self.run.experiment)
                return open_domains(experiment_from_dict(fields, self.overrides), target_only), ""
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

    A ``config.yaml`` next to a bundle is no proof of its origin.
    """
    from spiritseg.models.bundle import bundle_info, refuse_foreign
    from spiritseg.student import bundle_folder

    for run in runs:
        folder = bundle_folder(run.folder)
        if (folder / "student.json").is_file():
            refuse_foreign(folder, bundle_info(folder))


def student_of(run: Run) -> Student:
    """Load the student of a run that `refuse_untrusted` has let through, or that is trusted."""
    from spiritseg.student import load

    return load(run.folder, trust=True)


def latencies(rows: Mapping[str, Row]) -> dict[str, float]:
    """Return the median latency in ms of one student per row, by title, all measured in turn.

    The size is that of a test image after the max-pool, with batch 1.
    """
    import torch

    from spiritseg.evaluation import latencies_ms

    networks = {
        title: student_of(row.first).network.to(memory_format=torch.channels_last)
        for title, row in rows.items()
    }
    height, width = next(iter(rows.values())).first.metrics["cost"]["size"]
    times = latencies_ms(networks, (height, width), rounds=25)
    return {title: statistics.median(found) for title, found in times.items()}


def head_only(row: Row, images: MeasuredImages) -> dict[int, dict[str, Any]]:
    """Measure fine-tuning transfer before its fine-tuning: after the stage that trains the head.

    Training measures a stage on the validation images. The test images are measured here, once,
    and kept in the stage's folder as ``test.json``, if that can be written. With overrides,
    which may name other images, nothing is kept, and nothing that was kept is used.

    Returns:
        Test metrics by seed, of the runs that have them or can be measured here.
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
            content = json_bytes(_score(run, folder, images.domains))
            if not images.overrides:
                with suppress(RunError):  # the runs may be read-only
                    write_atomically(kept, content)
            found[seed] = json.loads(content)
    return found


def _score(run: Run, stage: Path, domains: Domains) -> dict[str, Any]:
    from safetensors.torch import load_file

    from spiritseg.training.measure import score

    network = student_of(run).network
    network.load_state_dict(load_file(stage / "network.safetensors"))
    names = list(domains.classes.names)
    return score(network, domains.evaluation("test"), names, run.experiment).as_dict()


def reproduction(runs: Sequence[Run], images: MeasuredImages) -> dict[str, Any]:
    """Return versions, machines, seeds, images and configs of runs, as plain values."""
    seeds: dict[str, list[int]] = {}
    configs: dict[str, str] = {}
    for run in runs:
        name = f"{run.title}, {labelled(run.labels)}"
        seeds.setdefault(name, []).append(run.seed)
        configs.setdefault(name, to_yaml(run.experiment))
    versions = (", ".join(f"{k} {v}" for k, v in r.about.get("versions", {}).items()) for r in runs)
    return {
        "versions": list(dict.fromkeys(filter(None, versions))),
        "machines": list(dict.fromkeys(run.about.get("machine", "unknown") for run in runs)),
        "report": _this_machine(),
        "seeds": {name: ", ".join(map(str, sorted(found))) for name, found in seeds.items()},
        "configs": configs,
        "images": _image_lists(images),
        "skipped": sorted({path for run in runs for path in run.metrics.get("skipped", [])}),
    }


def _image_lists(images: MeasuredImages) -> dict[str, Any]:
    """Return by split, and for the unlabelled images: count, names, sha256 of a name per line."""
    domains = images.domains
    lists = {"test": sorted(images.run.per_image)}
    if domains is not None:
        lists = {split: domains.names(split) for split in ("train", "val", "test")}
        for name, unlabelled in zip(("proximity", "held out"), domains.proximity, strict=True):
            lists[name] = [item.name for item in unlabelled.items]
    return {
        name: {
            "count": len(found),
            "sha256": hashlib.sha256("\n".join(found).encode()).hexdigest(),
            "names": found,
        }
        for name, found in lists.items()
        if found
    }


def _this_machine() -> str:
    """Describe the machine that the report is made on, where latency is measured."""
    import platform

    import torch

    from spiritseg.cores import usable_cores

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpus = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = next(iter(cpus), platform.processor() or platform.machine())
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return (
        f"{platform.platform()}, {cpu}, {usable_cores()} cores, {torch.get_num_threads()} threads, "
        f"{gpu}, torch {torch.__version__}"
    )
