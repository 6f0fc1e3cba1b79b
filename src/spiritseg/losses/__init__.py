"""The losses of SD, ESD and SKD: pure functions of tensors, one file a loss."""

from __future__ import annotations

from spiritseg.losses.holistic import critic_loss, holistic, maps_of, slope_penalty
from spiritseg.losses.mimicry import mimicry
from spiritseg.losses.pairwise import pairwise
from spiritseg.losses.pixelwise import pixelwise
from spiritseg.losses.supervised import cross_entropy

__all__ = [
    "critic_loss",
    "cross_entropy",
    "holistic",
    "maps_of",
    "mimicry",
    "pairwise",
    "pixelwise",
    "slope_penalty",
]
