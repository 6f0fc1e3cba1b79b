"""Is a difference more than luck? Paired by image, and by seed, by the bootstrap."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spiritseg.errors import DataError, MissingExtraError

__all__ = [
    "ALPHA",
    "LEAST_SEEDS",
    "METRICS",
    "Difference",
    "autocorrelation_time",
    "block_length",
    "compare_all",
    "holm",
    "paired_difference",
    "sequence_of",
    "units_of",
]

Floats = NDArray[np.float64]
Metric = Literal["mIOU", "HP-Acc", "Var"]

METRICS: tuple[Metric, ...] = ("mIOU", "HP-Acc", "Var")
ALPHA = 0.05
LEAST_SEEDS = 5
LEAST_UNITS = 10  # sequences; fewer are cut into blocks of consecutive frames
RESAMPLES = 10_000
_TIMES = 2.5  # length of a block, in autocorrelation times above 1
_EQUAL = 1e-9  # results that differ by less are equal, up to rounding

_WORD = r"(?:f|fr|frm|frames?|im|img|images?|pic|picture|photo)"
_NUMBERED = re.compile(r"(.+)_[a-z]?\d+", re.IGNORECASE)
_WORDED = re.compile(rf"(.+)[-_. ]{_WORD}[-_. ]?\d+", re.IGNORECASE)
# Not 2024-05-17, nor 12-30-01: what stands before the dash has a letter.
_DASHED = re.compile(rf"(?!{_WORD}-\d+$)(.*[a-z][^-_. ]*)-\d+", re.IGNORECASE)
_HASHED = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4,})+")  # BDD100K, UUIDs: no number of a frame


@dataclass(frozen=True)
class Difference:
    """A recipe's difference to a reference, with its uncertainty.

    Args:
        name: the recipe's.
        metric: mIOU, HP-Acc or Var, all in [0, 1].
        value: mean over seeds of (recipe - reference), in [-1, 1].
        low: lower end of the 95 % confidence interval.
        high: its upper end.
        p: two-sided p-value of no difference.
        p_holm: the same after Holm's correction over the recipes; p itself for a single recipe.
        seeds: of the recipe.
        reference_seeds: of the reference; the seeds are paired if both have the same.
        images: images that all have.
        units: sequences, or blocks of them, that were resampled.
        df: degrees of freedom of the interval.
    """

    name: str
    metric: Metric
    value: float
    low: float
    high: float
    p: float
    p_holm: float
    seeds: int
    reference_seeds: int
    images: int
    units: int
    df: float

    @property
    def verdict(self) -> str:
        """What the difference shows.

        One of: significant gain, significant loss, no significant gain, no difference (equal
        results), too few seeds, too few images, too few independent images (too few blocks of
        frames that are long enough), no verdict (a p-value of NaN).
        """
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
        said = f"{self.name}: {self.metric} {factor * self.value:+.1f} {unit}"
        if np.isfinite(self.low):
            said += f" [{factor * self.low:+.1f}, {factor * self.high:+.1f}]"
        fewest = min(self.seeds, self.reference_seeds)
        reasons = {
            "too few seeds": f"{fewest} of the {LEAST_SEEDS} that a verdict needs",
            "too few images": f"{self.images} of the {LEAST_UNITS} that a verdict needs",
            "too few independent images": f"{self.units} of the {LEAST_UNITS} blocks of frames "
            "that a verdict needs",
            "no verdict": "its p-value is not a number",
        }
        if self.verdict in reasons:
            return f"{said}: {self.verdict} ({reasons[self.verdict]})."
        return f"{said}, p {_p(self.p_holm)} after Holm's correction: {self.verdict}."


@lru_cache(1 << 16)
def sequence_of(name: str) -> str:
    """Return the drive that an image belongs to; frames of one drive are not independent.

    The rule: the path's stem without Cityscapes' ending; what stands before its frame number,
    with the folder. The frame number is what follows the last ``_`` (a letter may stand before
    the digits), a word such as ``_frame`` or ``-img``, or the last ``-`` after a name with a
    letter (so that dates and times are none). Without a frame number it is the folder alone.

    ==================================================  ==============================
    ``test/Seq05VD_f00000.png`` (CamVid)                ``test/Seq05VD``
    ``munster/munster_000001_000019_leftImg8bit.png``   ``munster/munster_000001``
    ``drive01_frame0001.jpg``, ``drive01-000123.jpg``   ``drive01``
    ``holiday/0001.jpg``, ``holiday/2024-05-17.jpg``    ``holiday``
    ==================================================  ==============================

    Args:
        name: path of the image below its data set's root.
    """
    path = PurePosixPath(name)
    folder = "" if str(path.parent) == "." else str(path.parent)
    stem = path.stem.removesuffix("_leftImg8bit")
    found = _NUMBERED.fullmatch(stem) or _WORDED.fullmatch(stem)
    if found is None and not _HASHED.fullmatch(stem):
        found = _DASHED.fullmatch(stem)
    if found is None:
        return folder
    return f"{folder}/{found[1]}" if folder else found[1]


def units_of(names: Sequence[str], length: float = 1, least: int = LEAST_UNITS) -> list[str]:
    """Say which resampling unit each image belongs to.

    Units are the sequences. Where there are fewer than `least`, each is cut into blocks of
    consecutive frames, `least` in all: the uncertainty then speaks of other frames of these
    drives, not of other drives. No block is shorter than `length`; where that allows too few
    blocks, there are fewer.

    Args:
        names: paths of the images.
        length: of a block at the least, in frames, from `block_length`.
        least: how many units there should be.

    Returns:
        A unit's name for each image, in the order of `names`.
    """
    drives = _drives(names)
    if len(drives) >= least:
        return [sequence_of(name) for name in names]
    units = [""] * len(names)
    blocks = _blocks([len(rows) for rows in drives.values()], length, least)
    for (sequence, rows), count in zip(drives.items(), blocks, strict=True):
        for place, row in enumerate(rows):
            units[row] = f"{sequence} block {place * count // len(rows) + 1}"
    return units


def _drives(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the places of each sequence's images in `names`, in the order of the frames."""
    drives: dict[str, list[int]] = {}
    for row in sorted(range(len(names)), key=lambda row: _frame_order(names[row])):
        drives.setdefault(sequence_of(names[row]), []).append(row)
    return drives


def _frame_order(name: str) -> tuple[list[str | int], str]:
    """Order names by their numbers: frame 9 comes before frame 10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def _blocks(sizes: Sequence[int], length: float, least: int) -> list[int]:
    """Say into how many blocks each sequence is cut: the longest blocks are cut first."""
    counts = [1] * len(sizes)
    while sum(counts) < least:
        long = [i for i, size in enumerate(sizes) if size // (counts[i] + 1) >= length]
        if not long:
            break
        counts[max(long, key=lambda i: sizes[i] / counts[i])] += 1
    return counts


def block_length(names: Sequence[str], differences: Floats) -> float:
    r"""Return the length from which on blocks of frames are nearly independent.

    .. math:: 1 + 2.5 (\hat\tau - 1)

    tau is the autocorrelation time of the differences within the sequences, at lags of up to a
    tenth of the images. The factor is from simulations (`paired_difference`).

    Args:
        names: paths of the n images.
        differences: (n,) what each image adds to the difference of recipe and reference.

    Returns:
        A number of frames, at least 1.
    """
    series = [differences[rows] for rows in _drives(names).values()]
    return 1 + _TIMES * (autocorrelation_time(series, len(names) // LEAST_UNITS) - 1)


def autocorrelation_time(series: Sequence[Floats], lags: int) -> float:
    r"""Estimate the integrated autocorrelation time from above.

    A mean over n frames varies as one over n / tau independent frames.

    .. math:: \hat\tau = \max_{M \le L} \Bigl(1 + 2 \sum_{k=1}^{M} \hat\rho_k\Bigr)
        \Bigl(1 + \frac{(2 M + 1) D}{n}\Bigr) \Bigl(1 + \sqrt{\frac{2 (2 M + 1)}{n}}\Bigr)

    rho_k is the autocorrelation at lag k, pooled over the D series, each about its own mean. The
    second factor corrects for the estimated means (Wolff, Comput. Phys. Commun. 156, 2004, for
    D = 1); the third adds a standard error (Madras and Sokal, J. Stat. Phys. 50, 1988). Unlike
    there, the window is the one with the largest estimate: in a short drive, a slow correlation
    below much noise is easily missed, and blocks that are too short reject too often.

    Args:
        series: differences of consecutive frames, n in all.
        lags: L, the longest window.

    Returns:
        tau in frames, at least 1; 1 for constant series.
    """
    centred = [one - one.mean() for one in series if len(one) > 1]
    count = sum(map(len, centred))
    power = sum(float(one @ one) for one in centred)
    if power <= count * _EQUAL**2:
        return 1.0
    longest, total = 1.0, 1.0
    for lag in range(1, lags + 1):
        total += 2 * sum(float(one[lag:] @ one[:-lag]) for one in centred) / power
        width = (2 * lag + 1) / count
        longest = max(longest, total * (1 + width * len(centred)) * (1 + math.sqrt(2 * width)))
    return longest


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
    r"""Estimate the difference of two recipes, paired by image and, where they share them, by seed.

    .. math:: \hat\theta = \bar m(x) - \bar m(y), \quad
        V = \sum_i \frac{S_i}{S_i - 1} V^*_{S,i} + \frac{1}{1 - \sum_u w_u^2} V^*_U, \quad
        \hat\theta \pm t_{\nu} \sqrt{V}

    The means are over seeds. V*_{S,i} is the variance of the estimate over bootstrap resamples of
    the seeds: of the one sample of differences m(x_s) - m(y_s) where seeds are paired, of the two
    samples m(x_s) and m(y_s), each by itself, where they are not (an opponent that trains in a
    minute can have more of them). V*_U is that over resamples of the units (sequences of images,
    each with all its frames, all seeds alike); w_u is a unit's share of the images. Student's t
    takes Satterthwaite's degrees of freedom, nu = V^2 / (sum V_{S,i}^2 / (S_i - 1)
    + V_U^2 / (U' - 1)), U' = 1 / sum w_u^2.

    Why not the percentiles of one bootstrap that resamples both: with five seeds its interval is
    far too short. On planted nulls with five seeds and ten sequences of 8 to 40 frames, at a
    nominal 5 %, it rejects 15 % where seeds vary and 10 % where sequences do (20,000 trials).
    This procedure rejected mIOU's null in 6.7 % where seeds vary, 4.9 % where sequences do,
    4.4 % with both, and 1.2 % with noise between frames only, which both resamplings count; and
    some of three recipes after Holm's correction in 5.9, 4.1, 5.7 and 0.5 % (1000 trials each).
    HP-Acc's rates are 0 to 2 points lower. Unpaired, with 5 seeds against 20 of the same or
    another spread, 4.5 to 6.0 % of mIOU's nulls were rejected (0.9 % with noise between frames
    only; 1000 trials each). Two drives that are cut into blocks are another matter: where the
    drives themselves differ, 60 % of the nulls about *all* drives are rejected, so such an
    interval speaks of these drives only. In drives of 60 and 170 frames whose differences are
    AR(1) with 0, 0.5, 0.9 and 0.97, `compare_all` rejected 5.0, 5.5, 0.4 and 0.2 % of mIOU's
    nulls and left 0, 8, 98 and 99.7 % without a verdict, for want of independent blocks (1000
    trials each; ten blocks whatever the correlation: 4.7, 5.5, 11.7 and 25.9 % rejected). Its
    limit is a slow correlation below noise, which 230 frames do not always show: at 0.97, 6.5 %
    are rejected below noise of the same variance, and 16 % below three times as much.

    Args:
        recipe: (S, n) mIOU of each image under each seed.
        reference: (S', n), the same images; the same seeds in the same order if paired.
        units: of the n images, from `units_of`.
        metric: mIOU, HP-Acc or Var.
        threshold: of HP-Acc.
        name: the recipe's.
        resamples: bootstrap resamples of each kind.
        seed: of the resampling.
        seeds_paired: whether row s of both is the same seed.

    Returns:
        The difference; where a side has one seed, or with one unit, its interval and p-value are
        NaN. Equal results have the interval [0, 0] and p = 1.

    Raises:
        DataError: shapes that do not fit, no image, or a value that is NaN or infinite.
    """
    _check_sides(recipe, reference, len(units), name, seeds_paired)
    of = np.unique(np.asarray(units), return_inverse=True)[1]
    count = int(of.max()) + 1
    ones = np.ones((1, count))
    left, right = (_values(x, of, ones, metric, threshold)[0] for x in (recipe, reference))
    value = float(left.mean() - right.mean())
    empty = Difference(
        name=name,
        metric=metric,
        value=value,
        low=np.nan,
        high=np.nan,
        p=np.nan,
        p_holm=np.nan,
        seeds=len(recipe),
        reference_seeds=len(reference),
        images=recipe.shape[1],
        units=count,
        df=np.nan,
    )
    samples = [left - right] if seeds_paired else [left, right]
    if min(map(len, samples)) < 2 or count < 2:
        return empty
    generator = np.random.default_rng(seed)
    parts = [(_variance_of_mean(x, resamples, generator), len(x) - 1.0) for x in samples]
    weights = generator.multinomial(count, np.full(count, 1 / count), resamples).astype(float)
    of_units = _values(recipe, of, weights, metric, threshold).mean(1)
    of_units -= _values(reference, of, weights, metric, threshold).mean(1)
    concentration = float(((np.bincount(of) / recipe.shape[1]) ** 2).sum())
    parts.append((float(of_units.var()) / (1 - concentration), 1 / concentration - 1))
    total = sum(variance for variance, _ in parts)
    if total <= _EQUAL**2:  # one difference everywhere, such as none
        value = 0.0 if abs(value) < _EQUAL else value
        p = float(value == 0)
        return replace(empty, value=value, low=value, high=value, p=p, p_holm=p)
    df = total**2 / sum(variance**2 / freedom for variance, freedom in parts)
    half, p = _student(value, total**0.5, df)
    return replace(empty, low=value - half, high=value + half, p=p, p_holm=p, df=df)


def _check_sides(
    recipe: Floats, reference: Floats, images: int, name: str, seeds_paired: bool
) -> None:
    shapes_fit = recipe.ndim == reference.ndim == 2 and (
        recipe.shape[1] == reference.shape[1] == images
    )
    if not shapes_fit or (seeds_paired and len(recipe) != len(reference)):
        raise DataError(
            f"statistics: expected two arrays of (seeds, images) and {images} images, got "
            f"{recipe.shape} and {reference.shape}; compare the same seeds on the same images."
        )
    if 0 in (images, len(recipe), len(reference)):
        raise DataError(
            f"statistics: expected at least one seed and one image of {name} and its reference, "
            f"got {recipe.shape} and {reference.shape}; measure them on the test images first."
        )
    for side, values in ((name, recipe), (f"the reference of {name}", reference)):
        for row, image in np.argwhere(~np.isfinite(values))[:1]:
            raise _not_finite(f"{side}, seed {row}", f"{image}", values[row, image])


def _not_finite(side: str, image: str, value: float) -> DataError:
    return DataError(
        f"statistics: {side}: expected a finite mIOU of each image, got {value} for image {image}; "
        "measure that run again, or leave it out."
    )


def _variance_of_mean(sample: Floats, resamples: int, generator: np.random.Generator) -> float:
    """Return the variance of a sample's mean over bootstrap resamples, without its bias."""
    size = len(sample)
    drawn = generator.multinomial(size, np.full(size, 1 / size), resamples) / size
    return float((drawn @ sample).var()) * size / (size - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the chance of any false alarm among them keeps its level.

    Holm (1979): the k-th smallest of m is multiplied by m - k + 1, and none may be below a
    smaller one's. NaN stays NaN and is not counted.

    Args:
        p_values: of the recipes.

    Returns:
        The adjusted ones, in the same order.
    """
    adjusted = [float("nan")] * len(p_values)
    order = sorted((p, row) for row, p in enumerate(p_values) if not np.isnan(p))
    highest = 0.0
    for rank, (p, row) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[row] = highest
    return adjusted


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
        rows: by recipe, by seed, by image name: mIOU.
        reference: the recipe that the others are compared with.
        threshold: of HP-Acc.
        resamples: bootstrap resamples.

    Returns:
        For each metric, each recipe but the reference.

    Raises:
        DataError: a recipe without images or with none that the reference has, or a value that is
            NaN or infinite.
    """
    _check_rows(rows)
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


def _check_rows(rows: Mapping[str, Mapping[int, Mapping[str, float]]]) -> None:
    for name, seeds in rows.items():
        for seed, images in seeds.items():
            if not images:
                raise DataError(
                    f"statistics: {name}, seed {seed}: expected the mIOU of at least one image, "
                    "got none; measure that run on the test images, or leave it out."
                )
            for image, value in images.items():
                if not math.isfinite(value):
                    raise _not_finite(f"{name}, seed {seed}", image, value)


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
        raise DataError(f"statistics: {name} and its reference were measured on other images.")
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
    metrics: set[Metric] = {"mIOU", metric}
    lengths = [
        block_length(
            names, _per_image(recipe, one, threshold) - _per_image(reference, one, threshold)
        )
        for one in metrics
    ]
    return units_of(names, max(lengths))


def _per_image(values: Floats, metric: Metric, threshold: float) -> Floats:
    """Return what each image adds to a metric, mean over seeds: (S, n) to (n,)."""
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


def _student(value: float, error: float, df: float) -> tuple[float, float]:
    """Return half the interval's width, and the two-sided p-value."""
    try:
        from scipy.special import stdtr, stdtrit
    except ImportError:
        raise MissingExtraError(
            "the statistics need scipy: pip install 'spiritseg[report]'."
        ) from None
    half = float(stdtrit(df, 1 - ALPHA / 2)) * error
    return half, float(2 * stdtr(df, -abs(value) / error))


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
