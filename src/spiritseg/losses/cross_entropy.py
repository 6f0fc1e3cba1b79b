"""Cross-entropy against the labels (SD, eq. 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor

from spiritseg.errors import ConfigError, DataError, unknown
from spiritseg.geometry import nearest, size_of
from spiritseg.losses.grid import at_least_float32
from spiritseg.losses.loss import LOGITS, Context, Loss, Outputs, Term
from spiritseg.options import STRICT, Mapping_, check_options

__all__ = ["LOSS", "CrossEntropy", "cross_entropy", "near_boundary"]

Factor = Annotated[float, Ge(0)]


@dataclass(frozen=True, config=STRICT)
class CrossEntropy:
    """Supervised cross-entropy (SD, eq. 3).

    Args:
        weight: Factor of the loss in the stage's sum.
        class_weights: Factor of the pixels of a class, by its name, such as {road: 2}; 1 for
            classes that are left out. Only the ratios between pixels count.
        boundary: Added to the factor 1 of pixels near another class; 0 for nothing.
        boundary_width: Distance that counts as near, in pixels of the labels.
    """

    weight: Factor = 1.0
    class_weights: Annotated[dict[str, Factor], Mapping_] = field(default_factory=dict)
    boundary: Factor = 0.0
    boundary_width: Annotated[int, Ge(1)] = 2


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    class_weights: Sequence[float] | None = None,
    boundary: float = 0.0,
    boundary_width: int = 2,
) -> Tensor:
    r"""Cross-entropy, averaged over the labelled pixels.

    .. math:: L_S = -\frac{\sum_{p \in V} w_p \log \mathrm{softmax}(z_{q(p)})_{y_p}}
        {\sum_{p \in V} w_p}, \qquad w_p = c_{y_p} \left(1 + \beta\,[p \in E]\right)

    with V the pixels of the whole batch whose label is not `ignore_index`, q(p) the position of
    the prediction that covers pixel p, and E the pixels near another class (SD, eq. 3; Wu et al.,
    arXiv:2103.13733, where every w_p is 1). Behind a 2x2 max-pool a position so has four labels,
    which may differ: a target between classes. One label a position, by nearest neighbour, would
    lie a quarter of a position beside it. The paper's Algorithm 1 writes the teacher's weights in
    the place of the labels; its text means the labels, and so do we.

    Args:
        logits: (B, K, h, w), of any float type; computed in float32 at least.
        labels: (B, H, W) integers in [0, K), or `ignore_index`. Where the prediction is finer
            they are brought to its grid by nearest neighbour.
        ignore_index: label that leaves a pixel out.
        class_weights: c, K factors >= 0; None for 1 each.
        boundary: beta >= 0.
        boundary_width: how far E reaches on either side, in pixels of the labels
            (`near_boundary`).

    Returns:
        A scalar >= 0; 0 with zero gradient where every pixel is left out or has no weight.

    Raises:
        DataError: the shapes do not fit, or a label is none of the classes (checked on the
            CPU; CUDA asserts by itself).
        ConfigError: other than K class weights, or a weight, boundary or width below its bound.
    """
    check_options(CrossEntropy, "cross_entropy", boundary=boundary, boundary_width=boundary_width)
    if logits.ndim != 4 or labels.ndim != 3 or len(logits) != len(labels):
        raise DataError(
            "cross_entropy: expected logits (B, K, h, w) and labels (B, H, W), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    grid = size_of(logits)
    labels = nearest(labels, [max(pair) for pair in zip(labels.shape[-2:], grid, strict=True)])
    labels = labels.long()
    if labels.device.type == "cpu":
        _check_classes(labels, logits.shape[1], ignore_index)
    logits = at_least_float32(logits)
    weights = _weights(labels, logits, ignore_index, class_weights, boundary, boundary_width)
    if size_of(labels) == grid and weights is None:
        total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
        # not reduction="mean", which is NaN where no pixel is left
        return total / (labels != ignore_index).sum().clamp(min=1)
    targets = _targets(labels, weights, logits, ignore_index)
    total = -(targets * F.log_softmax(logits, dim=1)).sum()
    return total / targets.sum().clamp(min=torch.finfo(logits.dtype).tiny)


def _weights(
    labels: Tensor,
    logits: Tensor,
    ignore_index: int,
    class_weights: Sequence[float] | None,
    boundary: float,
    boundary_width: int,
) -> Tensor | None:
    """Return w (B, H, W), also for ignored pixels, which do not count; None where all are 1."""
    if class_weights is None and not boundary:
        return None
    weights = torch.ones_like(labels, dtype=logits.dtype)
    if class_weights is not None:
        factors = _class_factors(class_weights, logits)
        weights = factors[labels.masked_fill(labels == ignore_index, 0)]
    if boundary:
        weights = weights * (1 + boundary * near_boundary(labels, boundary_width, ignore_index))
    return weights


def _targets(labels: Tensor, weights: Tensor | None, logits: Tensor, ignore_index: int) -> Tensor:
    """Add up the weights of the labelled pixels by position and class: (B, K, h, w)."""
    batch, classes, height, width = logits.shape
    rows, columns = (
        (2 * torch.arange(side, device=labels.device) + 1) * positions // (2 * side)
        for side, positions in zip(labels.shape[-2:], (height, width), strict=True)
    )
    counted = labels != ignore_index
    image = torch.arange(batch, device=labels.device)[:, None, None]
    cells = (image * classes + labels) * height + rows[:, None]
    cells = (cells * width + columns)[counted]
    given = None if weights is None else weights[counted]
    found = torch.bincount(cells, given, minlength=logits.numel())
    return found.to(logits.dtype).view(logits.shape)


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
    """
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


def _term(options: CrossEntropy, context: Context) -> Term:
    given = options.class_weights
    factors = [given.get(name, 1.0) for name in context.classes] if given else None

    def compute(outputs: Outputs) -> Tensor:
        return cross_entropy(
            outputs.student[LOGITS],
            outputs.labels,
            class_weights=factors,
            boundary=options.boundary,
            boundary_width=options.boundary_width,
        )

    return compute


def _problems(options: CrossEntropy, classes: Sequence[str] | None) -> Iterator[str]:
    for name in options.class_weights:
        if classes is not None and name not in classes:
            yield f"class_weights: {unknown('class', name, classes)}"


LOSS = Loss(
    CrossEntropy,
    _term,
    student=lambda options: frozenset({LOGITS}),
    labels=True,
    problems=_problems,
)
