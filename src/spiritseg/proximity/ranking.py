"""A ranking of folders of unlabelled images: figures, advice, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass, field

from spiritseg.errors import listed
from spiritseg.proximity.frechet import Estimate
from spiritseg.tables import Table, table_text

__all__ = ["Candidate", "Ranking"]

_FAR = 0.25  # of the reference's variance: another kind of picture


@dataclass(frozen=True)
class Candidate:
    """One folder of unlabelled images, measured.

    Args:
        name: name of the folder.
        images: how many of its images were measured.
        distance: squared Frechet distance of its features to the reference's, corrected, as a
            share of the reference's variance over positions.
        diversity: variance between its images over that between the target's; above 1 it is
            more varied.
        gain: with `toward`: by how much mixing it in brings the target closer, in the same unit.
        shared: images that were left out since they are the target's own.
    """

    name: str
    images: int
    distance: Estimate
    diversity: float
    gain: Estimate | None = None
    shared: int = 0

    @property
    def helps(self) -> bool:
        """Whether its gain, if there is one, is positive beyond the noise."""
        return self.gain is not None and self.gain.value > 0 and self.gain.beyond_noise

    @property
    def is_new(self) -> bool:
        """Whether its distance to the reference is positive beyond the noise."""
        return self.distance.value > 0 and self.distance.beyond_noise


@dataclass(frozen=True, repr=False)
class Ranking:
    """Folders by their distance to the reference, the closest first; it prints as text.

    Args:
        reference: the folder that distances are measured from.
        images: how many of its images were measured.
        candidates: the measured folders.
        apart: how much farther each is than the one before it; one fewer.
        target: with `toward`: the distance of the target itself.
        skipped: unreadable files that were left out.
    """

    reference: str
    images: int
    candidates: list[Candidate]
    apart: list[Estimate]
    target: Estimate | None = None
    skipped: list[str] = field(default_factory=list)

    @property
    def best(self) -> Candidate | None:
        """The folder that is most likely to help; None where none is."""
        if self.target is not None:
            helping = [one for one in self.candidates if one.helps]
            return max(helping, key=lambda c: c.gain.value if c.gain else 0.0, default=None)
        close = [c for c in self.candidates if c.distance.value < _FAR and c.is_new]
        return close[0] if close else None

    def advice(self, one: Candidate) -> str:
        """Return a candidate's meaning in words."""
        best = one is self.best
        if one.gain is not None:
            if one.helps:
                return "likely to help" if best else "may help"
            worse = one.gain.beyond_noise
            return "leads away: not likely to help" if worse else "no gain beyond the noise"
        if one.distance.value >= _FAR:
            return "another kind of picture: not likely to help"
        if not one.is_new:
            return "more of the same: cannot be told from the target"
        if one.diversity > 1:
            return f"similar, and more varied{': likely to help' if best else ''}"
        return "similar, but less varied"

    def table(self) -> Table:
        """Tabulate distances and gains in percent of the reference's variance, with 95 %."""
        gains = self.target is not None
        table = [["folder", "images", "distance %", "diversity", *(["gain %"] if gains else [])]]
        if self.target is not None:
            table.append(["(the target alone)", "", str(self.target), "1.00", ""])
        for one in self.candidates:
            row = [one.name, str(one.images), str(one.distance), f"{one.diversity:.2f}"]
            table.append(row + ([str(one.gain)] if gains else []))
        return table

    def summary(self) -> str:
        """Return what the ranking means, and which differences are beyond the noise."""
        lines = []
        for one in self.candidates:
            own = f"; {one.shared} images left out, they are the target's own" if one.shared else ""
            lines.append(f"{one.name}: {self.advice(one)}{own}")
        pairs = zip(self.candidates, self.candidates[1:], self.apart, strict=False)
        for near, far, apart in pairs:
            relation = "farther than" if apart.beyond_noise else "not distinguishable from"
            lines.append(f"{far.name} is {relation} {near.name} ({apart} %)")
        if self.best is not None:
            lines.append(f"most likely to help: {self.best.name}")
        elif self.target is not None:
            lines.append("no folder brings the target closer, beyond the noise")
        else:
            lines.append("no folder is close to the target and new to it")
        if self.target is None:
            lines.append(
                "Distances are to the labelled images. If the student will run elsewhere, give "
                "unlabelled images of that place: --toward DIR."
            )
        if self.skipped:
            lines.append(f"{len(self.skipped)} unreadable files were left out:")
            lines.append(listed(self.skipped))
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{table_text(self.table())}\n{self.summary()}"

    __repr__ = __str__
