"""The model card of a student on the Hub: README.md, with its metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritseg.config import Experiment
from spiritseg.errors import SpiritsegError
from spiritseg.models.bundle import BundleInfo
from spiritseg.recipes import recorded_experiment
from spiritseg.tables import markdown

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

__all__ = ["model_card"]

_BODY = """
# {name}

A compact semantic segmentation network, distilled with spiritseg.

## Use

```bash
pip install spiritseg
spiritseg pull {name} student{flag}
spiritseg predict student image.jpg --out masks{flag}
```

```python
import spiritseg

student = spiritseg.load("student"{trust})
mask = student("image.jpg")  # (H, W) uint8 class indices
```

{code}

## Classes

{classes}
{scores}{training}## Licence

The owner of this repository has not stated a licence for these weights.
"""

_SAFE = "The weights are safetensors; loading them runs no code."
_FOREIGN = (
    "Loading it runs code that is not part of spiritseg, which must be importable: {}. Pass "
    "`--trust` (in Python `trust=True`) only if you trust it."
)
_OLD_SCORES = """
Measured by spiritseg before version 0.2, which scored too low where the sides of the images are not
multiples of the network's stride; `spiritseg evaluate` measures again.
"""


def model_card(info: BundleInfo, name: str) -> ModelCard:
    """Describe a student: classes, scores, training and use; its owner states the licence.

    Args:
        info: Description of the student's bundle.
        name: Its repository, ``owner/name``.
    """
    from huggingface_hub import ModelCard, ModelCardData

    try:
        experiment = recorded_experiment(info.training, complete=False)
    except SpiritsegError:  # saved without it, or by another version
        experiment = None
    results = _results(info, _dataset(experiment))
    data = ModelCardData(
        library_name="spiritseg",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "knowledge-distillation", "spiritseg"],
        model_name=name.partition("/")[2],
        eval_results=results or None,
    )
    foreign = ", ".join(map(_escape, info.needs_trust))
    colours = [f"rgb{colour}" for colour in info.colours]
    body = _BODY.format(
        name=name,
        flag=" --trust" if foreign else "",
        trust=", trust=True" if foreign else "",
        code=_FOREIGN.format(foreign) if foreign else _SAFE,
        classes=_table(
            ["index", "class", "colour"],
            zip(range(len(colours)), info.classes, colours, strict=True),
        ),
        scores=_scores(results, info.measured_before_one_geometry),
        training=_training(experiment, info.training.get("stages")),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body}")


def _dataset(experiment: Experiment | None) -> str:
    target = experiment.target if experiment else None
    return (Path(target.root).name if target.root else target.dataset) if target else "unknown"


def _results(info: BundleInfo, dataset: str) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=re.sub(r"[^A-Za-z0-9_.-]+", "-", dataset),
            dataset_name=dataset,
            dataset_split=split,
            metric_type=metric,
            metric_value=value,
        )
        for split in ("test", "val")
        for metric, value in _finite(info.metrics.get(split), "")
        if metric != "images"
    ]


def _scores(results: list[EvalResult], old: bool) -> str:
    if not results:
        return ""
    rows = [[r.metric_type, r.dataset_split, f"{r.metric_value:.4g}"] for r in results]
    table = _table(["metric", "images", "value"], rows)
    return f"## Scores\n\n{table}\n{_OLD_SCORES if old else ''}\n"


def _training(experiment: Experiment | None, ran: Any) -> str:
    if experiment is None:
        return ""
    rows = []
    for name, stage in experiment.stages.items():
        teachers = ", ".join((stage.teacher, *stage.co_teachers)) if stage.teacher else "labels"
        losses = ", ".join(kind for kind, loss in stage.losses.items() if loss is not None)
        steps = _fields(_fields(ran).get(name)).get("steps", "")
        rows.append([name, stage.trains, teachers, stage.images, losses, steps])
    table = _table(["stage", "trains", "from", "images", "losses", "steps"], rows)
    images = _escape(f"{_dataset(experiment)}, {experiment.target.subset}")
    return f"## Training\n\n{table}\nTarget images: {images}. Seed: {experiment.seed}.\n\n"


def _fields(value: Any) -> dict[str, Any]:
    """Return a mapping, or an empty one in place of anything else that a bundle may hold."""
    return value if isinstance(value, dict) else {}


def _finite(scores: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers of nested mappings: ``mIOU``, ``IoU road``."""
    for name, value in _fields(scores).items():
        if isinstance(value, dict) and not prefix:
            yield from _finite(value, f"{name} ")
        elif isinstance(value, float | int) and abs(value) < 1e300:
            yield f"{prefix}{name}", float(value)


def _table(head: list[str], rows: Iterable[Iterable[object]]) -> str:
    return markdown([head, *([_escape(cell) for cell in row] for row in rows)]) + "\n"


def _escape(value: object) -> str:
    """Escape text so that it neither ends a cell nor reads as Markdown or HTML."""
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", " ".join(str(value).split()))
