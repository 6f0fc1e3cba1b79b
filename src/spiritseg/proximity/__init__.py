"""Which unlabelled images are close to the target: Frechet distances between teacher features."""

from __future__ import annotations

from spiritseg.proximity.figure import draw
from spiritseg.proximity.measure import proximity
from spiritseg.proximity.ranking import Candidate, Ranking

__all__ = ["Candidate", "Ranking", "draw", "proximity"]
