"""spiritseg: compact segmentation networks, distilled from a bulky one and a few labels.

The names below are loaded when they are first used, so that ``import spiritseg`` is
instant and loads no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spiritseg import losses
    from spiritseg.bench import bench
    from spiritseg.compare.matrix import compare
    from spiritseg.compare.report import report
    from spiritseg.demo import demo
    from spiritseg.doctor import doctor
    from spiritseg.evaluation import DatasetIoU, ImageIoU, cost
    from spiritseg.export.export import export
    from spiritseg.hub import pull, push
    from spiritseg.models import Segmenter, student, student_head, teacher
    from spiritseg.models.compact import compact
    from spiritseg.predict.predict import predict
    from spiritseg.proximity import proximity
    from spiritseg.recipes import load_experiment, recipes
    from spiritseg.serve import serve
    from spiritseg.student import load
    from spiritseg.training.evaluate import evaluate
    from spiritseg.training.run import distill

__version__ = "0.2.0"

_HOME = {
    "DatasetIoU": "spiritseg.evaluation",
    "ImageIoU": "spiritseg.evaluation",
    "Segmenter": "spiritseg.models",
    "bench": "spiritseg.bench",
    "compact": "spiritseg.models",
    "compare": "spiritseg.compare",
    "cost": "spiritseg.evaluation",
    "demo": "spiritseg.demo",
    "distill": "spiritseg.training.run",
    "doctor": "spiritseg.doctor",
    "evaluate": "spiritseg.training.evaluate",
    "export": "spiritseg.export.export",
    "load": "spiritseg.student",
    "load_experiment": "spiritseg.recipes",
    "predict": "spiritseg.predict.predict",
    "proximity": "spiritseg.proximity",
    "pull": "spiritseg.hub",
    "push": "spiritseg.hub",
    "recipes": "spiritseg.recipes",
    "report": "spiritseg.compare",
    "serve": "spiritseg.serve",
    "student": "spiritseg.models",
    "student_head": "spiritseg.models",
    "teacher": "spiritseg.models",
}

__all__ = [
    "DatasetIoU",
    "ImageIoU",
    "Segmenter",
    "bench",
    "compact",
    "compare",
    "cost",
    "demo",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "load",
    "load_experiment",
    "losses",
    "predict",
    "proximity",
    "pull",
    "push",
    "recipes",
    "report",
    "serve",
    "student",
    "student_head",
    "teacher",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name == "losses":
        value = importlib.import_module("spiritseg.losses")
    else:
        raise AttributeError(f"module 'spiritseg' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    """Keeps a function, such as `predict`, when a module of its name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
