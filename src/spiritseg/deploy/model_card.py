"""The README.md beside a bundle: what its student is, and how to load it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from spiritseg.models.bundle import bundle_info, foreign_class

__all__ = ["model_card"]


def model_card(folder: Path, name: str, on_hub: bool) -> str:
    """Describe a bundle: classes, metrics, training, and how to load it.

    Args:
        folder: with the bundle.
        name: of the student, or of its repository.
        on_hub: whether the name is one to pull.

    Returns:
        A README.md with the Hub's front matter. The licence is left to its owner.
    """
    info = bundle_info(folder)
    foreign = sorted({_cell(path) for path in map(foreign_class, info.networks.values()) if path})
    lines = [
        "---",
        "# license: which licence holds for these weights is yours to say",
        "library_name: spiritseg",
        "pipeline_tag: image-segmentation",
        "tags: [semantic-segmentation, knowledge-distillation, spiritseg]",
        "---",
        "",
        f"# {name}",
        "",
        "A compact semantic segmentation network, made with spiritseg.",
        "",
        *_use(name, on_hub, bool(foreign)),
        "## Classes",
        "",
        "| index | class | colour |",
        "|---|---|---|",
        *(
            f"| {number} | {_cell(kind)} | rgb({', '.join(map(str, colour))}) |"
            for number, (kind, colour) in enumerate(zip(info.classes, info.colours, strict=True))
        ),
        "",
        *_metrics(info.metrics),
        *(_BENT if info.measured_before_one_geometry else ()),
        *_training(info.training),
        "## Files",
        "",
        "`student.safetensors` holds the weights, `student.json` what they are and their "
        f"SHA-256. {_code(foreign)}",
        "",
    ]
    return "\n".join(lines)


_BENT = (
    "These figures were measured by spiritseg before version 0.2, which was inaccurate where the "
    "sides of the images are no multiples of the network's stride: there the same weights do "
    "better now. `spiritseg evaluate` measures them again.",
    "",
)


def _use(name: str, on_hub: bool, trust: bool) -> list[str]:
    """Show how the student is loaded; `trust` where that imports classes of its own."""
    folder = "student" if on_hub else "."
    load = f'spiritseg.load("{folder}"{", trust=True" if trust else ""})'
    flag = " --trust" if trust else ""
    pull = [f"spiritseg pull {name} student{flag}        # or: {load}"] if on_hub else []
    return [
        "## Use",
        "",
        "```bash",
        "pip install spiritseg",
        *pull,
        f"spiritseg predict {folder} image.jpg --out masks{flag}",
        "```",
        "",
        "```python",
        "import spiritseg",
        "",
        f"student = {load}",
        'mask = student("image.jpg")  # (H, W) uint8 class indices',
        "```",
        "",
    ]


def _code(foreign: list[str]) -> str:
    if not foreign:
        return "Loading them runs no code."
    return (
        f"Its network is built from classes that are not of spiritseg ({', '.join(foreign)}): they "
        "must be importable, and loading runs their code. Pass `--trust` (in Python "
        "`trust=True`) only if you trust it."
    )


def _metrics(metrics: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for split in ("test", "val"):
        found = metrics.get(split)
        if not isinstance(found, dict):
            continue
        rows = [
            (key, _figure(value)) for key, value in found.items() if isinstance(value, int | float)
        ]
        classes = found.get("IoU")
        for kind, value in (classes if isinstance(classes, dict) else {}).items():
            rows.append((f"IoU {kind}", _figure(value)))
        head = [f"## On the {split} images", "", "| metric | value |", "|---|---|"]
        lines += [*head, *(f"| {_cell(key)} | {value} |" for key, value in rows), ""]
    return lines


def _training(training: dict[str, Any]) -> list[str]:
    experiment = training.get("experiment")
    stages = experiment.get("stages") if isinstance(experiment, dict) else None
    if not isinstance(experiment, dict) or not isinstance(stages, dict):
        return []
    lines = ["## Training", "", "| stage | trains | from | images | losses | steps |"]
    lines.append("|---|---|---|---|---|---|")
    ran = training.get("stages") or {}
    for name, stage in stages.items():
        losses = ", ".join(key for key, on in (stage.get("losses") or {}).items() if on)
        steps = (ran.get(name) or {}).get("steps", "")
        teachers = [stage.get("teacher"), *(stage.get("co_teachers") or [])]
        teacher = ", ".join(str(one) for one in teachers if one) or "labels"
        row = (name, stage.get("trains"), teacher, stage.get("images"), losses, steps)
        lines.append(f"| {' | '.join(map(_cell, row))} |")
    target = experiment.get("target") or {}
    root = Path(str(target.get("root"))).name if target.get("root") else target.get("dataset")
    lines += ["", f"Target images: {_cell(root)}, {_cell(target.get('subset'))}."]
    return [*lines, f"Seed: {_cell(experiment.get('seed'))}.", ""]


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not measured"


def _cell(value: object) -> str:
    """Keep names from ending a cell, or from being read as HTML."""
    plain = " ".join(str(value).split())
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", plain)
