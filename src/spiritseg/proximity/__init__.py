"""Which unlabelled images are near the target: Frechet distances between teacher features."""

from __future__ import annotations

from spiritseg.proximity.picture import draw
from spiritseg.proximity.rank import Candidate, Ranking, proximity

__all__ = ["Candidate", "Ranking", "draw", "proximity"]
