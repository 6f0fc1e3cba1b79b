"""The metrics' definitions as plain loops over sets of pixels."""

from __future__ import annotations

import math

from torch import Tensor


def class_ious(pairs: list[tuple[int, int]], classes: int) -> list[float]:
    """IoU of each class from (label, prediction) of each pixel; NaN for an absent one."""
    ious = []
    for c in range(classes):
        both = sum(label == c and predicted == c for label, predicted in pairs)
        either = sum(label == c or predicted == c for label, predicted in pairs)
        ious.append(both / either if either else math.nan)
    return ious


def pixel_pairs(predicted: Tensor, label: Tensor, ignore_index: int = 255) -> list[tuple[int, int]]:
    """(label, prediction) of each pixel that is not ignored."""
    flat = zip(label.flatten().tolist(), predicted.flatten().tolist(), strict=True)
    return [(y, p) for y, p in flat if y != ignore_index]


def mean_present(values: list[float]) -> float:
    """Mean of what is not NaN."""
    present = [v for v in values if not math.isnan(v)]
    return sum(present) / len(present)


def image_iou(
    predicted: Tensor, labels: Tensor, classes: int, threshold: float
) -> tuple[float, float, float, list[float]]:
    """mIOU, HP-Acc, Var (equations 4-8) and mIOU_i, over images with any valid pixel."""
    each = []
    for p, y in zip(predicted, labels, strict=True):
        pairs = pixel_pairs(p, y)
        if pairs:
            each.append(mean_present(class_ious(pairs, classes)))
    mean = sum(each) / len(each)
    precise = sum(v > threshold for v in each) / len(each)
    return mean, precise, sum((v - mean) ** 2 for v in each) / len(each), each
