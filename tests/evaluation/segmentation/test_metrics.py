"""The metrics against MONAI, MedPy and a slow loop over the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from medpy.metric.binary import asd as medpy_asd
from medpy.metric.binary import assd as medpy_assd
from medpy.metric.binary import hd95 as medpy_hd95
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import binary_erosion, distance_transform_edt

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
from medkd.evaluation.segmentation.surfaces import surface, surface_distances
from tests.evaluation.masks import blob_pair, slow_distances

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.7, 0.8), (0.4, 2.5, 1.1)]


def batch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None].float()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_surface_distances_equal_a_slow_loop(seed: int, spacing: tuple[float, ...]) -> None:
    prediction, reference = blob_pair(seed)
    found = surface_distances(prediction, reference, spacing)
    to_reference, to_prediction = slow_distances(prediction, reference, spacing)
    np.testing.assert_allclose(np.sort(found.to_reference), np.sort(to_reference), atol=1e-9)
    np.testing.assert_allclose(np.sort(found.to_prediction), np.sort(to_prediction), atol=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(6))
def test_metrics_equal_monai(seed: int, spacing: tuple[float, ...]) -> None:
    prediction, reference = blob_pair(seed)
    p, r = batch(prediction), batch(reference)
    assert dice(prediction, reference) == pytest.approx(float(compute_dice(p, r)), abs=1e-6)
    expected = float(compute_hausdorff_distance(p, r, include_background=True, percentile=95, spacing=spacing))
    assert hausdorff95(prediction, reference, spacing) == pytest.approx(expected, rel=1e-5)
    for tolerance in (0.5, 1.05, 2.0):
        expected = float(compute_surface_dice(p, r, [tolerance], include_background=True, spacing=spacing))
        assert normalized_surface_distance(prediction, reference, spacing, tolerance) == pytest.approx(
            expected, abs=1e-6
        )


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(6))
def test_pooled_hausdorff_equals_medpy(seed: int, spacing: tuple[float, ...]) -> None:
    prediction, reference = blob_pair(seed)
    expected = medpy_hd95(prediction, reference, voxelspacing=spacing)
    assert hausdorff95(prediction, reference, spacing, definition="pooled") == pytest.approx(expected, rel=1e-9)


def test_the_two_definitions_differ() -> None:
    """A stray voxel in the prediction counts fully in one direction, and is diluted when pooled."""
    reference = np.zeros((20, 20, 20), bool)
    reference[8:12, 8:12, 8:12] = True
    prediction = reference.copy()
    prediction[1, 1, 1:8] = True
    spacing = (1.0, 1.0, 1.0)
    assert hausdorff95(prediction, reference, spacing) > hausdorff95(
        prediction, reference, spacing, definition="pooled"
    )


def test_metrics_are_symmetric_and_scale_with_spacing() -> None:
    a, b = blob_pair(3)
    assert hausdorff95(a, b, (2, 1, 1)) == hausdorff95(b, a, (2, 1, 1))
    assert hausdorff95(a, b, (6, 3, 3)) == pytest.approx(3 * hausdorff95(a, b, (2, 1, 1)))
    assert normalized_surface_distance(a, b, (2, 1, 1), 1) == normalized_surface_distance(b, a, (2, 1, 1), 1)


def test_identical_masks_are_perfect() -> None:
    a, _ = blob_pair(0)
    assert (dice(a, a), hausdorff95(a, a, (1, 1, 1)), normalized_surface_distance(a, a, (1, 1, 1), 0)) == (1, 0, 1)


def test_a_slice_is_treated_as_2d() -> None:
    """Along an axis of length 1 no voxel is a surface; otherwise the whole area would be."""
    prediction, reference = blob_pair(5, (24, 25))
    expected = hausdorff95(prediction, reference, (0.7, 1.2))
    assert hausdorff95(prediction[None], reference[None], (5.0, 0.7, 1.2)) == expected
    assert surface(np.ones((1, 5, 5), bool)).sum() == 16


@pytest.mark.parametrize("layer", [0, 4, 8])
def test_a_structure_of_one_slice_in_a_volume_is_all_surface(layer: int) -> None:
    prediction, reference = (np.zeros((9, 14, 13), bool) for _ in range(2))
    prediction[layer, 2:9, 2:9] = True
    reference[layer, 4:7, 4:7] = True
    assert len(surface_distances(prediction, reference, (5, 1, 1)).to_reference) == 49
    expected = float(
        compute_hausdorff_distance(batch(prediction), batch(reference), percentile=95, include_background=True)
    )
    assert hausdorff95(prediction, reference, (1, 1, 1)) == pytest.approx(expected)
    score = evaluate_case(
        prediction.astype(np.uint8), reference.astype(np.uint8), (1, 1, 1), LabelSpec.from_names(["a"])
    )[0]
    assert score.hd95 == pytest.approx(expected)


def test_a_shift_within_the_tolerance_scores_one_in_spite_of_rounding() -> None:
    reference = np.zeros((5, 5, 60), bool)
    reference[1:4, 1:4, 21:40] = True
    assert normalized_surface_distance(np.roll(reference, 5, 2), reference, (1.0, 1.0, 0.4), 2.0) == 1.0


def test_empty_masks() -> None:
    a, empty = blob_pair(0)[0], np.zeros((9, 14, 13), bool)
    spacing = (1, 1, 1)
    assert (dice(a, empty), hausdorff95(a, empty, spacing), normalized_surface_distance(empty, a, spacing, 1)) == (
        0,
        math.inf,
        0,
    )
    assert math.isnan(dice(empty, empty))
    assert math.isnan(hausdorff95(empty, empty, spacing))
    assert math.isnan(normalized_surface_distance(empty, empty, spacing, 1))


def test_wrong_arguments_are_refused() -> None:
    a, b = blob_pair(0)
    with pytest.raises(DataError, match="boolean"):
        dice(a.astype(np.uint8), b)
    with pytest.raises(DataError, match="same grid"):
        dice(a, b[1:])
    with pytest.raises(DataError, match="voxel sizes"):
        hausdorff95(a, b, (1, 1))
    with pytest.raises(DataError, match="voxel sizes"):
        hausdorff95(a, b, (1, 0, 1))
    with pytest.raises(DataError, match="definition"):
        hausdorff95(a, b, (1, 1, 1), definition="mean")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="tolerance"):
        normalized_surface_distance(a, b, (1, 1, 1), -1)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_average_surface_distances_equal_medpy_and_scipy(seed: int, spacing: tuple[float, ...]) -> None:
    prediction, reference = blob_pair(seed)
    asd = average_surface_distance(prediction, reference, spacing)
    assd = average_symmetric_surface_distance(prediction, reference, spacing)
    assert asd == pytest.approx(medpy_asd(prediction, reference, voxelspacing=spacing), rel=1e-9)
    assert assd == pytest.approx(medpy_assd(prediction, reference, voxelspacing=spacing), rel=1e-9)
    ours, theirs = (mask & ~binary_erosion(mask) for mask in (prediction, reference))
    forth = distance_transform_edt(~theirs, spacing)[ours]
    back = distance_transform_edt(~ours, spacing)[theirs]
    both = (forth.sum() + back.sum()) / (len(forth) + len(back))
    assert (asd, assd) == (pytest.approx(forth.mean(), rel=1e-9), pytest.approx(both, rel=1e-9))


def test_average_surface_distances_of_empty_and_equal_masks() -> None:
    a, empty = blob_pair(0)[0], np.zeros((9, 14, 13), bool)
    for metric in (average_surface_distance, average_symmetric_surface_distance):
        assert (metric(a, a, (2, 1, 1)), metric(a, empty, (1, 1, 1)), metric(empty, a, (1, 1, 1))) == (
            0,
            math.inf,
            math.inf,
        )
        assert math.isnan(metric(empty, empty, (1, 1, 1)))
        with pytest.raises(DataError, match="voxel sizes"):
            metric(a, a, (1, 1))
