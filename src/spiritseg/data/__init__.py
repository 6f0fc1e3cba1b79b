"""Images, labels and their order: data sets, class maps, augmentation, mixing of domains.

The names below are loaded when they are first used: layouts and class maps need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spiritseg.data.class_map import ClassMap, load_class_map
    from spiritseg.data.datasets import EvalData, LabelledImages, UnlabelledImages
    from spiritseg.data.domains import (
        Domains,
        TargetImages,
        open_domains,
        open_proximity,
        open_target,
        open_target_all,
    )
    from spiritseg.data.layout_kinds import Layout, SplitLayout
    from spiritseg.data.layouts import LAYOUTS
    from spiritseg.data.sampling import StageBatches, StageData

_HOME = {
    "LAYOUTS": "layouts",
    "ClassMap": "class_map",
    "Domains": "domains",
    "EvalData": "datasets",
    "LabelledImages": "datasets",
    "Layout": "layout_kinds",
    "SplitLayout": "layout_kinds",
    "StageBatches": "sampling",
    "StageData": "sampling",
    "TargetImages": "domains",
    "UnlabelledImages": "datasets",
    "load_class_map": "class_map",
    "open_domains": "domains",
    "open_proximity": "domains",
    "open_target": "domains",
    "open_target_all": "domains",
}

__all__ = [
    "LAYOUTS",
    "ClassMap",
    "Domains",
    "EvalData",
    "LabelledImages",
    "Layout",
    "SplitLayout",
    "StageBatches",
    "StageData",
    "TargetImages",
    "UnlabelledImages",
    "load_class_map",
    "open_domains",
    "open_proximity",
    "open_target",
    "open_target_all",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
