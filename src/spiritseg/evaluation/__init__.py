"""Metrics over images and over a data set, and costs."""

from __future__ import annotations

from spiritseg.evaluation.cost import Cost, cost, latencies_ms
from spiritseg.evaluation.iou import DatasetIoU, ImageIoU

__all__ = ["Cost", "DatasetIoU", "ImageIoU", "cost", "latencies_ms"]
