"""Images, labels and their order: data sets, class maps, preprocessing, mixing of domains."""

from spiritseg.data.classes import ClassMap, load_class_map
from spiritseg.data.datasets import (
    Domains,
    TargetImages,
    open_domains,
    open_proximity,
    open_target,
    open_target_all,
)
from spiritseg.data.image_sets import EvalData, LabelledImages, UnlabelledImages
from spiritseg.data.mixing import StageBatches, StageData

__all__ = [
    "ClassMap",
    "Domains",
    "EvalData",
    "LabelledImages",
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
