"""One case: counts, the rule for failures, regions and ignored voxels."""

from __future__ import annotations

import numpy as np
import pytest

from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.evaluation.segmentation.cases import evaluate_case
from medkd.evaluation.segmentation.metrics import (
    average_surface_distance,
    average_symmetric_surface_distance,
    dice,
    hausdorff95,
    normalized_surface_distance,
)

SPACING = (2.0, 1.0, 0.5)
LABELS = LabelSpec.from_names(["a", "b", "c"])
REGIONS = LabelSpec((("background", (0,)), ("whole", (1, 2, 3)), ("core", (2, 3)), ("tip", (3,))), True, (1, 2, 3))


def random_maps(seed: int = 0, top: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = np.repeat(np.repeat(rng.integers(0, top, (4, 5, 6)), 3, 1), 3, 2).astype(np.int16)
    return np.where(rng.random(reference.shape) < 0.1, rng.integers(0, top, reference.shape), reference).astype(
        np.uint8
    ), reference


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_scores_equal_the_metrics_of_each_mask(labels: LabelSpec) -> None:
    prediction, reference = random_maps()
    scores = evaluate_case(prediction, reference, SPACING, labels, nsd_tolerance_mm=1.0)
    assert [s.name for s in scores] == [name for name, _ in labels.foreground]
    for score in scores:
        p, r = np.isin(prediction, score.values), np.isin(reference, score.values)
        assert (score.tp, score.fp, score.fn, score.tn) == (
            (p & r).sum(),
            (p & ~r).sum(),
            (~p & r).sum(),
            (~p & ~r).sum(),
        )
        assert (score.n_pred, score.n_ref, score.status) == (p.sum(), r.sum(), "scored")
        assert score.dice == pytest.approx(dice(p, r))
        assert score.iou == pytest.approx((p & r).sum() / (p | r).sum())
        assert score.hd95 == pytest.approx(hausdorff95(p, r, SPACING))
        assert score.nsd == pytest.approx(normalized_surface_distance(p, r, SPACING, 1.0))


def test_missed_invented_and_absent_follow_the_rule() -> None:
    reference = np.zeros((10, 20, 30), np.int16)
    prediction = reference.copy()
    reference[2:4, 2:4, 2:4] = 1
    prediction[5, 5, 5] = 2
    missed, invented, absent = evaluate_case(prediction, reference, SPACING, LABELS)
    diagonal = (20**2 + 20**2 + 15**2) ** 0.5
    assert (missed.status, missed.dice, missed.iou, missed.nsd, missed.hd95) == (
        "missed",
        0,
        0,
        0,
        pytest.approx(diagonal),
    )
    assert (invented.status, invented.dice, invented.iou, invented.nsd, invented.hd95) == (
        "invented",
        0,
        0,
        0,
        pytest.approx(diagonal),
    )
    assert (absent.status, absent.dice, absent.iou, absent.nsd, absent.hd95, absent.tn) == (
        "absent",
        None,
        None,
        None,
        None,
        6000,
    )


def test_average_distances_come_where_they_are_asked_for_and_failures_count_as_in_hd95() -> None:
    prediction, reference = random_maps()
    for score in evaluate_case(prediction, reference, SPACING, LABELS, further=("ASD", "ASSD")):
        p, r = prediction == score.values[0], reference == score.values[0]
        assert score.asd == pytest.approx(average_surface_distance(p, r, SPACING))
        assert score.assd == pytest.approx(average_symmetric_surface_distance(p, r, SPACING))
    only = evaluate_case(prediction, reference, SPACING, LABELS, further=("ASSD",))[0]
    assert (only.asd, only.assd is None) == (None, False)
    reference = np.where(reference == 1, 0, np.where(reference == 3, 0, reference))
    prediction = np.where(prediction == 2, 0, np.where(prediction == 3, 0, prediction))
    scores = evaluate_case(prediction, reference, SPACING, LABELS, further=("ASD", "ASSD"))
    assert [score.status for score in scores] == ["invented", "missed", "absent"]
    assert [score.asd for score in scores] == [score.assd for score in scores] == [score.hd95 for score in scores]


def test_ignored_voxels_take_no_part() -> None:
    labels = LabelSpec(LABELS.entries, ignore=4)
    prediction, reference = random_maps(1)
    reference = reference.copy()
    reference[:, :6] = 4
    other = prediction.copy()
    other[:, :6] = 1
    scores = evaluate_case(prediction, reference, SPACING, labels)
    assert scores == evaluate_case(other, reference, SPACING, labels)
    assert all(s.tp + s.fp + s.fn + s.tn == (reference != 4).sum() for s in scores)


def test_values_that_the_labels_do_not_name_are_refused_with_the_case() -> None:
    prediction, reference = random_maps()
    with pytest.raises(DataError, match=r"case_7: the prediction holds the value 9"):
        evaluate_case(np.where(prediction == 1, 9, prediction), reference, SPACING, LABELS, case="case_7")
    with pytest.raises(DataError, match="reference holds the value -1"):
        evaluate_case(prediction, np.where(reference == 1, -1, reference), SPACING, LABELS)
    with pytest.raises(DataError, match="integer"):
        evaluate_case(prediction.astype(np.float32), reference, SPACING, LABELS)
    with pytest.raises(DataError, match="do not fit"):
        evaluate_case(prediction[1:], reference, SPACING, LABELS)
    with pytest.raises(DataError, match="ignore label"):
        evaluate_case(np.where(prediction == 1, 4, prediction), reference, SPACING, LabelSpec(LABELS.entries, ignore=4))
