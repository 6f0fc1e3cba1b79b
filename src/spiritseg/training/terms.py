"""The losses of a stage as terms: each says what it needs and how it is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from spiritseg.config import CrossEntropy, Losses, Mimicry
from spiritseg.errors import RunError
from spiritseg.losses.mimicry import mimicry, standardise
from spiritseg.losses.supervised import cross_entropy

__all__ = ["Outputs", "Statistics", "Term", "terms"]

Statistics = tuple[Tensor, Tensor]  # mean and standard deviation per channel, (C,) each


@dataclass(frozen=True)
class Outputs:
    """What the losses of a stage see of a batch; None for what none of them needs.

    Args:
        labels: (B, H, W) int64, 255 is ignored.
        valid: (B, H, W) bool, False on padding only.
        features: (B, C, h, w) of the network that trains.
        logits: (B, K, H', W') of the network that trains.
        teacher_features: of the teacher.
        teacher_logits: of the teacher.
    """

    labels: Tensor
    valid: Tensor
    features: Tensor | None = None
    logits: Tensor | None = None
    teacher_features: Tensor | None = None
    teacher_logits: Tensor | None = None


@dataclass(frozen=True)
class Term:
    """One loss of a stage.

    Args:
        needs: names of the `Outputs` that it reads.
        weight: its factor in the stage's sum.
        compute: from the outputs of a batch to a scalar.
    """

    needs: frozenset[str]
    weight: float
    compute: Callable[[Outputs], Tensor]


def terms(losses: Losses, statistics: Statistics | None = None) -> dict[str, Term]:
    """Return the losses that a stage asks for, as terms by name.

    Args:
        losses: the stage's losses.
        statistics: of the teacher's features, for losses that standardise them.
    """
    found: dict[str, Term] = {}
    if losses.cross_entropy is not None:
        found["cross_entropy"] = _supervised(losses.cross_entropy)
    if losses.mimicry is not None:
        found["mimicry"] = _mimicry(losses.mimicry, statistics)
    return found


def _given(value: Tensor | None) -> Tensor:
    assert value is not None, "a term read an output that it did not declare"
    return value


def _supervised(config: CrossEntropy) -> Term:
    return Term(
        frozenset({"logits"}), config.weight, lambda o: cross_entropy(_given(o.logits), o.labels)
    )


def _mimicry(config: Mimicry, statistics: Statistics | None) -> Term:
    if config.normalise and statistics is None:
        raise RunError("mimicry with normalise: true needs the statistics of the teacher.")

    def compute(outputs: Outputs) -> Tensor:
        wanted = _given(outputs.teacher_features)
        if config.normalise and statistics is not None:
            mean, std = (s.to(wanted.device) for s in statistics)
            wanted = standardise(wanted, mean, std, centre=config.centre)
        return mimicry(_given(outputs.features), wanted, reduction=config.reduction)

    return Term(frozenset({"features", "teacher_features"}), config.weight, compute)
