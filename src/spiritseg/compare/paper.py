"""What the paper reports (Wu et al., arXiv:2103.13733, Tables II and III), to stand beside ours.

Only figures that are certain are here; a None is shown as a dash. Its target is Cityscapes-64,
its teacher DeepLabV3-ResNet50: the numbers are no baseline for other images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["TABLE_II", "TABLE_III", "PaperRow", "method_of", "stands_beside"]

_METHODS = ("baseline", "ct", "sd", "esd")
_OWN = {f"paper-{method}": method for method in _METHODS}  # with the paper's own networks


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper.

    Args:
        gflops: at 1 x 3 x 512 x 1024.
        params: in millions.
        miou: mIOU in percent, as printed.
        hp_acc: HP-Acc in percent.
        var: Var in thousandths.
    """

    gflops: float | None = None
    params: float | None = None
    miou: str | None = None
    hp_acc: float | None = None
    var: float | None = None


_S = (169.4, 9.5)  # S and SD are one network, trained differently

# By method.
TABLE_II: dict[str, PaperRow] = {
    "ct": PaperRow(405.7, 23.6, "58.9 to 62.6"),  # with and without fine-tuning
    "baseline": PaperRow(*_S, "81.7", 81.2, 5.77),
    "sd": PaperRow(*_S, "83.5", 84.6, 5.70),
}

# By r = |Dt| : |Dp|; the paper's sweep.
TABLE_III: dict[float, PaperRow] = {
    10: PaperRow(),
    5: PaperRow(),
    3: PaperRow(),
    1: PaperRow(),
    0.5: PaperRow(miou="83.3", hp_acc=89.2, var=4.71),
    0.2: PaperRow(),
    0: PaperRow(miou="83.1", hp_acc=89.4, var=4.51),
}


def method_of(recipe: str) -> str:
    """Return a recipe's method, whichever networks it is for: paper-sd's is sd, as sd's own."""
    return _OWN.get(recipe, recipe)


def stands_beside(recipes: Iterable[str]) -> dict[str, str]:
    """Say beside which recipes the paper's numbers stand.

    The rule: beside the paper-* recipes, whose networks are the paper's, where any of them was
    run; else beside the recipes of the same methods.

    Args:
        recipes: that were run.

    Returns:
        The methods by recipe, such as sd by paper-sd.
    """
    return _OWN if _OWN.keys() & set(recipes) else {method: method for method in _METHODS}
