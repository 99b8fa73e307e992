"""Average precision, FROC and AUC against pycocotools, slow loops and sklearn-like definitions, and the bootstrap's
properties.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from medkd.core.errors import DataError, MedkdError
from medkd.evaluation.detection.coco import COCO_METRICS, coco_scores
from medkd.evaluation.detection.intervals import crossed_differences, intervals
from medkd.evaluation.detection.matching import THRESHOLDS, overlaps
from medkd.evaluation.detection.metrics import (
    RATES,
    average_precision,
    compare_boxes,
    froc_curve,
    image_auc,
    measure,
    rate_key,
)
from medkd.evaluation.detection.predictions import Boxes
from medkd.evaluation.statistics import groups_of, resampled_weights
from tests.evaluation.boxes import random_boxes, random_pair, slow_average_precision, slow_overlap, slow_sensitivity

NAMES = ("a", "b", "c")
NOTHING = Boxes.of([], [], [])


def ones(images: int) -> np.ndarray:
    return np.ones((1, images), np.int32)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("coarse", [False, True])
def test_average_precision_is_that_of_a_slow_loop_and_of_pycocotools(seed: int, coarse: bool) -> None:
    """With coarse boxes and scores there are many ties, which only pycocotools breaks as we do."""
    found, truths = random_pair(seed, coarse=coarse)
    mine, theirs = average_precision(found, truths, NAMES[:2]), coco_scores(found, truths, NAMES[:2])
    for metric in ("AP", "AP50", "AP75"):
        assert mine[metric] == pytest.approx(theirs["", metric], abs=1e-12)
    for k, name in enumerate(NAMES[:2]):
        assert mine[f"AP50/{name}"] == pytest.approx(theirs[name, "AP50"], abs=1e-12)
        if not coarse:
            slow = [slow_average_precision(found, truths, k, t) for t in THRESHOLDS]
            assert theirs[name, "AP"] == pytest.approx(np.mean(slow), abs=1e-9)
            assert mine[f"AP50/{name}"] == pytest.approx(slow[0], abs=1e-9)


def test_the_twelve_numbers_are_those_that_pycocotools_prints(capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found, truths = random_pair(1, images=12, others=15)
    scores = coco_scores(found, truths, NAMES[:2])
    assert capsys.readouterr().out == ""
    sides = []
    for images in (truths, found):
        entries = [
            {
                "image_id": i,
                "category_id": int(k),
                "bbox": [*b[:2], *(b[2:] - b[:2])],
                "area": float(np.prod(b[2:] - b[:2])),
                "iscrowd": 0,
            }
            | {"score": float(s), "id": 100 * i + j + 1}
            for i, image in enumerate(images, start=1)
            for j, (b, k, s) in enumerate(zip(image.boxes, image.classes, image.scores, strict=True))
        ]
        data = COCO()
        data.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(12)],
            "categories": [{"id": 0}, {"id": 1}],
            "annotations": entries,
        }
        data.createIndex()
        sides.append(data)
    judge = COCOeval(*sides, "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    expected = np.where(judge.stats > -1, judge.stats, np.nan)
    np.testing.assert_allclose([scores["", m] for m in COCO_METRICS], expected, atol=1e-12)
    assert np.isfinite(scores["", "AP small"]) and scores["", "AR@1"] < scores["", "AR@100"]


@pytest.mark.parametrize("seed", range(4))
def test_crowds_count_as_pycocotools_counts_them(seed: int) -> None:
    """What lies in a crowd is neither right nor wrong, what finds a single box is right as before."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found, truths = random_pair(seed, images=12, others=25)
    rng = np.random.default_rng(100 + seed)
    crowded = []
    for image in truths:
        crowds = random_boxes(rng, int(rng.integers(0, 3)))
        crowds[:, 2:] += 30
        crowded.append(replace(image, ignored=Boxes.of(crowds, rng.integers(0, 2, len(crowds)))))
    sides = []
    for images in (crowded, found):
        entries: list[dict] = []
        for i, image in enumerate(images, start=1):
            for part, crowd in ((image, 0), (image.ignored or NOTHING, 1)):
                for b, k, s in zip(part.boxes, part.classes, part.scores, strict=True):
                    box = [*b[:2], *(b[2:] - b[:2])]
                    entry = {"image_id": i, "category_id": int(k), "bbox": box, "area": box[2] * box[3]}
                    entries.append({**entry, "iscrowd": crowd, "score": float(s), "id": len(entries) + 1})
        data = COCO()
        heads = {"images": [{"id": i + 1} for i in range(12)], "categories": [{"id": 0}, {"id": 1}]}
        data.dataset = {"info": {}, **heads, "annotations": entries}
        data.createIndex()
        sides.append(data)
    judge = COCOeval(*sides, "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    theirs = coco_scores(found, crowded, NAMES[:2])
    expected = np.where(judge.stats > -1, judge.stats, np.nan)
    np.testing.assert_allclose([theirs["", m] for m in COCO_METRICS], expected, atol=1e-12)
    mine = average_precision(found, crowded, NAMES[:2])
    for metric in ("AP", "AP50", "AP75"):
        assert mine[metric] == pytest.approx(theirs["", metric], abs=1e-12)
    plain = average_precision(found, truths, NAMES[:2])
    assert mine["AP50"] != plain["AP50"]


def test_overlaps_are_those_of_a_loop() -> None:
    first, second = (random_boxes(np.random.default_rng(i), 7) for i in range(2))
    table = overlaps(first, second)
    assert table.max() > 0.1
    np.testing.assert_allclose(table, [[slow_overlap(a, b) for b in second] for a in first])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("centre", [False, True])
def test_froc_is_that_of_a_loop_over_thresholds(seed: int, centre: bool) -> None:
    found, truths = random_pair(seed, images=6, coarse=seed % 2 == 1, others=30)
    matches = compare_boxes(found, truths, NAMES[:2], threshold=0.4, criterion="centre" if centre else "iou")
    values = measure(matches, ones(6))
    got = [values["", rate_key(rate)][0] for rate in RATES]
    assert got == pytest.approx([slow_sensitivity(found, truths, rate, 0.4, centre=centre) for rate in RATES])
    assert sorted(got) == got and got[0] < got[-1]
    false, true, scores = froc_curve(matches.froc[-1])
    assert (np.diff(true) >= 0).all() and (np.diff(false) >= 0).all() and (np.diff(scores) < 0).all()
    assert true[false <= 1].max() == pytest.approx(values["", "S@1"][0])


def test_a_second_detection_of_a_box_is_neither_true_nor_false_for_froc_but_false_for_coco() -> None:
    truth = [Boxes.of([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 0])]
    found = [Boxes.of([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 9, 10], [50, 50, 60, 60]], [0] * 4, [0.9, 0.8, 0.7, 0.6])]
    values = measure(compare_boxes(found, truth, NAMES[:1]), ones(1))
    assert values["", "S@0.125"][0] == 1.0
    assert values["", "AP50"][0] == pytest.approx((51 * 1 + 50 * 0.5) / 101)


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.random(40).round(1), rng.random(40) < 0.4
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    assert image_auc(scores, positive, ones(40))[0] == pytest.approx(np.mean(pairs))
    assert np.isnan(image_auc(scores, np.zeros(40, bool), ones(40))[0])
    assert np.isnan(image_auc(np.zeros(0), np.zeros(0, bool), ones(0))[0])


def test_nothing_found_and_nothing_there() -> None:
    truth = Boxes.of([[0, 0, 9, 9]], [0])
    for found, truths, expected in (
        ([NOTHING, NOTHING], [truth, NOTHING], 0.0),
        ([truth, truth], [NOTHING, NOTHING], np.nan),
    ):
        theirs, mine = coco_scores(found, truths, NAMES[:1]), measure(compare_boxes(found, truths, NAMES[:1]), ones(2))
        for metric in ("AP", "AP50"):
            np.testing.assert_equal(
                [theirs["", metric], mine["", metric][0], average_precision(found, truths, NAMES[:1])[metric]],
                [expected] * 3,
            )
        np.testing.assert_equal(mine["", "S@1"][0], expected)
    empty = intervals(compare_boxes([], [], NAMES[:1]))
    assert np.isnan(empty["", "AP"].mean) and empty["", "AP"].n == 0


def test_a_class_without_reference_boxes_is_no_part_of_the_mean() -> None:
    found, truths = random_pair(2, classes=2)
    stray = [Boxes(f.boxes, np.where(f.classes == 1, 2, f.classes), f.scores) for f in found]
    truths = [t.only(t.classes == 0) for t in truths]
    for values in (
        coco_scores(stray, truths, NAMES),
        {k: v[0] for k, v in measure(compare_boxes(stray, truths, NAMES), ones(8)).items()},
    ):
        assert values["", "AP"] == values["a", "AP"] and np.isnan(values["b", "AP"]) and np.isnan(values["c", "AP"])


def test_excluded_classes_leave_the_second_mean_and_froc() -> None:
    found, truths = random_pair(3, classes=3)
    matches = compare_boxes(found, truths, NAMES, excluded=("c",))
    values = measure(matches, ones(8))
    assert values["", "AP without c"][0] == pytest.approx((values["a", "AP"][0] + values["b", "AP"][0]) / 2)
    rest = [[b.only(b.classes < 2) for b in side] for side in (found, truths)]
    alone = measure(compare_boxes(*rest, NAMES[:2]), ones(8))
    for metric in ("S@0.5", "S@4", "AUC"):
        np.testing.assert_equal(values["", metric], alone["", metric])
    assert values["", "AP"][0] != values["", "AP without c"][0]


@pytest.mark.parametrize("seed", range(4))
def test_a_weight_of_two_is_an_image_that_is_there_twice(seed: int) -> None:
    """What the bootstrap rests on; equal scores are left out, since COCO's precision depends on the order in which they
    are listed.
    """
    found, truths = random_pair(seed, images=7, coarse=seed % 2 == 1)
    found = [
        Boxes(f.boxes, f.classes, f.scores + np.random.default_rng(i).uniform(0, 1e-3, len(f)))
        for i, f in enumerate(found)
    ]
    weights = np.random.default_rng(seed).integers(0, 3, (1, 7))
    drawn = np.repeat(np.arange(7), weights[0])
    values = measure(compare_boxes(found, truths, NAMES[:2]), weights)
    twice = [[side[i] for i in drawn] for side in (found, truths)]
    expected = measure(compare_boxes(*twice, NAMES[:2]), ones(len(drawn)))
    for key, value in expected.items():
        np.testing.assert_allclose(values[key], value, atol=1e-12, err_msg=str(key))
    assert values["", "AP"][0] == pytest.approx(coco_scores(*twice, NAMES[:2])["", "AP"])


def test_intervals_hold_the_estimate_and_shrink_with_more_images() -> None:
    widths = []
    for images in (10, 160):
        found, truths = random_pair(5, images=images)
        values = intervals(compare_boxes(found, truths, NAMES[:2]))
        for key in (("", "AP"), ("", "AP50"), ("a", "AP"), ("", "S@1"), ("", "AUC")):
            assert values[key].low <= values[key].mean <= values[key].high, key
            assert values[key].n == images
        widths.append(values["", "AP50"].high - values["", "AP50"].low)
    assert widths[1] < 0.5 * widths[0]
    assert intervals(compare_boxes(found, truths, NAMES[:2]))["", "AP"] == values["", "AP"]
    assert intervals(compare_boxes(found, truths, NAMES[:2]), seed=1)["", "AP"] != values["", "AP"]
    single = intervals(compare_boxes(found[:1], truths[:1], NAMES[:2]))["", "AP"]
    assert np.isnan(single.low)


def test_patients_are_drawn_whole() -> None:
    groups = groups_of(["i0", "i1", "i2", "i3"], {"i0": "p", "i2": "p", "i3": "q"})
    assert groups.tolist() == [0, 1, 0, 2]
    weights = resampled_weights(groups, 200)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    found, truths = random_pair(6, images=60)
    matches = compare_boxes(
        found * 2, truths * 2, NAMES[:2]
    )  # every image twice: as images it looks like twice the evidence
    by_image, by_patient = intervals(matches)["", "AP"], intervals(matches, np.tile(np.arange(60), 2))["", "AP"]
    once = intervals(compare_boxes(found, truths, NAMES[:2]))["", "AP"]
    assert by_patient.n == 60 and by_patient.high - by_patient.low == pytest.approx(once.high - once.low)
    assert by_image.high - by_image.low < 0.85 * (by_patient.high - by_patient.low)


def test_differences_of_two_models() -> None:
    found, truths = random_pair(7, images=80, noise=1)
    worse = [
        Boxes(f.boxes + np.random.default_rng(i).normal(0, 8, f.boxes.shape), f.classes, f.scores)
        for i, f in enumerate(found)
    ]
    first, second = (compare_boxes(f, truths, NAMES[:2]) for f in (found, worse))
    same, better = crossed_differences([first], [first]), crossed_differences([first], [second])
    for value in same.values():
        assert (value.mean, value.low, value.high, value.p, value.clear) == (0.0, 0.0, 0.0, 1.0, False)
    alone = [intervals(m)["", "AP50"] for m in (first, second)]
    gain = better["", "AP50"]
    assert gain.clear and gain.p < 0.01 and gain.mean == pytest.approx(alone[0].mean - alone[1].mean)
    assert gain.high - gain.low < sum(a.high - a.low for a in alone)
    few = [compare_boxes(f[:4], truths[:4], NAMES[:2]) for f in (found, worse)]
    assert not crossed_differences(few[:1], few[1:])["", "AP50"].clear
    with pytest.raises(DataError, match="same images"):
        crossed_differences([first], [few[0]])


def test_seeds_are_drawn_as_images_are() -> None:
    """Where seeds differ more than images do, the interval must know of it."""
    found, truths = random_pair(7, images=40, noise=1)
    blind = [Boxes(f.boxes + 500, f.classes, f.scores) for f in found]
    halved = [f if image % 2 else b for image, (f, b) in enumerate(zip(found, blind, strict=True))]
    good, bad, middle = (compare_boxes(f, truths, NAMES[:2]) for f in (found, blind, halved))
    several = crossed_differences([good, bad], [middle, middle])["", "AP50"]
    alone = [crossed_differences([one], [middle])["", "AP50"] for one in (good, bad)]
    assert several.mean == pytest.approx((alone[0].mean + alone[1].mean) / 2)
    assert several.low < alone[1].mean < alone[0].mean < several.high and several.p > 0.2
    assert max(one.p for one in alone) < 0.01 and not several.clear


def test_without_pycocotools_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    found, truths = random_pair(0)
    with pytest.raises(MedkdError, match=r"pip install 'medkd\[detection\]'"):
        coco_scores(found, truths, NAMES[:2])
    assert average_precision(found, truths, NAMES[:2])["AP50"] > 0


def test_tensors_of_a_detector_can_be_scored() -> None:
    torch = pytest.importorskip("torch")
    from medkd.detection.base import Detections

    found, truths = random_pair(0)
    tensors = [Detections(*(torch.tensor(a) for a in (f.boxes, f.scores, f.classes))) for f in found]
    assert average_precision(tensors, truths, NAMES[:2]) == average_precision(found, truths, NAMES[:2])
