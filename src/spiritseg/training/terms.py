"""The losses of a stage as terms: each says what it needs and how it is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spiritseg.config import CrossEntropy, Losses, Mimicry, Pairwise, Pixelwise
from spiritseg.errors import ConfigError, unknown
from spiritseg.losses.mimicry import mimicry
from spiritseg.losses.pairwise import pairwise
from spiritseg.losses.pixelwise import pixelwise
from spiritseg.losses.supervised import cross_entropy

__all__ = [
    "FEATURES",
    "LOGITS",
    "Outputs",
    "Statistics",
    "Term",
    "class_factors",
    "layer_pairs",
    "terms",
]

Statistics = tuple[Tensor, Tensor]  # mean and standard deviation per channel, (C,) each
Adapter = Callable[[Tensor], Tensor]

FEATURES, LOGITS = "features", "logits"


@dataclass(frozen=True)
class Outputs:
    """What the losses of a stage see of a batch.

    Args:
        labels: (B, H, W) int64, 255 is ignored.
        valid: (B, H, W) bool, False on padding only.
        images: (B, 3, h, w) in [0, 1], as the networks saw them.
        student: outputs of the network that trains, by the name of the layer; only what
            some term needs.
        teacher: the same of the teacher.
    """

    labels: Tensor
    valid: Tensor
    images: Tensor
    student: Mapping[str, Tensor] = field(default_factory=dict)
    teacher: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """One loss of a stage.

    Args:
        student: names of the student's outputs that it reads.
        teacher: names of the teacher's.
        weight: its factor in the stage's sum.
        compute: from the outputs of a batch to a scalar.
    """

    student: frozenset[str]
    teacher: frozenset[str]
    weight: float
    compute: Callable[[Outputs], Tensor]


def layer_pairs(config: Mimicry | Pairwise) -> dict[str, str]:
    """Return which layer of the student is compared with which of the teacher, by name.

    In the order of the names: adapters are numbered, and two orders are one experiment.
    """
    return dict(sorted(config.layers.items())) or {FEATURES: FEATURES}


def terms(
    losses: Losses,
    standardised: Callable[[str, Tensor], Tensor] = lambda layer, wanted: wanted,
    adapters: Mapping[str, Adapter] | None = None,
    classes: Sequence[str] = (),
) -> dict[str, Term]:
    """Return the losses that a stage asks for, as terms by name; all but the holistic one.

    Args:
        losses: the stage's losses.
        standardised: from a layer's name and the teacher's output to what mimicry wants.
        adapters: from a layer of the student to its teacher's channels, for mimicry.
        classes: their names in the order of the logits, for weights of classes.

    Raises:
        ConfigError: a class that has a weight is none of them.
    """
    found: dict[str, Term] = {}
    if losses.cross_entropy is not None:
        found["cross_entropy"] = _supervised(losses.cross_entropy, classes)
    if losses.mimicry is not None:
        found["mimicry"] = _mimicry(losses.mimicry, standardised, adapters or {})
    if losses.pixelwise is not None:
        found["pixelwise"] = _pixelwise(losses.pixelwise)
    if losses.pairwise is not None:
        found["pairwise"] = _pairwise(losses.pairwise)
    return found


def class_factors(config: CrossEntropy, classes: Sequence[str]) -> list[float] | None:
    """Return the factor of each class, in the order of `classes`; None where all are 1.

    Raises:
        ConfigError: a class that has a weight is none of them.
    """
    for name in config.class_weights:
        if name not in classes:
            raise ConfigError(f"cross_entropy.class_weights: {unknown('class', name, classes)}")
    return [config.class_weights.get(c, 1.0) for c in classes] if config.class_weights else None


def _supervised(config: CrossEntropy, classes: Sequence[str]) -> Term:
    factors = class_factors(config, classes)

    def compute(outputs: Outputs) -> Tensor:
        return cross_entropy(
            outputs.student[LOGITS],
            outputs.labels,
            class_weights=factors,
            boundary=config.boundary,
            boundary_width=config.boundary_width,
        )

    return Term(frozenset({LOGITS}), frozenset(), config.weight, compute)


def _mimicry(
    config: Mimicry,
    standardised: Callable[[str, Tensor], Tensor],
    adapters: Mapping[str, Adapter],
) -> Term:
    pairs = layer_pairs(config)

    def one(outputs: Outputs, ours: str, theirs: str) -> Tensor:
        found = outputs.student[ours]
        if ours in adapters:
            found = adapters[ours](found)
        wanted = standardised(theirs, outputs.teacher[theirs])
        return mimicry(found, wanted, config.reduction, outputs.valid)

    def compute(outputs: Outputs) -> Tensor:
        return torch.stack([one(outputs, *pair) for pair in pairs.items()]).mean()

    return Term(frozenset(pairs), frozenset(pairs.values()), config.weight, compute)


def _pixelwise(config: Pixelwise) -> Term:
    def compute(outputs: Outputs) -> Tensor:
        return pixelwise(
            outputs.student[LOGITS],
            outputs.teacher[LOGITS],
            temperature=config.temperature,
            direction=config.direction,
            valid=outputs.valid,
            reduction=config.reduction,
            confidence=config.confidence,
        )

    return Term(frozenset({LOGITS}), frozenset({LOGITS}), config.weight, compute)


def _pairwise(config: Pairwise) -> Term:
    pairs = layer_pairs(config)

    def one(outputs: Outputs, ours: str, theirs: str) -> Tensor:
        return pairwise(
            outputs.student[ours],
            outputs.teacher[theirs],
            node_size=config.node_size,
            connection_range=config.connection_range or None,
            form=config.form,
            valid=outputs.valid,
            pooling=config.pooling,
            detach_norms=config.detach_norms,
        )

    def compute(outputs: Outputs) -> Tensor:
        return torch.stack([one(outputs, *pair) for pair in pairs.items()]).mean()

    return Term(frozenset(pairs), frozenset(pairs.values()), config.weight, compute)
