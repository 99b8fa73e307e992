"""A structure that one model invents and another leaves alone counts in comparisons as it counts in the means."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from medkd.api.best_configuration import _ordered
from medkd.evaluation.ranking import critical_difference, crossed_difference, rank_stability
from medkd.evaluation.report.segmentation_scores import SegmentationScores
from medkd.evaluation.segmentation.cases import ClassScore
from medkd.evaluation.segmentation.results import CaseScores, Summary
from medkd.evaluation.statistics import RESAMPLES, may_replace, mean_interval, paired_difference
from medkd.reproduction.comparisons import _case_means, _difference
from medkd.reproduction.rows import Row

NAN = float("nan")
DIAGONAL = 300.0


def scores_of(dice: np.ndarray, patients: int = 0) -> SegmentationScores:
    """Scores with these Dices ``(cases, structures)``: NaN is absent, 0 invented, with the distances that go with
    it."""
    cases = []
    for place, row in enumerate(dice):
        patient = f"p{place % patients}" if patients else None
        found = tuple(_score(f"s{number}", number, value) for number, value in enumerate(row, 1))
        cases.append(CaseScores(f"{place:03d}.nii.gz", f"{place:03d}.nii.gz", found, patient))
    return SegmentationScores(Summary(cases=tuple(cases)))


def _score(name: str, value: int, dice: float) -> ClassScore:
    absent, invented = bool(np.isnan(dice)), dice == 0
    return ClassScore(
        name=name,
        values=(value,),
        status="absent" if absent else "invented" if invented else "scored",
        dice=None if absent else dice,
        iou=None if absent else dice / (2 - dice),
        tp=0,
        fp=0,
        fn=0,
        tn=0,
        hd95=None if absent else DIAGONAL if invented else 10 * (1 - dice),
        nsd=None if absent else dice,
    )


def tables(seed: int, scores: int, cases: int = 24, structures: int = 3) -> np.ndarray:
    """Dices ``(scores, cases, structures)``: structures that are there are scored, others left alone or invented."""
    random = np.random.default_rng(seed)
    there = random.random((cases, structures)) < 0.6
    invented = random.random((scores, cases, structures)) < 0.4
    dice = random.uniform(0.3, 0.95, (scores, cases, structures))
    return np.where(there, dice, np.where(invented, 0.0, NAN))


def hallucinating() -> tuple[np.ndarray, np.ndarray]:
    """A tumour in 15 of 30 cases; the student finds it as well as its teacher, and in the other 15, too."""
    teacher = np.where(np.arange(30) < 15, np.random.default_rng(0).uniform(0.88, 0.92, 30), NAN)[:, None]
    return np.nan_to_num(teacher), teacher


def test_a_student_that_invents_tumours_replaces_no_teacher() -> None:
    student, teacher = map(scores_of, hallucinating())
    means = student.value("Dice"), teacher.value("Dice")
    found = student.compare(teacher).of("Dice")
    assert found is not None and found.n == 30 and found.clear
    assert found.mean == pytest.approx(means[0].mean - means[1].mean) and found.mean == pytest.approx(-0.45, abs=0.01)
    assert may_replace(found, 0.01, student=means[0], teacher=means[1], learnt=0.1) == "no"
    first, second = _ordered({("a",): student.summary, ("b",): teacher.summary}, str)
    assert (first.name, second.behind, second.clear) == ("b", pytest.approx(-found.mean), True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("patients", [0, 7])
@pytest.mark.parametrize("metric", ["Dice", "IoU", "NSD", "HD95"])
def test_the_difference_that_is_shown_is_that_of_the_means_that_are_shown(
    seed: int, patients: int, metric: str
) -> None:
    first, second = (scores_of(table, patients) for table in tables(seed, 2))
    for part in ("", *first.parts):
        found, back = first.compare(second).of(metric, part), second.compare(first).of(metric, part)
        assert found is not None and back is not None
        assert found.mean == pytest.approx(first.value(metric, part).mean - second.value(metric, part).mean)
        assert found.low <= found.mean <= found.high and vars(back.reversed) == pytest.approx(vars(found))
        assert found.p == back.p


def loop(a: np.ndarray, b: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """The bounds, from the two means of every sample, by drawing patients one after another."""
    random, found, names = np.random.default_rng(5), [], np.unique(groups)
    for _ in range(RESAMPLES):
        cases = np.concatenate([np.flatnonzero(groups == name) for name in random.choice(names, len(names))])
        found.append(_mean(a[cases]) - _mean(b[cases]))
    return tuple(np.nanpercentile(found, [2.5, 97.5]))


def _mean(table: np.ndarray) -> float:
    known = [column[np.isfinite(column)] for column in table.T]
    means = [values.mean() for values in known if len(values)]
    return float(np.mean(means)) if means else NAN


@pytest.mark.parametrize("owners", [24, 8])
def test_every_sample_takes_the_difference_of_two_means(owners: int) -> None:
    a, b = tables(3, 2)
    groups = np.arange(24) % owners
    found, (low, high) = paired_difference(a, b, groups=groups), loop(a, b, groups)
    width = high - low
    assert found.n == owners
    assert (found.low, found.high) == (pytest.approx(low, abs=0.08 * width), pytest.approx(high, abs=0.08 * width))


def test_where_nothing_is_invented_the_interval_is_that_of_the_differences() -> None:
    random = np.random.default_rng(1)
    there = random.random((30, 4)) < 0.7
    a, b = (np.where(there, random.uniform(0, 1, (30, 4)), NAN) for _ in range(2))
    found, expected = paired_difference(a, b), mean_interval(a - b)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx(tuple(vars(expected).values()))


def test_the_test_takes_what_was_left_alone_for_the_best_value() -> None:
    a, b = tables(4, 2, structures=1)[:, :, 0]
    none = np.isnan(a) & np.isnan(b)
    assert 0 < none.sum() < (np.isnan(a) | np.isnan(b)).sum()
    best = [np.where(np.isnan(table), 1.0, table)[~none] for table in (a, b)]
    assert paired_difference(a, b).p == pytest.approx(stats.wilcoxon(*best).pvalue)
    far = [np.where(np.isnan(table), NAN, 100 * (1 - table)) for table in (a, b)]  # of distances the best is 0
    assert paired_difference(far[0], far[1], at_best=0.0).p == pytest.approx(stats.wilcoxon(*best).pvalue)


def test_a_score_without_any_value_is_compared_with_none() -> None:
    """As of nnU-Net's summaries, which have no surface distances."""
    found = paired_difference([NAN] * 8, np.arange(8.0))
    assert np.isnan(found.mean) and found.n == 0 and not found.clear


@pytest.mark.parametrize("seed", range(3))
def test_seeds_are_averaged_as_the_shown_scores_are(seed: int) -> None:
    every = [scores_of(table, 12) for table in tables(seed, 5)]
    rows = [SimpleNamespace(scores=every[:3]), SimpleNamespace(scores=every[3:])]
    found = _difference(rows[0], rows[1], "Dice")  # type: ignore[arg-type]
    shown = [np.mean([score.value("Dice").mean for score in row.scores]) for row in rows]
    assert found is not None and found.mean == pytest.approx(shown[0] - shown[1]) and found.n == 12
    assert found.low <= found.mean <= found.high


def test_a_recipe_sees_one_seed_that_invents() -> None:
    student, teacher = hallucinating()
    found = crossed_difference(np.stack([teacher, student])[..., 0], np.stack([teacher, teacher])[..., 0])
    assert found.mean == pytest.approx(np.nanmean(student) / 2 - np.nanmean(teacher) / 2) and found.p < 0.01


def test_a_method_that_invents_comes_last() -> None:
    student, teacher = hallucinating()
    modest = teacher - 0.05
    scores = {"invents": student, "modest": modest, "good": teacher}
    found = rank_stability(scores)
    assert [(rank.name, rank.first) for rank in found] == [("good", 1.0), ("modest", 0.0), ("invents", 0.0)]
    # of the 15 with a tumour it shares the first place and modest is third; of the others it is third alone
    assert {rank.name: rank.mean for rank in found} == {"good": 1.5, "modest": 2.25, "invents": 2.25}
    tested = critical_difference(scores)
    assert tested is not None and tested.cases == 30 and tested.ranks["invents"] == 2.25


def test_ranks_over_seeds_follow_the_shown_scores() -> None:
    every = tables(6, 6)
    rows = [_row(f"m{place}", [scores_of(table) for table in every[2 * place : 2 * place + 2]]) for place in range(3)]
    table = SimpleNamespace(values=every, groups=None)
    found = rank_stability(_case_means(rows, table))  # type: ignore[arg-type]
    shown = {row.method: np.mean([score.value("Dice").mean for score in row.scores]) for row in rows}
    assert [rank.name for rank in found] == sorted(shown, key=lambda name: -shown[name])


def _row(method: str, scores: list[SegmentationScores]) -> Row:
    return SimpleNamespace(method=method, way=method, scores=scores)  # type: ignore[return-value]
