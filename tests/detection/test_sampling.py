from __future__ import annotations

from collections import Counter

import pytest

from medkd.core.errors import PlanError
from medkd.detection.plan import DetectionPlan
from medkd.detection.sampling import draw_epoch

CATEGORIES = ("fracture", "metal", "text")


def plan(sampling: dict[str, float] | None = None, negatives: float | None = None) -> DetectionPlan:
    return DetectionPlan(
        dataset="Dataset001_X",
        categories=CATEGORIES,
        image_size=64,
        batch_size=2,
        sampling=sampling or {},
        negatives=negatives,
    )


def annotations() -> dict[str, tuple[str, ...]]:
    """Forty images with fracture and text, ten with text only, six with metal, eight without boxes."""
    made = {f"ft{i}": ("fracture", "text", "text") for i in range(40)}
    made |= {f"t{i}": ("text",) for i in range(10)}
    made |= {f"m{i}": ("metal", "fracture") for i in range(6)}
    return made | {f"n{i}": () for i in range(8)}


def kinds(cases: list[str]) -> Counter[str]:
    return Counter(case.rstrip("0123456789") for case in cases)


def test_without_rules_every_image_is_shown_once() -> None:
    data = annotations()
    drawn = draw_epoch(list(data), data, plan(), 3, 0)
    assert sorted(drawn) == sorted(data) and drawn != sorted(data)


def test_the_index_multiset_follows_the_weights_and_all_images_of_a_group_are_shown_equally_often() -> None:
    data = annotations()
    rules = plan({"fracture+text": 0.1, "text": 1.0, "metal": 7.0})
    epochs = [draw_epoch(list(data), data, rules, 3, epoch) for epoch in range(10)]
    for drawn in epochs:
        assert kinds(drawn) == {"ft": 4, "t": 10, "m": 6, "n": 8}  # no image has nothing but metal
        assert max(Counter(drawn).values()) == 1
    total = Counter(case for drawn in epochs for case in drawn)
    assert {total[f"ft{i}"] for i in range(40)} == {
        1
    }  # 40 × 0.1 × 10 epochs: each of them once, which the published sampler misses
    assert {total[f"t{i}"] for i in range(10)} == {10}


def test_weights_above_one_repeat_images() -> None:
    data = annotations()
    drawn = [draw_epoch(list(data), data, plan({"fracture+metal": 2.5}), 0, epoch) for epoch in range(2)]
    assert all(kinds(d)["m"] == 15 and set(Counter(c for c in d if c[0] == "m").values()) == {2, 3} for d in drawn)
    assert set(Counter(c for d in drawn for c in d if c[0] == "m").values()) == {5}


def test_fractional_rates_are_met_over_the_epochs() -> None:
    data = annotations()
    counts = [kinds(draw_epoch(list(data), data, plan({"text": 0.13}), 0, e))["t"] for e in range(100)]
    assert set(counts) == {1, 2} and sum(counts) == 130


@pytest.mark.parametrize(("negatives", "shown"), [(None, 8), (0.0, 0), (0.05, 2.8), (5.0, 8)])
def test_negatives_are_limited_by_the_shown_images_with_boxes(negatives: float | None, shown: float) -> None:
    data = annotations()
    counts = [kinds(draw_epoch(list(data), data, plan(negatives=negatives), 0, e))["n"] for e in range(10)]
    assert sum(counts) == round(10 * shown) and max(counts) - min(counts) <= 1


def test_it_is_a_function_of_seed_and_epoch() -> None:
    data = annotations()
    first = draw_epoch(list(data), data, plan(negatives=0.05), 1, 4)
    assert first == draw_epoch(list(reversed(data)), data, plan(negatives=0.05), 1, 4)
    assert first != draw_epoch(list(data), data, plan(negatives=0.05), 1, 5)
    assert set(first) != set(draw_epoch(list(data), data, plan(negatives=0.05), 2, 4))


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (plan({"fractur": 1.0}), "Did you mean 'fracture'"),
        (plan({"fracture+text": 1.0, "text+fracture": 2.0}), "twice"),
        (plan({"fracture": -1.0}), "weight -1.0"),
        (plan({"text": 0.0}, 0.0), "draws no training image"),
        (plan(negatives=-1.0), "from 0 on"),
    ],
)
def test_what_makes_no_sense_is_refused(rules: DetectionPlan, text: str) -> None:
    data = {f"t{i}": ("text",) for i in range(3)} | {"n": ()}
    with pytest.raises(PlanError, match=text):
        draw_epoch(list(data), data, rules, 0, 0)
