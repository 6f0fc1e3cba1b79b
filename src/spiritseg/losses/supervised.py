"""Cross-entropy against the labels (SD, eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spiritseg.errors import ConfigError, DataError
from spiritseg.losses.grid import at_least_float32, nearest

__all__ = ["cross_entropy", "near_boundary"]


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    class_weights: Sequence[float] | None = None,
    boundary: float = 0.0,
    boundary_width: int = 2,
) -> Tensor:
    r"""Cross-entropy, averaged over the labelled positions of the prediction.

    .. math:: L_S = -\frac{\sum_{p \in V} w_p \log \mathrm{softmax}(z_p)_{y_p}}
        {\sum_{p \in V} w_p}, \qquad w_p = c_{y_p} \left(1 + \beta\,[p \in E]\right)

    with V the positions of the whole batch whose label is not `ignore_index` and E those near
    another class (SD, eq. 3; Wu et al., arXiv:2103.13733, where every w_p is 1). Labels of
    another size are brought to the logits' grid by nearest neighbour. The paper's Algorithm 1
    writes the teacher's weights in the place of the labels; its text means the labels, and so
    do we.

    Args:
        logits: (B, K, h, w), of any float type; computed in float32 at least.
        labels: (B, H, W) integers in [0, K), or `ignore_index`.
        ignore_index: label that leaves a pixel out.
        class_weights: c, K factors >= 0; None for 1 each.
        boundary: beta >= 0.
        boundary_width: how far E reaches on either side, in positions of the logits
            (`near_boundary`).

    Returns:
        A scalar >= 0; 0 with zero gradient where every pixel is left out or has no weight.

    Raises:
        DataError: the shapes do not fit, or a label is none of the classes (checked on the
            CPU; CUDA asserts by itself).
        ConfigError: other than K class weights, or a weight, boundary or width below its bound.
    """
    if logits.ndim != 4 or labels.ndim != 3 or len(logits) != len(labels):
        raise DataError(
            "cross_entropy: expected logits (B, K, h, w) and labels (B, H, W), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    labels = nearest(labels, (logits.shape[-2], logits.shape[-1])).long()
    if labels.device.type == "cpu":
        _check_classes(labels, logits.shape[1], ignore_index)
    logits = at_least_float32(logits)
    counted = labels != ignore_index
    if class_weights is None and not boundary:
        total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
        # not reduction="mean", which is NaN where no pixel is left
        return total / counted.sum().clamp(min=1)
    each = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    weights = counted.to(logits.dtype)
    if class_weights is not None:
        factors = _class_factors(class_weights, logits)
        weights = weights * factors[labels.masked_fill(~counted, 0)]
    if boundary:
        if boundary < 0:
            raise ConfigError(f"cross_entropy: boundary must be 0 or more, got {boundary}.")
        weights = weights * (1 + boundary * near_boundary(labels, boundary_width, ignore_index))
    return (weights * each).sum() / weights.sum().clamp(min=torch.finfo(logits.dtype).tiny)


def near_boundary(labels: Tensor, width: int, ignore_index: int = 255) -> Tensor:
    """Mark the pixels that have another class within `width` rows and columns.

    Both sides of an edge are marked, `width` pixels deep each. Ignored pixels are neither
    marked nor another class.

    Args:
        labels: (B, H, W) integers, or `ignore_index`.
        width: 1 or more.
        ignore_index: label of pixels that are left out.

    Returns:
        (B, H, W) bool.

    Raises:
        ConfigError: a width below 1.
    """
    if width < 1:
        raise ConfigError(f"cross_entropy: boundary_width must be 1 or more, got {width}.")
    ignored = labels == ignore_index
    classes = labels.float()  # exact up to 2^24

    def highest(x: Tensor) -> Tensor:  # padding counts as -inf
        return F.max_pool2d(x.masked_fill(ignored, -torch.inf)[:, None], 2 * width + 1, 1, width)

    differs = highest(classes) > -highest(-classes)
    return differs[:, 0] & ~ignored


def _class_factors(class_weights: Sequence[float], logits: Tensor) -> Tensor:
    if len(class_weights) != logits.shape[1] or any(not w >= 0 for w in class_weights):
        raise ConfigError(
            f"cross_entropy: expected {logits.shape[1]} class weights of 0 or more, got "
            f"{list(class_weights)}."
        )
    return torch.tensor(class_weights, dtype=logits.dtype, device=logits.device)


def _check_classes(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    foreign = (labels != ignore_index) & ((labels < 0) | (labels >= num_classes))
    if bool(foreign.any()):
        raise DataError(
            f"cross_entropy: labels must lie in 0..{num_classes - 1} or be {ignore_index} "
            f"(ignored), got {torch.unique(labels[foreign]).tolist()[:10]}. "
            "Map them with a class map first."
        )
