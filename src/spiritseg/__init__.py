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
    from spiritseg.demo import demo
    from spiritseg.evaluation import DatasetIoU, ImageIoU, cost
    from spiritseg.export.export import export
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
    "bench": "spiritseg.bench",
    "compact": "spiritseg.models",
    "cost": "spiritseg.evaluation",
    "demo": "spiritseg.demo",
    "distill": "spiritseg.training.runner",
    "evaluate": "spiritseg.training.runner",
    "export": "spiritseg.export.export",
    "load": "spiritseg.inference",
    "load_experiment": "spiritseg.recipes",
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
    "cost",
    "demo",
    "distill",
    "evaluate",
    "export",
    "load",
    "load_experiment",
    "losses",
    "student",
    "student_head",
    "teacher",
]


class _Package(ModuleType):
    """Keeps functions that share their module's name (``spiritseg.export``).

    Importing such a module binds it here by setting an attribute, over the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


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
