"""From logits or label maps to counts: what the metrics share."""

from __future__ import annotations

import torch
from torch import Tensor

from spiritseg.errors import DataError
from spiritseg.geometry import resize
from spiritseg.losses.grid import at_least_float32

__all__ = ["UNKNOWN", "checked_index", "confusion", "first_seen", "label_maps", "most_likely"]

UNKNOWN = -1  # index of an image that came without one


def label_maps(prediction: Tensor, labels: Tensor) -> Tensor:
    """Turn a prediction into label maps on the labels' grid.

    Args:
        prediction: logits (B, K, h, w), brought to the labels' grid bilinearly and then
            arg-maxed; or integer label maps (B, H, W).
        labels: (B, H, W) integers.

    Returns:
        (B, H, W) int64.

    Raises:
        DataError: neither logits nor label maps of the labels' size.
    """
    shapes = f"got {prediction.dtype} {tuple(prediction.shape)} for labels {tuple(labels.shape)}"
    if labels.ndim != 3 or labels.is_floating_point() or len(prediction) != len(labels):
        raise DataError(f"expected integer labels (B, H, W), as many as predictions; {shapes}.")
    if prediction.ndim == 4 and prediction.is_floating_point():
        # One by one: full-size logits of a batch would take gigabytes.
        maps = [
            most_likely(resize(at_least_float32(one[None]), labels.shape[-2:]))
            for one in prediction
        ]
        return torch.cat(maps) if maps else labels.long()
    if prediction.is_floating_point() or prediction.shape != labels.shape:
        raise DataError(
            f"expected logits (B, K, h, w), or integer label maps of the labels' size; {shapes}."
        )
    return prediction.long()


def most_likely(logits: Tensor) -> Tensor:
    """Return the class of the largest logit of each pixel.

    Args:
        logits: (B, K, H, W).

    Returns:
        (B, H, W) int64; of equal logits the first.
    """
    return logits.max(1).indices  # the same as argmax, and twenty times faster on a CPU


def confusion(prediction: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count the pixels of each image by label (rows) and prediction (columns).

    Args:
        prediction: logits or label maps, see `label_maps`.
        labels: (B, H, W) integers in [0, K), or `ignore_index`.
        num_classes: K.
        ignore_index: label of the pixels that are left out.

    Returns:
        (B, K, K) int64.

    Raises:
        DataError: shapes that do not fit, or classes beyond K.
    """
    predicted, labels = label_maps(prediction, labels), labels.long()
    valid = labels != ignore_index
    for name, values in (("labels", labels[valid]), ("predictions", predicted[valid])):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            raise DataError(
                f"{name} must lie in 0..{num_classes - 1} where the label is not {ignore_index} "
                f"(ignored), got {int(values.min())}..{int(values.max())}. "
                "Check the class map and num_classes."
            )
    image = torch.arange(len(labels), device=labels.device)[:, None, None]
    cells = (image * num_classes + labels) * num_classes + predicted
    counts = cells[valid].bincount(minlength=len(labels) * num_classes**2)
    return counts.view(len(labels), num_classes, num_classes)


def checked_index(index: Tensor | None, images: int, device: torch.device) -> Tensor:
    """Check the indices of a batch of images; without any, all are `UNKNOWN`.

    Returns:
        (B,) float64, exact up to 2^53.

    Raises:
        DataError: not one index >= 0 an image.
    """
    if index is None:
        return torch.full((images,), UNKNOWN, dtype=torch.float64, device=device)
    if index.shape != (images,) or index.is_floating_point() or bool((index < 0).any()):
        raise DataError(
            f"expected one data-set index >= 0 for each of {images} images, got "
            f"{index.dtype} {tuple(index.shape)}."
        )
    return index.to(device, torch.float64)


def first_seen(index: Tensor) -> Tensor:
    """Mark the first occurrence of each index; images without an index all count.

    Args:
        index: (n,), `UNKNOWN` for none.

    Returns:
        (n,) bool.
    """
    order = index.argsort(stable=True)
    ordered = index[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = (ordered[1:] != ordered[:-1]) | (ordered[1:] == UNKNOWN)
    return torch.zeros_like(first).scatter(0, order, first)
