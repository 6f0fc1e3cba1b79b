"""Cross-entropy against the labels (SD, eq. 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spiritseg.errors import DataError
from spiritseg.losses.grid import at_least_float32, nearest

__all__ = ["cross_entropy"]


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    r"""Cross-entropy, averaged over the labelled positions of the prediction.

    .. math:: L_S = -\frac{1}{|V|} \sum_{p \in V} \log \mathrm{softmax}(z_p)_{y_p}

    with V the positions of the whole batch whose label is not `ignore_index` (SD, eq. 3;
    Wu et al., arXiv:2103.13733). Labels of another size are brought to the logits' grid by
    nearest neighbour. The paper's Algorithm 1 writes the teacher's weights in the place of
    the labels; its text means the labels, and so do we.

    Args:
        logits: (B, K, h, w), of any float type; computed in float32 at least.
        labels: (B, H, W) integers in [0, K), or `ignore_index`.
        ignore_index: label that leaves a pixel out.

    Returns:
        A scalar >= 0; 0 with zero gradient where every pixel is left out.

    Raises:
        DataError: the shapes do not fit, or a label is none of the classes (checked on the
            CPU; CUDA asserts by itself).
    """
    if logits.ndim != 4 or labels.ndim != 3 or len(logits) != len(labels):
        raise DataError(
            "cross_entropy: expected logits (B, K, h, w) and labels (B, H, W), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    labels = nearest(labels, (logits.shape[-2], logits.shape[-1])).long()
    if labels.device.type == "cpu":
        _check_classes(labels, logits.shape[1], ignore_index)
    total = F.cross_entropy(
        at_least_float32(logits), labels, ignore_index=ignore_index, reduction="sum"
    )
    # not reduction="mean", which is NaN where no pixel is left
    return total / (labels != ignore_index).sum().clamp(min=1)


def _check_classes(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    foreign = (labels != ignore_index) & ((labels < 0) | (labels >= num_classes))
    if bool(foreign.any()):
        raise DataError(
            f"cross_entropy: labels must lie in 0..{num_classes - 1} or be {ignore_index} "
            f"(ignored), got {torch.unique(labels[foreign]).tolist()[:10]}. "
            "Map them with a class map first."
        )
