"""Statistics against scipy, naive loops, hand values, and planted nulls."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from spiritseg.compare.statistics import (
    Difference,
    _values,
    compare_all,
    holm,
    paired_difference,
    sequence_of,
    units_of,
)
from spiritseg.errors import DataError

CITYSCAPES = "leftImg8bit/val/munster/munster_000001_000019_leftImg8bit.png"


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        ("test/0001TP_008550.jpg", "test/0001TP"),
        ("test/Seq05VD_f00000.png", "test/Seq05VD"),
        (CITYSCAPES, "leftImg8bit/val/munster/munster_000001"),
        ("images/holiday/0001.jpg", "images/holiday"),
        ("images/holiday/first_bend.jpg", "images/holiday"),
        ("test/00012", "test"),
        ("3.png", ""),
    ],
)
def test_sequence_of(name: str, sequence: str) -> None:
    assert sequence_of(name) == sequence


def test_units_are_sequences_where_there_are_enough() -> None:
    names = [f"t/s{q:02d}_{i}.png" for q in range(10) for i in range(3)]
    assert units_of(names) == [f"t/s{q:02d}" for q in range(10) for _ in range(3)]


def test_few_sequences_are_cut_into_blocks_of_consecutive_frames() -> None:
    names = [f"t/a_{i:03d}.png" for i in range(62)] + [f"t/b_{i:03d}.png" for i in range(171)]
    units = units_of(names)
    assert len(set(units)) == 10
    starts = [i for i in range(1, len(units)) if units[i] != units[i - 1]]
    assert len(starts) == 9  # each block is one run of frames
    assert 62 in starts  # and none spans two sequences
    shuffled = np.random.default_rng(0).permutation(len(names))
    assert units_of([names[i] for i in shuffled]) == [units[i] for i in shuffled]


def test_fewer_images_than_blocks_are_units_of_their_own() -> None:
    assert len(set(units_of(["t/a_1.png", "t/a_2.png", "t/a_3.png"]))) == 3
    assert units_of([]) == []


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


def _check_against_t(found: Difference, sample: np.ndarray) -> None:
    test = stats.ttest_1samp(sample, 0)
    low, high = test.confidence_interval(0.95)
    assert found.value == pytest.approx(sample.mean())
    assert found.high - found.low == pytest.approx(high - low, rel=0.03)
    assert found.p == pytest.approx(test.pvalue, rel=0.08)
    assert found.df == pytest.approx(len(sample) - 1, rel=0.02)


def test_seeds_alone_give_the_t_test_over_seeds() -> None:
    effects = np.array([0.01, 0.03, 0.02, 0.05, -0.01])
    reference = np.random.default_rng(2).uniform(0.6, 0.9, (5, 40))
    units = [f"unit {i // 4}" for i in range(40)]
    found = paired_difference(reference + effects[:, None], reference, units, "mIOU")
    _check_against_t(found, effects)


def test_sequences_alone_give_the_t_test_over_sequences() -> None:
    effects = np.random.default_rng(3).normal(0.02, 0.02, 10)
    reference = np.random.default_rng(4).uniform(0.6, 0.9, (5, 40))
    units = [f"unit {i // 4}" for i in range(40)]
    found = paired_difference(reference + np.repeat(effects, 4), reference, units, "mIOU")
    _check_against_t(found, effects)


def test_both_variances_add() -> None:
    generator = np.random.default_rng(5)
    seeds, sequences = generator.normal(0, 0.02, 5), generator.normal(0, 0.03, 10)
    reference = generator.uniform(0.6, 0.8, (5, 40))
    units = [f"unit {i // 4}" for i in range(40)]
    recipe = reference + seeds[:, None] + np.repeat(sequences, 4)
    found = paired_difference(recipe, reference, units, "mIOU")
    parts = np.array([seeds.var(ddof=1) / 5, sequences.var(ddof=1) / 10])
    df = parts.sum() ** 2 / (parts**2 / [4, 9]).sum()
    half = stats.t.ppf(0.975, df) * math.sqrt(parts.sum())
    assert found.high - found.value == pytest.approx(half, rel=0.03)


def test_other_numbers_of_seeds_give_welchs_test() -> None:
    generator = np.random.default_rng(7)
    few, many = generator.normal(0.03, 0.01, 5), generator.normal(0.0, 0.03, 20)
    images = generator.uniform(0.6, 0.9, 40)
    units = [f"unit {i // 4}" for i in range(40)]
    found = paired_difference(
        images + few[:, None], images + many[:, None], units, "mIOU", seeds_paired=False
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
    units = [f"unit {i // 4}" for i in range(40)]
    recipe = np.tile(images + np.repeat(effects, 4), (5, 1))
    found = paired_difference(recipe, np.tile(images, (7, 1)), units, "mIOU", seeds_paired=False)
    _check_against_t(found, effects)


def test_identical_predictions_are_no_difference() -> None:
    values = np.random.default_rng(6).uniform(0.5, 1, (5, 30))
    units = [str(i % 10) for i in range(30)]
    for metric in ("mIOU", "HP-Acc", "Var"):
        found = paired_difference(values, values.copy(), units, metric)
        assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_one_seed_has_no_interval() -> None:
    found = paired_difference(np.ones((1, 20)), np.zeros((1, 20)), ["a"] * 10 + ["b"] * 10, "mIOU")
    assert found.value == 1
    assert math.isnan(found.low)
    assert math.isnan(found.p)
    assert found.verdict == "too few seeds"
    assert "too few seeds (1 of the 5" in found.sentence


def test_other_shapes_are_one_clear_error() -> None:
    with pytest.raises(DataError, match=r"\(2, 5\) and \(3, 5\)"):
        paired_difference(np.zeros((2, 5)), np.zeros((3, 5)), ["a"] * 5, "mIOU")


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    one, two = holm([float("nan"), 0.04])
    assert math.isnan(one)
    assert two == 0.04
    assert holm([]) == []


FOUND = Difference("SD", "mIOU", 0.02, 0.01, 0.03, 0.001, 0.004, 5, 6, 100, 10, 8.0)


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
        ({"units": 4}, "too few images"),
    ],
)
def test_verdicts(changes: dict[str, float], verdict: str) -> None:
    found = replace(FOUND, **changes)  # type: ignore[arg-type]  # one dict for all fields
    assert found.verdict == verdict
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
    trials, rejected = 500, 0
    for trial in range(trials):
        recipe, reference, units = _null(generator, seeds, sequences)
        found = paired_difference(recipe, reference, units, "mIOU", resamples=300, seed=trial)
        rejected += found.p < 0.05
    # Percentiles of one bootstrap over both would reject 10 to 15 %.
    assert 0.02 < rejected / trials < 0.085


def test_three_recipes_without_a_gain_rarely_raise_an_alarm() -> None:
    generator = np.random.default_rng(12)
    alarms = 0
    for _ in range(100):
        rows = {}
        for name in ("S", "a", "b", "c"):
            recipe, _, units = _null(np.random.default_rng(generator.integers(2**31)), 0.015, 0.01)
            names = [f"{unit}/{i}.png" for i, unit in enumerate(units)]
            rows[name] = {
                seed: dict(zip(names, line, strict=True)) for seed, line in enumerate(recipe)
            }
        found = compare_all(rows, "S", resamples=200)
        alarms += any(one.p_holm < 0.05 for one in found if one.metric == "mIOU")
    assert alarms / 100 < 0.12


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


def test_extra_seeds_of_the_reference_make_the_interval_shorter() -> None:
    generator = np.random.default_rng(13)
    recipe, _, units = _null(generator, 0.005, 0.0)
    reference = recipe.mean(0) + generator.normal(0, 0.03, (20, 1))
    names = [f"{unit}/{i}.png" for i, unit in enumerate(units)]
    widths = []
    for seeds in (5, 20):
        rows = {
            name: {seed: dict(zip(names, line, strict=True)) for seed, line in enumerate(lines)}
            for name, lines in {"S": reference[:seeds], "SD": recipe}.items()
        }
        found = compare_all(rows, "S", resamples=500)[0]
        assert (found.seeds, found.reference_seeds) == (5, seeds)
        assert found.value == pytest.approx(recipe.mean() - reference[:seeds].mean())
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_other_images_are_one_clear_error() -> None:
    with pytest.raises(DataError, match="other images"):
        compare_all({"S": {0: {"a.png": 1.0}}, "SD": {0: {"b.png": 1.0}}}, "S")


def test_ten_thousand_resamples_take_seconds_at_most() -> None:
    values = np.random.default_rng(0).uniform(0.5, 1, (2, 5, 500))
    units = [f"drive {i // 10}" for i in range(500)]
    start = time.process_time()
    for metric in ("mIOU", "HP-Acc", "Var"):
        paired_difference(values[0], values[1], units, metric, resamples=10_000)
    assert time.process_time() - start < 3
