"""A ranking of folders of unlabelled images: figures, advice, and how it is shown."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

from spiritseg.errors import listed
from spiritseg.files import write_atomically
from spiritseg.proximity.frechet import Estimate
from spiritseg.tables import Table, table_text

__all__ = ["Candidate", "Ranking", "draw"]

_FAR = 0.25  # of the reference's variance: another kind of picture


@dataclass(frozen=True)
class Candidate:
    """One folder of unlabelled images, measured.

    Args:
        name: Name of the folder.
        images: Number of its images that were measured.
        distance: Squared Frechet distance of its features to the reference's, corrected, as a
            share of the reference's variance over positions.
        diversity: Variance between its images over that between the target's.
        gain: With `toward`: by how much mixing it in brings the target closer, in the same unit.
        shared: Number of images left out because they are the target's own.
    """

    name: str
    images: int
    distance: Estimate
    diversity: float
    gain: Estimate | None = None
    shared: int = 0


@dataclass(frozen=True, repr=False)
class Ranking:
    """Folders by their distance to the reference, the closest first; it prints as text.

    Args:
        reference: Folder that distances are measured from.
        images: Number of its images that were measured.
        candidates: The measured folders.
        target: With `toward`: distance of the target itself.
        skipped: Unreadable files that were left out.
    """

    reference: str
    images: int
    candidates: list[Candidate]
    target: Estimate | None = None
    skipped: list[str] = field(default_factory=list)

    @property
    def best(self) -> Candidate | None:
        """The folder that is most likely to help; None where none is."""
        if self.target is None:
            close = [c for c in self.candidates if c.distance.value < _FAR and c.distance.positive]
            return close[0] if close else None
        helping = [(c.gain.value, c) for c in self.candidates if c.gain and c.gain.positive]
        return max(helping, key=lambda pair: pair[0])[1] if helping else None

    def advice(self, one: Candidate) -> str:
        """Return a candidate's meaning in words."""
        best = one is self.best
        if one.gain is not None:
            if one.gain.positive:
                return "likely to help" if best else "may help"
            worse = one.gain.beyond_noise
            return "leads away: not likely to help" if worse else "no gain beyond the noise"
        if one.distance.value >= _FAR:
            return "another kind of picture: not likely to help"
        if not one.distance.positive:
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
        """Return what the ranking means."""
        lines = []
        for one in self.candidates:
            own = f"; {one.shared} images left out, they are the target's own" if one.shared else ""
            lines.append(f"{one.name}: {self.advice(one)}{own}")
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


def draw(ranking: Ranking, path: str | Path) -> None:
    """Draw the candidates' distances with 95 % intervals.

    Args:
        ranking: From `proximity`.
        path: Image file, such as proximity.png; it is written atomically.
    """
    from matplotlib.figure import Figure

    found = ranking.candidates
    figure = Figure(figsize=(8, 1.7 + 0.42 * len(found)), layout="constrained")
    axis = figure.subplots()
    centres = [100 * one.distance.value for one in found]
    errors = [196 * one.distance.error for one in found]
    axis.errorbar(centres, range(len(found)), xerr=errors, fmt="o", color="#0072B2", capsize=3)
    if ranking.target is not None:
        axis.axvline(100 * ranking.target.value, color="#666666", ls="--", label="the target alone")
        axis.legend(frameon=False)
    axis.set_yticks(range(len(found)), [f"{one.name[-34:]} ({one.images})" for one in found])
    axis.set_ylim(len(found) - 0.4, -0.6)  # the closest on top
    axis.set_xlabel(f"distance to {ranking.reference[-34:]} (% of its variance), 95 %")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix.lstrip(".") or "png", dpi=140)
    write_atomically(Path(path), buffer.getvalue())
