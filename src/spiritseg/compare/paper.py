"""The results of Wu et al. (arXiv:2103.13733, Tables II and III), shown with the paper-* recipes.

The paper's images are Cityscapes-64 and its teacher is DeepLabV3-ResNet50 at 512 x 1024: its
numbers are no baseline for other images. A dash stands for a number that is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DASH", "PaperRow", "is_paper", "method_of", "paper_row"]

DASH = "–"


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper."""

    gflops: str = DASH  # at 1 x 3 x 512 x 1024
    params: str = DASH  # millions
    miou: str = DASH  # percent
    hp_acc: str = DASH  # percent
    var: str = DASH  # thousandths


_STUDENT = ("169.4", "9.5")  # S, SD and ESD are one network, trained differently
_ROWS = {
    "paper-ct": PaperRow("405.7", "23.6", "58.9 to 62.6"),  # without and with fine-tuning
    "paper-baseline": PaperRow(*_STUDENT, "81.7", "81.2", "5.77"),
    "paper-sd": PaperRow(*_STUDENT, "83.5", "84.6", "5.70"),
    "paper-esd": PaperRow(*_STUDENT),
}
_ESD = {  # by r = |Dt| : |Dp|
    0.5: PaperRow(*_STUDENT, "83.3", "89.2", "4.71"),
    0: PaperRow(*_STUDENT, "83.1", "89.4", "4.51"),
}


def is_paper(recipe: str) -> bool:
    """Return whether a recipe has the paper's own networks."""
    return recipe in _ROWS


def paper_row(recipe: str, ratio: float | None) -> PaperRow:
    """Return the paper's numbers for one of its recipes, at r = |Dt| : |Dp|; else dashes."""
    row = _ROWS.get(recipe, PaperRow())
    return _ESD.get(ratio, row) if recipe == "paper-esd" and ratio is not None else row


def method_of(recipe: str) -> str:
    """Return a recipe's method, whichever networks it is for: sd for sd and paper-sd."""
    return recipe.removeprefix("paper-")
