"""Intervals and paired tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from medkd.evaluation.statistics import mean_interval, paired_difference


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_the_interval_is_close_to_the_theory_for_a_normal_sample(method: str) -> None:
    values = np.random.default_rng(0).normal(5, 2, 200)
    found = mean_interval(values, method=method)  # type: ignore[arg-type]
    low, high = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == (pytest.approx(low, abs=0.06), pytest.approx(high, abs=0.06))


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [mean_interval(rng.beta(8, 2, 40), resamples=400) for _ in range(150)]
    assert 0.87 <= np.mean([i.low <= 0.8 <= i.high for i in found]) <= 1.0


def test_results_are_deterministic_and_follow_the_seed() -> None:
    values = np.random.default_rng(0).random(20)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_a_higher_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(0).random(20)
    narrow, wide = mean_interval(values, 0.8), mean_interval(values, 0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_a_table_gives_the_mean_of_class_means_and_leaves_missing_values_out() -> None:
    table = np.array([[1.0, 0.0], [0.5, math.nan], [0.0, math.nan], [math.nan, math.nan]])
    found = mean_interval(table)
    assert (found.mean, found.n) == (pytest.approx((0.5 + 0.0) / 2), 3)


def test_a_class_that_no_case_has_does_not_dilute_the_mean() -> None:
    table = np.array([[0.9, math.nan], [0.7, math.nan], [0.8, math.nan]])
    assert mean_interval(table) == mean_interval(table[:, 0])


def test_degenerate_samples() -> None:
    assert mean_interval([math.nan]).n == 0
    assert math.isnan(mean_interval([]).mean)
    one = mean_interval([0.3])
    assert (one.mean, one.n) == (0.3, 1)
    assert math.isnan(one.low)
    same = mean_interval([1.0, 1.0, 1.0])
    assert (same.low, same.high) == (1.0, 1.0)


def test_paired_difference_equals_wilcoxon_and_is_sharper_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    case = rng.normal(0.8, 0.1, 30)
    a, b = case + rng.normal(0.02, 0.01, 30), case
    found = paired_difference(a, b)
    assert found.p == pytest.approx(stats.wilcoxon(a, b).pvalue)
    assert found.low > 0
    assert found.high - found.low < 0.3 * (mean_interval(a).high - mean_interval(a).low)


def test_paired_difference_without_a_difference_or_without_cases() -> None:
    assert paired_difference([1, 2, 3], [1, 2, 3]).p == 1.0
    assert paired_difference([1, math.nan], [math.nan, math.nan]).n == 0
    assert paired_difference([1, math.nan, math.nan], [0, 1, math.nan]).n == 2
    assert math.isnan(paired_difference([math.nan], [0]).p)


def test_a_difference_in_few_cases_is_never_clear() -> None:
    """All of three cases gain, so the bootstrap interval leaves 0 out; that is no evidence yet."""
    few = paired_difference([0.8, 0.82, 0.9], [0.7, 0.75, 0.8])
    assert few.low > 0
    assert not few.clear
    rng = np.random.default_rng(0)
    case = rng.random(20)
    assert paired_difference(case + 0.05 + 0.01 * rng.random(20), case).clear
    assert not paired_difference(case + 0.05 * rng.standard_normal(20), case).clear
