"""What a loss is to a stage: its options, the outputs it reads, and the term it becomes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from spiritseg.options import Optimizer

__all__ = [
    "FEATURES",
    "LOGITS",
    "Adversary",
    "Comparing",
    "Context",
    "Loss",
    "Outputs",
    "Statistics",
    "Term",
    "layer_pairs",
]

FEATURES, LOGITS = "features", "logits"
Statistics = tuple[Tensor, Tensor]  # mean and standard deviation per channel, (C,) each


@dataclass(frozen=True)
class Outputs:
    """What the losses of a stage see of a batch.

    Args:
        labels: (B, H, W) int64, 255 is ignored.
        valid: (B, H, W) bool, False on padding only.
        images: (B, 3, h, w) in [0, 1], as the networks saw them.
        student: Outputs of the network that trains, by the name of the layer; only those that
            some loss reads.
        teacher: The same of the teacher.
    """

    labels: Tensor
    valid: Tensor
    images: Tensor
    student: Mapping[str, Tensor] = field(default_factory=dict)
    teacher: Mapping[str, Tensor] = field(default_factory=dict)


Term = Callable[[Outputs], Tensor]
"""A loss of a stage, ready: the outputs of a batch to a scalar. A term that is an `nn.Module`
has parameters that train with the student, such as an adapter's, and are dropped afterwards."""


class Adversary(nn.Module):
    """A term with an opponent of the student, which has an optimizer of its own.

    In each step of the stage the opponent steps first, by `loss`; calling the term then gives
    the student's part. No gradient of the student reaches the opponent.

    Args:
        optimizer: How the opponent steps.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__()
        self.optimizer = optimizer

    def loss(self, outputs: Outputs, seed: int) -> Tensor:
        """Compute what the opponent minimises.

        Args:
            outputs: Of a batch; the student's and teacher's are detached.
            seed: For its random draws.
        """
        raise NotImplementedError


@runtime_checkable
class Comparing(Protocol):
    """A term that compares maps, of which the explained variance can be measured."""

    def compared(self, outputs: Outputs) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the student's and the teacher's maps (B, C, h, w), as compared, by name."""
        ...


@dataclass(frozen=True)
class Context:
    """What a term may be made from.

    Args:
        classes: Names of the classes in the order of the logits.
        channels: Number of channels of layers of the ``"student"`` or ``"teacher"``.
        statistics: Mean and standard deviation of the teacher's layers that the loss asks for.
        seed: Seed of a draw, from any words and numbers that name it.
    """

    classes: Sequence[str]
    channels: Callable[[Literal["student", "teacher"], Collection[str]], Mapping[str, int]]
    statistics: Mapping[str, Statistics]
    seed: Callable[..., int]


def _nothing(options: Any) -> frozenset[str]:
    return frozenset()


def _no_problems(options: Any, classes: Sequence[str] | None) -> Iterator[str]:
    return iter(())


@dataclass(frozen=True)
class Loss:
    """An entry of `spiritseg.losses.LOSSES`: everything that the project knows of a loss.

    Args:
        options: Dataclass of the options, validated by pydantic; its field ``weight`` is the
            factor of the loss in the stage's sum.
        make: Term of the loss, from the options and a `Context`.
        student: Names of the student's outputs that it reads: ``features``, ``logits``, or paths
            of inner layers.
        teacher: Names of the teacher's outputs that it reads; empty for a loss without teacher.
        labels: Whether it reads the labels, so that unlabelled images cannot be used.
        statistics: Names of the teacher's layers whose channel statistics it needs.
        problems: One line for each problem between the options; the classes are known (not
            None) once the data set is open.
    """

    options: type[Any]
    make: Callable[[Any, Context], Term]
    student: Callable[[Any], frozenset[str]]
    teacher: Callable[[Any], frozenset[str]] = _nothing
    labels: bool = False
    statistics: Callable[[Any], frozenset[str]] = _nothing
    problems: Callable[[Any, Sequence[str] | None], Iterator[str]] = _no_problems


def layer_pairs(layers: Mapping[str, str]) -> dict[str, str]:
    """Return which layer of the student is compared with which of the teacher.

    Args:
        layers: Option of that name; empty for the extractors' outputs.

    Returns:
        The pairs in the order of the names: adapters are numbered, and two orders are one
        experiment.
    """
    return dict(sorted(layers.items())) or {FEATURES: FEATURES}
