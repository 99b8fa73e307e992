"""Corrections and ranks against statsmodels' rules written out, SciPy and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medkd.evaluation.ranking import critical_difference, crossed_difference, holm, rank_stability, why_not_ranked
from medkd.evaluation.statistics import paired_difference


@pytest.mark.parametrize("seed", range(5))
def test_holm_rejects_what_the_stepwise_test_rejects(seed: int) -> None:
    p_values = np.random.default_rng(seed).uniform(0, 0.1, 7)
    corrected = np.array(holm(list(p_values)))
    for level in (0.01, 0.05, 0.1):
        rejected = np.zeros(7, bool)
        for step, place in enumerate(np.argsort(p_values)):
            if p_values[place] > level / (7 - step):
                break
            rejected[place] = True
        assert np.array_equal(corrected <= level + 1e-12, rejected)


def test_holm_leaves_unknown_values_out() -> None:
    found = holm([0.02, np.nan, 0.03])
    assert found[0] == pytest.approx(0.04)
    assert np.isnan(found[1])
    assert found[2] == pytest.approx(0.04)


def test_one_seed_is_the_paired_difference() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0.8, 0.05, 30), random.normal(0.78, 0.05, 30)
    assert crossed_difference(a[None], b[None]) == paired_difference(a, b)


def test_seeds_that_differ_widen_the_interval_to_their_own_spread() -> None:
    random = np.random.default_rng(1)
    cases = random.normal(0.8, 0.01, 200)
    shifts = np.array([-0.05, 0.0, 0.05])
    a = cases + shifts[:, None] + random.normal(0, 0.001, (3, 200))
    b = np.stack([cases] * 3)
    crossed = crossed_difference(a, b)
    plain = paired_difference(a.mean(axis=0), b.mean(axis=0))
    assert crossed.mean == pytest.approx(plain.mean)
    assert crossed.high - crossed.low > 10 * (plain.high - plain.low)
    # means of three draws from the shifts: nearly all lie within the shifts themselves
    assert -0.051 < crossed.low < -0.03
    assert 0.03 < crossed.high < 0.051


def test_ranks_of_clear_scores_do_not_move() -> None:
    cases = np.random.default_rng(2).uniform(0.6, 0.9, 40)
    found = rank_stability({"worst": cases - 0.1, "best": cases + 0.05, "middle": cases})
    assert [rank.name for rank in found] == ["best", "middle", "worst"]
    assert [(rank.place, rank.interval.low, rank.interval.high) for rank in found] == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]
    assert [rank.first for rank in found] == [1.0, 0.0, 0.0]
    assert [rank.mean for rank in found] == [1.0, 2.0, 3.0]


def test_ranks_of_noise_are_uncertain() -> None:
    random = np.random.default_rng(3)
    found = rank_stability({name: random.normal(0, 1, 25) for name in "abcd"})
    assert all(rank.interval.high > rank.interval.low for rank in found)
    assert sum(rank.first for rank in found) == pytest.approx(1.0, abs=1e-9)


def test_critical_difference_is_demsars() -> None:
    # Demšar, JMLR 7 (2006), section 3.2.2: four classifiers on 14 data sets, CD = 2.569 * sqrt(4 * 5 / (6 * 14)) = 1.25
    random = np.random.default_rng(4)
    scores = {name: random.uniform(size=14) for name in "abcd"}
    scores["a"] += 0.2
    found = critical_difference(scores)
    assert found is not None
    assert found.distance == pytest.approx(1.25, abs=0.01)
    ranks = stats.rankdata([-values for values in scores.values()], axis=0).mean(axis=1)
    assert list(found.ranks.values()) == pytest.approx(list(ranks)) and found.cases == 14
    assert found.p == pytest.approx(stats.friedmanchisquare(*scores.values()).pvalue)


def test_groups_hold_neighbours_within_the_distance() -> None:
    cases = np.random.default_rng(5).uniform(0.5, 0.9, 30)
    noise = np.random.default_rng(6).normal(0, 1e-3, 30)
    found = critical_difference({"a": cases + 0.1, "b": cases + 0.1 + noise, "c": cases, "d": cases + noise})
    assert found is not None
    assert {frozenset(group) for group in found.groups} == {frozenset("ab"), frozenset("cd")}


def test_no_two_are_told_apart_where_friedman_finds_nothing() -> None:
    random = np.random.default_rng(11)
    found = critical_difference({name: random.uniform(size=12) for name in "abcde"})
    assert found is not None and found.p >= 0.05
    assert [sorted(group) for group in found.groups] == [list("abcde")]


def test_too_little_to_compare() -> None:
    assert critical_difference({"a": [1, 2, 3], "b": [1, 2, 3]}) is None
    few = {name: np.arange(10.0) for name in "abc"}
    assert critical_difference(few) is None and "needs 11 cases or more" in why_not_ranked(few)
    assert "compare three or more, found 2" in why_not_ranked({"a": np.arange(20), "b": np.arange(20)})
    assert "a score of every single image" in why_not_ranked({}, "image")
    assert rank_stability({}) == []


def gappy(seed: int, seeds: int) -> np.ndarray:
    """Dice ``(seeds, cases, structures)``: two structures in all cases, a third one in a fifth of them."""
    random = np.random.default_rng(seed)
    table = random.normal(0.8, 0.02, (seeds, 40, 3))
    table[:, 8:, 2] = np.nan
    return table


def mean_of_means(table: np.ndarray) -> float:
    """By the obvious loop."""
    means = []
    for structure in range(table.shape[1]):
        known = [value for value in table[:, structure] if np.isfinite(value)]
        if known:
            means.append(sum(known) / len(known))
    return sum(means) / len(means)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_rare_structure_counts_as_much_as_in_the_score_itself(seeds: int) -> None:
    """A student that gave up a structure which few cases show is not saved by the cases that do not show it."""
    teacher, student = gappy(0, 2), gappy(1, seeds)
    student[:, :, 2] -= 0.3
    found = crossed_difference(student, teacher)
    scores = [np.mean([mean_of_means(table) for table in side]) for side in (student, teacher)]
    assert abs(found.mean - (scores[0] - scores[1])) < 1e-12 and found.mean < -0.09
    random = np.random.default_rng(5)
    samples = []
    for _ in range(1000):
        cases = random.integers(40, size=40)
        mine = [mean_of_means(student[seed][cases]) for seed in random.integers(seeds, size=seeds)]
        theirs = [mean_of_means(teacher[seed][cases]) for seed in random.integers(2, size=2)]
        samples.append(np.mean(mine) - np.mean(theirs))
    low, high = np.percentile(samples, [2.5, 97.5])
    assert abs(found.low - low) < 0.004 and abs(found.high - high) < 0.004


def test_the_order_of_methods_is_that_of_their_scores() -> None:
    common, rare = gappy(0, 1)[0], gappy(0, 1)[0]
    common[:, :2] += 0.02  # better in the two structures that all cases show
    rare[:, 2] += 0.2  # better in the one that few show, and by more
    found = rank_stability({"common": common, "rare": rare, "none": gappy(0, 1)[0] - 0.5})
    assert np.nanmean(common, axis=1).mean() > np.nanmean(rare, axis=1).mean()  # the cases' means say the opposite
    assert mean_of_means(rare) > mean_of_means(common)
    assert [rank.name for rank in found] == ["rare", "common", "none"]
