"""Statistics against scipy, naive loops, hand values, and planted nulls."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import signal, stats

from spiritseg.compare.sequences import autocorrelation_time, block_length, sequence_of, units_of
from spiritseg.compare.statistics import (
    METRICS,
    Difference,
    _compare_one,
    _values,
    compare_all,
    holm,
    paired_difference,
)
from spiritseg.errors import DataError

UNITS = [f"unit {i // 4}" for i in range(40)]
CITYSCAPES = "leftImg8bit/val/munster/munster_000001_000019_leftImg8bit.png"


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        ("test/0001TP_008550.jpg", "test/0001TP"),
        ("test/Seq05VD_f00000.png", "test/Seq05VD"),
        (CITYSCAPES, "leftImg8bit/val/munster/munster_000001"),
        ("images/holiday/0001.jpg", "images/holiday"),
        ("3.png", ""),
        ("test/DRIVE_frame0001.jpg", "test/DRIVE"),
        ("drive01-000123.jpg", "drive01"),
        ("drive 01 Frame 12.jpg", "drive 01"),
        ("drive01.img7.png", "drive01"),
        ("a/b-city-image-003.png", "a/b-city"),
        ("a/2011_09_26_drive_0001_0000000005.png", "a/2011_09_26_drive_0001"),
        ("a/drive01_frame_0001.jpg", "a/drive01_frame"),
        # The folder, where a dash stands in a date, a time or a hash.
        ("a/2024-05-17.jpg", "a"),
        ("a/cam-2024-05-17_12-30-01.jpg", "a"),
        ("a/frame-0001.jpg", "a"),
        ("val/b1c66a42-12345678.jpg", "val"),
        ("val/550e8400-e29b-41d4-a716-446655440000.jpg", "val"),
    ],
)
def test_sequence_of(name: str, sequence: str) -> None:
    assert sequence_of(name) == sequence


def test_few_sequences_are_cut_into_blocks_of_consecutive_frames() -> None:
    names = [f"t/a_{i:03d}.png" for i in range(62)] + [f"t/b_{i:03d}.png" for i in range(171)]
    units = units_of(names)
    assert len(set(units)) == 10
    starts = [i for i in range(1, len(units)) if units[i] != units[i - 1]]
    assert len(starts) == 9  # each block is one run of frames
    assert 62 in starts  # and none spans two sequences
    shuffled = np.random.default_rng(0).permutation(len(names))
    assert units_of([names[i] for i in shuffled]) == [units[i] for i in shuffled]
    units = units_of([f"t/a_frame{i}.png" for i in range(1, 61)])  # 9 comes before 10
    assert sum(a != b for a, b in itertools.pairwise(units)) == 9


def test_blocks_are_as_long_as_asked_or_fewer() -> None:
    names = [f"t/a_{i:03d}.png" for i in range(62)] + [f"t/b_{i:03d}.png" for i in range(171)]
    for length, blocks in ((1, 10), (20, 10), (22, 9), (60, 3), (100, 2)):
        sizes = Counter(units_of(names, length))
        assert len(sizes) == blocks
        assert min(sizes.values()) >= min(length, 62)
    equal = [f"t/{q}_{i:03d}.png" for q in range(9) for i in range(40)]
    assert len(set(units_of(equal))) == 10  # one of nine is cut
    assert len(set(units_of(equal, 21))) == 9
    many = [f"t/{q}_{i:03d}.png" for q in "abcdefghij" for i in range(4)]
    assert units_of(many, 1000) == [f"t/{q}" for q in "abcdefghij" for _ in range(4)]
    assert len(set(units_of(["t/a_1.png", "t/a_2.png", "t/a_3.png"]))) == 3
    assert units_of([]) == []


def _frames(generator: np.random.Generator, correlation: float, size: int) -> np.ndarray:
    """AR(1) of unit variance."""
    noise = generator.normal(0, math.sqrt(1 - correlation**2), size + 500)
    found: np.ndarray = signal.lfilter([1], [1, -correlation], noise)[500:]
    return found


@pytest.mark.parametrize(("correlation", "expected"), [(0.0, 1.0), (0.5, 3.0), (0.9, 19.0)])
def test_autocorrelation_time_of_long_series(correlation: float, expected: float) -> None:
    generator = np.random.default_rng(21)
    series = [_frames(generator, correlation, size) + 5 * size for size in (100_000, 200_000)]
    found = autocorrelation_time(series, 100)
    assert 0.97 * expected < found < 1.15 * expected


def test_autocorrelation_time_against_a_loop() -> None:
    series = [np.array([1.0, 2.0, 4.0]), np.array([5.0, 0.0, 1.0, 2.0]), np.array([9.0])]
    centred = [[v - sum(one) / len(one) for v in one] for one in series[:2]]
    power = sum(v**2 for one in centred for v in one)
    found = [1.0]
    for window in (1, 2):
        pairs = [(one, lag, i) for one in centred for lag in range(1, window + 1) for i in range(9)]
        products = sum(one[i] * one[i + lag] for one, lag, i in pairs if i + lag < len(one))
        width = (2 * window + 1) / 7
        tau = 1 + 2 * products / power
        found.append(tau * (1 + 2 * width) * (1 + math.sqrt(2 * width)))
    assert autocorrelation_time(series, 2) == pytest.approx(max(found))


def test_constant_differences_need_no_long_blocks() -> None:
    names = [f"a_{i}.png" for i in range(100)]
    assert block_length(names, np.full(100, 0.1) + 1e-17 * np.arange(100)) == 1
    assert block_length(names, np.zeros(100)) == 1


def _by_seed(names: list[str], values: np.ndarray) -> dict[int, dict[str, float]]:
    return {seed: dict(zip(names, line, strict=True)) for seed, line in enumerate(values)}


def _naive(images: list[float], metric: str) -> float:
    mean = sum(images) / len(images)
    if metric == "HP-Acc":
        return sum(v > 0.75 for v in images) / len(images)
    return mean if metric == "mIOU" else sum((v - mean) ** 2 for v in images) / len(images)


def test_resampled_metrics_against_a_loop() -> None:
    generator = np.random.default_rng(1)
    of = np.repeat(np.arange(4), [3, 1, 5, 2])
    values = generator.uniform(0.5, 1, (2, 11))
    weights = generator.multinomial(4, np.full(4, 0.25), 20).astype(float)
    for metric in ("mIOU", "HP-Acc", "Var"):
        found = _values(values, of, weights, metric, 0.75)
        for resample, counts in enumerate(weights):
            images = [
                i for u in range(4) for _ in range(int(counts[u])) for i in np.flatnonzero(of == u)
            ]
            for seed in range(2):
                expected = _naive(values[seed, images].tolist(), metric)
                assert found[resample, seed] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("seeds", "sequences"), [(0.02, 0.0), (0.0, 0.02), (0.02, 0.03)])
def test_variances_over_seeds_and_sequences_add(seeds: float, sequences: float) -> None:
    generator = np.random.default_rng(5)
    of_seeds = generator.normal(0.02, seeds, 5)
    of_sequences = generator.normal(0, sequences, 10)
    reference = generator.uniform(0.6, 0.8, (5, 40))
    recipe = reference + of_seeds[:, None] + np.repeat(of_sequences, 4)
    found = paired_difference(recipe, reference, UNITS, "mIOU")
    parts = np.array([of_seeds.var(ddof=1) / 5, of_sequences.var(ddof=1) / 10])
    df = parts.sum() ** 2 / (parts**2 / [4, 9]).sum()  # Student's t over one alone
    error = math.sqrt(parts.sum())
    assert found.value == pytest.approx(of_seeds.mean() + of_sequences.mean())
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, df) * error, rel=0.03)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.value) / error, df), rel=0.1)
    assert found.df == pytest.approx(df, rel=0.03)


def test_other_numbers_of_seeds_give_welchs_test() -> None:
    generator = np.random.default_rng(7)
    few, many = generator.normal(0.03, 0.01, 5), generator.normal(0.0, 0.03, 20)
    images = generator.uniform(0.6, 0.9, 40)
    found = paired_difference(
        images + few[:, None], images + many[:, None], UNITS, "mIOU", seeds_paired=False
    )
    test = stats.ttest_ind(few, many, equal_var=False)
    low, high = test.confidence_interval(0.95)
    assert (found.seeds, found.reference_seeds) == (5, 20)
    assert found.value == pytest.approx(few.mean() - many.mean())
    assert found.high - found.low == pytest.approx(high - low, rel=0.03)
    assert found.p == pytest.approx(test.pvalue, rel=0.1)
    assert found.df == pytest.approx(test.df, rel=0.05)


def test_unpaired_the_images_still_are_paired() -> None:
    generator = np.random.default_rng(8)
    effects = generator.normal(0.02, 0.02, 10)
    images = generator.uniform(0.2, 0.9, 40)  # far more than the effects
    recipe = np.tile(images + np.repeat(effects, 4), (5, 1))
    found = paired_difference(recipe, np.tile(images, (7, 1)), UNITS, "mIOU", seeds_paired=False)
    test = stats.ttest_1samp(effects, 0)
    low, high = test.confidence_interval(0.95)
    assert found.high - found.low == pytest.approx(high - low, rel=0.03)
    assert found.p == pytest.approx(test.pvalue, rel=0.08)


def test_identical_predictions_are_no_difference() -> None:
    values = np.random.default_rng(6).uniform(0.5, 1, (5, 30))
    units = [str(i % 10) for i in range(30)]
    for metric in ("mIOU", "HP-Acc", "Var"):
        found = paired_difference(values, values.copy(), units, metric)
        assert (found.value, found.low, found.high, found.p, found.p_holm) == (0, 0, 0, 1, 1)
        assert found.verdict == "no difference"
        assert found.sentence == (
            f"recipe: {metric} +0.0 {'e-3' if metric == 'Var' else 'points'} [+0.0, +0.0], "
            "p = 1.000 after Holm's correction: no difference."
        )


def test_equal_results_leave_the_others_their_verdicts() -> None:
    generator = np.random.default_rng(9)
    base = generator.uniform(0.6, 0.9, (5, 60))
    better = base + generator.normal(0.05, 0.01, (5, 60))
    names = [f"d{i % 10}_{i}.png" for i in range(60)]
    given = {"S": base, "same": base.copy(), "better": better}
    rows = {name: _by_seed(names, values) for name, values in given.items()}
    found = {one.name: one for one in compare_all(rows, "S", resamples=500)[:2]}
    assert found["same"].verdict == "no difference"
    assert found["same"].p_holm == 1
    assert found["better"].verdict == "significant gain"
    assert found["better"].p_holm == pytest.approx(2 * found["better"].p)


def test_no_common_images_are_one_clear_error() -> None:
    for images in ({}, {"b.png": 1.0}):
        with pytest.raises(DataError, match=r"SD and its reference .* different images"):
            compare_all({"S": {0: {"a.png": 1.0}}, "SD": {0: images}}, "S")


def test_one_seed_has_no_interval() -> None:
    found = paired_difference(np.ones((1, 20)), np.zeros((1, 20)), ["a"] * 10 + ["b"] * 10, "mIOU")
    assert found.value == 1
    assert math.isnan(found.low)
    assert math.isnan(found.p)
    assert found.verdict == "too few seeds"
    assert "too few seeds (1 of the 5" in found.sentence


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    one, two = holm([float("nan"), 0.04])
    assert math.isnan(one)
    assert two == 0.04
    assert holm([]) == []
    assert holm([1.0, 0.02, 1.0]) == pytest.approx([1.0, 0.06, 1.0])
    assert holm([1.0, 1.0]) == [1.0, 1.0]
    assert holm([1.0, float("nan"), 0.02])[::2] == pytest.approx([1.0, 0.04])


FOUND = Difference("SD", "mIOU", 0.02, 5, 6, 100, 10, 0.01, 0.03, 0.001, 0.004, 8.0)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "significant gain"),
        ({"value": -0.02}, "significant loss"),
        ({"metric": "Var", "value": -0.001}, "significant gain"),
        ({"metric": "Var", "value": 0.001}, "significant loss"),
        ({"p_holm": 0.05}, "no significant gain"),
        ({"seeds": 4}, "too few seeds"),
        ({"reference_seeds": 4}, "too few seeds"),
        ({"images": 9, "units": 9}, "too few images"),
        ({"units": 9}, "too few independent images (9 of the 10 blocks"),
        ({"low": 0.0, "high": 0.0, "value": 0.0, "p_holm": 1.0}, "no difference"),
        ({"p_holm": math.nan}, "no verdict"),
        ({"p_holm": math.nan, "value": -0.02}, "no verdict"),
    ],
)
def test_verdicts(changes: dict[str, float], verdict: str) -> None:
    found = replace(FOUND, **changes)  # type: ignore[arg-type]  # one dict for all fields
    assert found.verdict == verdict.partition(" (")[0]
    assert verdict in found.sentence


def test_sentence() -> None:
    assert FOUND.sentence == (
        "SD: mIOU +2.0 points [+1.0, +3.0], p = 0.004 after Holm's correction: significant gain."
    )


def _null(
    generator: np.random.Generator, seeds: float, sequences: float
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Two recipes that differ by the luck of seeds, sequences and frames only."""
    sizes = [8, 12, 20, 30, 15, 10, 25, 18, 9, 14]
    of = np.repeat(np.arange(10), sizes)
    base = (0.75 + generator.normal(0, 0.05, 10))[of]
    first, second = (
        base + generator.normal(0, seeds, (5, 1)) + generator.normal(0, 0.02, (5, len(of)))
        for _ in range(2)
    )
    return first + generator.normal(0, sequences, 10)[of], second, [f"drive {q}" for q in of]


@pytest.mark.parametrize(("seeds", "sequences"), [(0.02, 0.0), (0.0, 0.02), (0.015, 0.015)])
def test_false_positives_are_near_their_level(seeds: float, sequences: float) -> None:
    generator = np.random.default_rng(11)
    trials, rejected = 300, 0
    for trial in range(trials):
        recipe, reference, units = _null(generator, seeds, sequences)
        found = paired_difference(recipe, reference, units, "mIOU", resamples=300, seed=trial)
        rejected += found.p < 0.05
    # Percentiles of one bootstrap over both would reject 10 to 15 %.
    assert 0.02 < rejected / trials < 0.085


def _two_drives(
    generator: np.random.Generator, correlation: float, gain: float = 0.0
) -> tuple[dict[int, dict[str, float]], dict[int, dict[str, float]]]:
    """A recipe and its reference on two drives, where neighbouring frames' differences are alike.

    The frames' differences are AR(1) with a standard deviation of 0.02 about the gain.
    """
    sizes = (60, 170)
    names = [f"drive{q}_frame{i:05d}.png" for q, size in enumerate(sizes) for i in range(size)]
    differences = [gain + 0.02 * _frames(generator, correlation, size) for size in sizes]
    reference = generator.uniform(0.5, 0.9, len(names)) + generator.normal(0, 0.01, (5, 1))
    recipe = reference + np.concatenate(differences) + generator.normal(0, 0.003, (5, len(names)))
    return _by_seed(names, recipe), _by_seed(names, reference)


@pytest.mark.parametrize(("correlation", "told"), [(0.0, (0.99, 1)), (0.9, (0, 0.1))])
def test_false_positives_in_two_drives_whose_frames_are_alike(
    correlation: float, told: tuple[float, float]
) -> None:
    generator = np.random.default_rng(31)
    verdicts: list[str] = []
    for _ in range(80):
        recipe, reference = _two_drives(generator, correlation)
        verdicts.append(_compare_one(recipe, reference, "SD", "mIOU", 0.75, 200).verdict)
    rejected = sum(one.startswith("significant") for one in verdicts) / len(verdicts)
    # Ten blocks whatever the correlation would reject 12 % at 0.9 and 26 % at 0.97.
    assert rejected <= 0.08
    assert told[0] <= 1 - verdicts.count("too few independent images") / len(verdicts) <= told[1]


def test_power_in_two_drives_of_independent_frames() -> None:
    generator = np.random.default_rng(32)
    found = 0
    for _ in range(50):
        # Five standard errors: Student's t of ten blocks finds 98 %.
        sides = _two_drives(generator, 0.0, gain=5 * 0.02 / math.sqrt(230))
        one = _compare_one(*sides, "SD", "mIOU", 0.75, 200)
        found += one.verdict == "significant gain"
    assert found >= 45


def test_hp_acc_has_no_verdict_where_miou_shows_that_frames_are_alike() -> None:
    generator = np.random.default_rng(33)
    for _ in range(5):
        recipe, reference = _two_drives(generator, 0.97)
        found = compare_all({"S": reference, "SD": recipe}, "S", resamples=100)
        assert [one.metric for one in found] == list(METRICS)
        assert {one.verdict for one in found} == {"too few independent images"}


def test_compare_all_pairs_images_and_the_same_seeds() -> None:
    rows = {
        "S": {
            1: {"d/1.png": 0.5, "d/2.png": 0.6, "d/3.png": 0.1},
            2: {"d/1.png": 0.5, "d/2.png": 0.8},
        },
        "SD": {2: {"d/2.png": 0.9, "d/1.png": 0.6}, 1: {"d/1.png": 0.6, "d/2.png": 0.7}},
        "another seed": {7: {"d/1.png": 0.0}},
    }
    found = compare_all(rows, "S", resamples=100)
    assert [(one.name, one.metric) for one in found] == [
        (name, m) for m in ("mIOU", "HP-Acc", "Var") for name in ("SD", "another seed")
    ]
    same, other = found[:2]
    assert same.value == pytest.approx(0.1)
    # Paired, the seeds' spread is no part of the interval; here nothing else is, either.
    assert same.high - same.low == pytest.approx(0, abs=1e-9)
    assert (same.seeds, same.reference_seeds, same.images) == (2, 2, 2)
    assert (other.value, other.seeds, other.reference_seeds, other.images) == (-0.5, 1, 2, 1)
    assert math.isnan(other.p)
