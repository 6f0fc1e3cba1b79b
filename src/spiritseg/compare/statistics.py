"""Is a difference more than luck? The bootstrap, paired by image and by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spiritseg.compare.sequences import EQUAL, LEAST_UNITS, block_length, sequence_of, units_of
from spiritseg.errors import DataError, MissingExtraError

__all__ = ["ALPHA", "LEAST_SEEDS", "RESAMPLES", "Difference", "compare_all", "paired_difference"]

Floats = NDArray[np.float64]
Metric = Literal["mIOU", "HP-Acc", "Var"]

METRICS: tuple[Metric, ...] = ("mIOU", "HP-Acc", "Var")
ALPHA = 0.05
LEAST_SEEDS = 5
RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """A recipe's difference from a reference, with its uncertainty.

    The metric is in [0, 1]; `value` is the mean over seeds of (recipe - reference), `low` to `high`
    its 95 % confidence interval.
    """

    name: str  # of the recipe
    metric: Metric
    value: float
    seeds: int
    reference_seeds: int
    images: int  # that all have
    units: int  # sequences, or blocks of them, that were resampled
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan  # two-sided
    p_holm: float = math.nan  # after Holm's correction over the recipes
    df: float = math.nan  # degrees of freedom of the interval

    @property
    def verdict(self) -> str:
        """What the difference shows, such as significant gain or too few seeds."""
        if min(self.seeds, self.reference_seeds) < LEAST_SEEDS:
            return "too few seeds"
        if self.images < LEAST_UNITS:
            return "too few images"
        if self.units < LEAST_UNITS:
            return "too few independent images"
        if math.isnan(self.p_holm):
            return "no verdict"
        if self.low == self.high == 0:
            return "no difference"
        if self.p_holm >= ALPHA:
            return "no significant gain"
        better = self.value < 0 if self.metric == "Var" else self.value > 0
        return "significant gain" if better else "significant loss"

    @property
    def sentence(self) -> str:
        """The difference, its interval and the verdict in words."""
        factor, unit = (1000, "e-3") if self.metric == "Var" else (100, "points")
        words = f"{self.name}: {self.metric} {factor * self.value:+.1f} {unit}"
        if math.isfinite(self.low):
            words += f" [{factor * self.low:+.1f}, {factor * self.high:+.1f}]"
        fewest = min(self.seeds, self.reference_seeds)
        needed = {
            "too few seeds": f"{fewest} of the {LEAST_SEEDS}",
            "too few images": f"{self.images} of the {LEAST_UNITS}",
            "too few independent images": f"{self.units} of the {LEAST_UNITS} blocks of frames",
        }
        if self.verdict in needed:
            return f"{words}: {self.verdict} ({needed[self.verdict]} that a verdict needs)."
        if self.verdict == "no verdict":
            return f"{words}: no verdict (its p-value is not a number)."
        p = "< 0.001" if self.p_holm < 0.001 else f"= {self.p_holm:.3f}"
        return f"{words}, p {p} after Holm's correction: {self.verdict}."


def paired_difference(
    recipe: Floats,
    reference: Floats,
    units: Sequence[str],
    metric: Metric,
    threshold: float = 0.75,
    name: str = "recipe",
    resamples: int = RESAMPLES,
    seed: int = 0,
    seeds_paired: bool = True,
) -> Difference:
    r"""Estimate the difference of two recipes, paired by image and, if they share them, by seed.

    .. math:: \hat\theta = \bar m(x) - \bar m(y), \quad
        V = \sum_i \frac{S_i}{S_i - 1} V^*_{S,i} + \frac{1}{1 - \sum_u w_u^2} V^*_U, \quad
        \hat\theta \pm t_{\nu} \sqrt{V}

    The means are over seeds. V*_{S,i} is the variance of the estimate over bootstrap resamples of
    the seeds: of the differences m(x_s) - m(y_s) where seeds are paired, else of m(x_s) and of
    m(y_s) separately. V*_U is that over resamples of the units (sequences with all their frames,
    the same for all seeds); w_u is a unit's share of the images. The degrees of freedom are
    Satterthwaite's, nu = V^2 / (sum V_{S,i}^2 / (S_i - 1) + V_U^2 / (U' - 1)),
    U' = 1 / sum w_u^2.

    One percentile bootstrap over seeds and units is far too short with five seeds: it rejects
    10 to 15 % of planted nulls at a nominal 5 %, this procedure 4 to 7 % (1000 trials each). Of
    two drives cut into blocks it describes these drives only. Blocks are lengthened by the
    autocorrelation of the frames (`block_length`): with AR(1) differences at 0, 0.5, 0.9 and 0.97
    it rejects 5.0, 5.5, 0.4 and 0.2 % and gives no verdict on 0, 8, 98 and 99.7 %. Its limit is a
    slow correlation (0.97) below three times as much noise: 16 % rejected.

    Args:
        recipe: (S, n) finite mIOU of each image under each seed.
        reference: (S', n), the same images; the same seeds in the same order if paired.
        units: Units of the n images, from `units_of`.
        metric: mIOU, HP-Acc or Var.
        threshold: Threshold of HP-Acc.
        name: Name of the recipe.
        resamples: Number of bootstrap resamples of each kind.
        seed: Random seed of the resampling.
        seeds_paired: Whether row s of both is the same seed.

    Returns:
        The difference; with one seed on a side, or one unit, its interval and p-value are NaN.
        Equal results have the interval [0, 0] and p = 1.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    of = np.unique(np.asarray(units), return_inverse=True)[1]
    count, images = int(of.max()) + 1, recipe.shape[1]
    ones = np.ones((1, count))
    left, right = (_values(x, of, ones, metric, threshold)[0] for x in (recipe, reference))
    value = float(left.mean() - right.mean())
    found = Difference(name, metric, value, len(recipe), len(reference), images, count)
    samples = [left - right] if seeds_paired else [left, right]
    if min(map(len, samples)) < 2 or count < 2:
        return found
    generator = np.random.default_rng(seed)
    parts = [(_variance_of_mean(x, resamples, generator), len(x) - 1.0) for x in samples]
    weights = generator.multinomial(count, np.full(count, 1 / count), resamples).astype(float)
    of_units = _values(recipe, of, weights, metric, threshold).mean(1)
    of_units -= _values(reference, of, weights, metric, threshold).mean(1)
    concentration = float(((np.bincount(of) / images) ** 2).sum())
    parts.append((float(of_units.var()) / (1 - concentration), 1 / concentration - 1))
    total = sum(variance for variance, _ in parts)
    if total <= EQUAL**2:  # the same difference everywhere, such as none
        value = 0.0 if abs(value) < EQUAL else value
        p = float(value == 0)
        return replace(found, value=value, low=value, high=value, p=p, p_holm=p)
    df = total**2 / sum(variance**2 / freedom for variance, freedom in parts)
    half, p = _t_test(value, total**0.5, df)
    return replace(found, low=value - half, high=value + half, p=p, p_holm=p, df=df)


def _variance_of_mean(sample: Floats, resamples: int, generator: np.random.Generator) -> float:
    """Return the variance of a sample's mean over bootstrap resamples, bias-corrected."""
    size = len(sample)
    drawn = generator.multinomial(size, np.full(size, 1 / size), resamples) / size
    return float((drawn @ sample).var()) * size / (size - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values to keep the level of the chance of any false alarm (Holm, 1979).

    The k-th smallest of m is multiplied by m - k + 1, and none may be below a smaller one's.
    NaN stays NaN and is not counted.
    """
    given = np.array(p_values, float)
    order = np.argsort(given)  # NaN comes last
    factors = np.isfinite(given).sum() - np.arange(len(given))
    adjusted = np.empty_like(given)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, factors * given[order]))
    return list(adjusted.tolist())


def compare_all(
    rows: Mapping[str, Mapping[int, Mapping[str, float]]],
    reference: str,
    threshold: float = 0.75,
    resamples: int = RESAMPLES,
) -> list[Difference]:
    """Compare each recipe with a reference in mIOU, HP-Acc and Var; correct over the recipes.

    Seeds are paired where a recipe and the reference have the same ones. Where one of them has
    more, all are used, unpaired: extra seeds of a cheap reference make the interval shorter.

    Args:
        rows: Finite mIOU by recipe, by seed, by image name.
        reference: Recipe that the others are compared with.
        threshold: Threshold of HP-Acc.
        resamples: Number of bootstrap resamples.

    Returns:
        For each metric, each recipe except the reference.

    Raises:
        DataError: A recipe has no images in common with the reference.
    """
    found: list[Difference] = []
    for metric in METRICS:
        family = [
            _compare_one(rows[name], rows[reference], name, metric, threshold, resamples)
            for name in rows
            if name != reference
        ]
        adjusted = holm([one.p for one in family])
        found += [replace(one, p_holm=p) for one, p in zip(family, adjusted, strict=True)]
    return found


def _compare_one(
    recipe: Mapping[int, Mapping[str, float]],
    reference: Mapping[int, Mapping[str, float]],
    name: str,
    metric: Metric,
    threshold: float,
    resamples: int,
) -> Difference:
    sides = (recipe, reference)
    names = sorted(set.intersection(*(set(images) for side in sides for images in side.values())))
    if not names:
        raise DataError(f"statistics: {name} and its reference were measured on different images.")
    left, right = (
        np.array([[side[seed][image] for image in names] for seed in sorted(side)])
        for side in sides
    )
    units = _independent_units(names, left, right, metric, threshold)
    paired = recipe.keys() == reference.keys()
    return paired_difference(
        left, right, units, metric, threshold, name, resamples, seeds_paired=paired
    )


def _independent_units(
    names: Sequence[str], recipe: Floats, reference: Floats, metric: Metric, threshold: float
) -> list[str]:
    """Cut few sequences into blocks that are long enough for a metric, and for mIOU.

    A slow correlation is harder to see in HP-Acc, whose images are 0 or 1, than in mIOU.
    """
    if len(set(map(sequence_of, names))) >= LEAST_UNITS:
        return units_of(names)
    contributions = (
        _per_image(recipe, one, threshold) - _per_image(reference, one, threshold)
        for one in ("mIOU", metric)
    )
    return units_of(names, max(block_length(names, one) for one in contributions))


def _per_image(values: Floats, metric: Metric, threshold: float) -> Floats:
    """Return the contribution of each image to a metric, mean over seeds: (S, n) to (n,)."""
    if metric == "HP-Acc":
        values = (values > threshold).astype(float)
    elif metric == "Var":
        values = (values - values.mean(1, keepdims=True)) ** 2
    mean: Floats = values.mean(0)
    return mean


def _values(
    per_image: Floats, of: NDArray[np.intp], weights: Floats, metric: Metric, threshold: float
) -> Floats:
    """Compute a metric on resamples of the units: (R, U) weights to (R, S) values."""
    centre = per_image.mean()  # keeps the variance's subtraction exact
    x = (per_image > threshold).astype(float) if metric == "HP-Acc" else per_image - centre
    units = weights.shape[1]
    size = weights @ np.bincount(of, minlength=units)
    first = _sums(x, of, units)
    mean: Floats = (weights @ first) / size[:, None]
    if metric == "HP-Acc":
        return mean
    if metric == "mIOU":
        mean += centre
        return mean
    square: Floats = (weights @ _sums(x**2, of, units)) / size[:, None]
    variance: Floats = square - mean**2
    return variance


def _sums(x: Floats, of: NDArray[np.intp], units: int) -> Floats:
    """Sum (S, n) over the images of each unit: (U, S)."""
    return np.stack([np.bincount(of, weights=row, minlength=units) for row in x], 1)


def _t_test(value: float, error: float, df: float) -> tuple[float, float]:
    """Return half the width of Student's interval, and the two-sided p-value."""
    try:
        from scipy.special import stdtr, stdtrit
    except ImportError:
        raise MissingExtraError(
            "the statistics need scipy: pip install 'spiritseg[report]'."
        ) from None
    half = float(stdtrit(df, 1 - ALPHA / 2)) * error
    return half, float(2 * stdtr(df, -abs(value) / error))
