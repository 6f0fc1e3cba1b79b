"""Images, labels and their order: layouts, class maps, data sets, augmentation, sampling."""

from spiritseg.data.class_map import ClassMap, load_class_map
from spiritseg.data.layout_kinds import Layout, SplitLayout
from spiritseg.data.layouts import LAYOUTS

__all__ = ["LAYOUTS", "ClassMap", "Layout", "SplitLayout", "load_class_map"]
