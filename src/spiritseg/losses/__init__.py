"""The losses of SD, ESD and SKD: pure functions of tensors, one file a loss.

`LOSSES` is the registry: each entry (`Loss`) carries the options of a loss, the outputs that it
reads and the term that it becomes in a stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from spiritseg.errors import ConfigError
from spiritseg.losses.cross_entropy import LOSS as _CROSS_ENTROPY
from spiritseg.losses.cross_entropy import CrossEntropy, cross_entropy
from spiritseg.losses.holistic import LOSS as _HOLISTIC
from spiritseg.losses.holistic import Holistic, critic_loss, holistic, maps_of, slope_penalty
from spiritseg.losses.loss import Adversary, Context, Loss, Outputs, Term
from spiritseg.losses.mimicry import LOSS as _MIMICRY
from spiritseg.losses.mimicry import Mimicry, mimicry
from spiritseg.losses.pairwise import LOSS as _PAIRWISE
from spiritseg.losses.pairwise import Pairwise, pairwise
from spiritseg.losses.pixelwise import LOSS as _PIXELWISE
from spiritseg.losses.pixelwise import Pixelwise, pixelwise
from spiritseg.options import ProblemsError, build, without_nulls
from spiritseg.registry import Registry

__all__ = [
    "LOSSES",
    "Adversary",
    "Context",
    "CrossEntropy",
    "Holistic",
    "Loss",
    "Mimicry",
    "Outputs",
    "Pairwise",
    "Pixelwise",
    "Term",
    "critic_loss",
    "cross_entropy",
    "holistic",
    "maps_of",
    "mimicry",
    "pairwise",
    "pixelwise",
    "read_losses",
    "slope_penalty",
    "used_losses",
]

LOSSES: Registry[Loss] = Registry("loss", "spiritseg.losses", Loss)
for _name, _loss in {  # in this order their values are added up
    "cross_entropy": _CROSS_ENTROPY,
    "mimicry": _MIMICRY,
    "pixelwise": _PIXELWISE,
    "pairwise": _PAIRWISE,
    "holistic": _HOLISTIC,
}.items():
    LOSSES.register(_name, _loss)


def used_losses(losses: Mapping[str, Any]) -> Iterator[tuple[str, Loss, Any]]:
    """Yield name, entry and options of each loss of a stage."""
    for name, options in losses.items():
        yield name, LOSSES[name], options


def read_losses(value: Any) -> Any:
    """Build the options of a stage's losses.

    Args:
        value: Fields of the losses by name; a loss that is null is left out.

    Returns:
        Options by name, in the order of `LOSSES`, a user's own losses last.

    Raises:
        ProblemsError: All that is wrong, one line each.
    """
    if not isinstance(value, Mapping):
        return value
    found: dict[str, Any] = {}
    problems: list[str] = []
    for name, fields in without_nulls(value).items():
        try:
            kind = LOSSES[name].options
        except ConfigError as error:
            problems.append(f"{name}: {error}")
            continue
        found[name], wrong = build(kind, fields, name)
        problems += wrong
    if problems:
        raise ProblemsError(problems)
    order = list(LOSSES)
    last = len(order)
    places = {name: (order.index(name) if name in order else last, name) for name in found}
    return {name: found[name] for name in sorted(found, key=places.__getitem__)}
