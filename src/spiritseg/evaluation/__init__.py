"""Metrics over images and over a data set, explained variance of features, and costs."""

from __future__ import annotations

from spiritseg.evaluation.cost import Cost, cost, latencies_ms
from spiritseg.evaluation.dataset_iou import DatasetIoU
from spiritseg.evaluation.explained_variance import ExplainedVariance
from spiritseg.evaluation.image_iou import ImageIoU

__all__ = ["Cost", "DatasetIoU", "ExplainedVariance", "ImageIoU", "cost", "latencies_ms"]
