"""spiritseg: compact segmentation networks, distilled from a bulky one and a few labels.

The names below are loaded when they are first used, so that ``import spiritseg`` is
instant and loads no torch.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spiritseg import losses
    from spiritseg.compare.matrix import compare
    from spiritseg.compare.report import report
    from spiritseg.demo import demo
    from spiritseg.evaluation import DatasetIoU, ImageIoU, cost
    from spiritseg.inference import load
    from spiritseg.models import Segmenter, student, student_head, teacher
    from spiritseg.models.compact import compact
    from spiritseg.recipes import load_experiment
    from spiritseg.training.runner import distill, evaluate

__version__ = "0.2.0"

_HOME = {
    "DatasetIoU": "spiritseg.evaluation",
    "ImageIoU": "spiritseg.evaluation",
    "Segmenter": "spiritseg.models",
    "compact": "spiritseg.models",
    "compare": "spiritseg.compare",
    "cost": "spiritseg.evaluation",
    "demo": "spiritseg.demo",
    "distill": "spiritseg.training.runner",
    "evaluate": "spiritseg.training.runner",
    "load": "spiritseg.inference",
    "load_experiment": "spiritseg.recipes",
    "report": "spiritseg.compare",
    "student": "spiritseg.models",
    "student_head": "spiritseg.models",
    "teacher": "spiritseg.models",
}

__all__ = [
    "DatasetIoU",
    "ImageIoU",
    "Segmenter",
    "compact",
    "compare",
    "cost",
    "demo",
    "distill",
    "evaluate",
    "load",
    "load_experiment",
    "losses",
    "report",
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


class _Package(types.ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Importing spiritseg.compare sets that module here; the function of its name stays.
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
