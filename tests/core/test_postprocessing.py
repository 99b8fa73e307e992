"""Keeping largest components, compared with scikit-image and with the meaning of regions voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import measure

from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.core.postprocessing import EVERYTHING, LargestComponent, candidates, check_steps, keep_largest

LABELS = LabelSpec.from_names(["liver", "spleen", "kidney"])
TUMOUR = LabelSpec((("background", (0,)), ("whole", (1, 2, 3)), ("core", (2, 3)), ("active", (3,))), True, (1, 2, 3))


def noise(seed: int, top: int = 3) -> np.ndarray:
    """A map with several components of everything, none of them of equal size to the largest."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, top + 1, (7, 9, 8)) * (rng.random((7, 9, 8)) < 0.3)).astype(np.uint8)


def largest(mask: np.ndarray) -> np.ndarray:
    """By scikit-image's own areas."""
    found = measure.label(mask, connectivity=3)
    regions = measure.regionprops(found)
    return found == max(regions, key=lambda region: region.area).label


@pytest.mark.parametrize("seed", range(4))
def test_plain_labels_lose_their_smaller_components(seed: int) -> None:
    array = noise(seed)
    before = array.copy()
    steps = [LargestComponent("kidney", (3,)), LargestComponent("liver", (1,))]
    found = keep_largest(array, steps, LABELS)
    assert np.array_equal(array, before) and found.dtype == array.dtype
    expected = array.copy()
    for value in (3, 1):
        mask = array == value
        expected[mask & ~largest(mask)] = 0
    assert np.array_equal(found, expected) and not np.array_equal(found, array)


def test_all_together_is_the_union(seed: int = 5) -> None:
    array = noise(seed)
    everything = LargestComponent(EVERYTHING, (1, 2, 3))
    found = keep_largest(array, [everything], LABELS)
    assert np.array_equal(found, np.where(largest(array > 0), array, 0))


@pytest.mark.parametrize("seed", range(4))
def test_a_voxel_taken_from_a_region_keeps_its_other_regions(seed: int) -> None:
    array = noise(seed)
    found = keep_largest(array, [LargestComponent("core", (2, 3))], TUMOUR)
    core = np.isin(array, (2, 3))
    kept = largest(core)
    assert np.array_equal(found > 0, array > 0)  # the whole tumour is what it was
    assert np.array_equal(np.isin(found, (2, 3)), kept)
    assert np.array_equal(found == 3, (array == 3) & kept)  # and what lies inside the core goes with it


def test_an_overlap_that_no_label_is_left_for_becomes_background() -> None:
    labels = LabelSpec((("background", (0,)), ("a", (1, 2)), ("b", (2,))), True, (1, 2))
    array = np.array([[[1, 2, 0, 2]]], np.uint8)
    assert keep_largest(array, [LargestComponent("a", (1, 2))], labels).tolist() == [[[1, 2, 0, 0]]]
    assert keep_largest(array, [LargestComponent("b", (2,))], labels).tolist() == [[[1, 2, 0, 1]]]


def test_corners_connect_and_nothing_to_do_gives_the_same_array() -> None:
    array = np.zeros((3, 3, 3), np.int16)
    array[0, 0, 0] = array[1, 1, 1] = array[2, 2, 2] = 1
    assert keep_largest(array, [LargestComponent("liver", (1,)), LargestComponent("spleen", (2,))], LABELS) is array
    assert keep_largest(array, [], LABELS) is array


def test_regions_are_tried_from_outside_to_inside_and_labels_at_once() -> None:
    assert [[step.name for step in steps] for steps in candidates(TUMOUR)] == [["whole"], ["core"], ["active"]]
    assert [[step.name for step in steps] for steps in candidates(LABELS)] == [
        [EVERYTHING],
        ["liver", "spleen", "kidney"],
    ]
    assert [[step.name for step in steps] for steps in candidates(LabelSpec.from_names(["liver"]))] == [["liver"]]


@pytest.mark.parametrize(
    "step",
    [LargestComponent("liver", (2,)), LargestComponent("heart", (1,)), LargestComponent(EVERYTHING, (1, 2))],
)
def test_steps_of_another_model_are_refused(step: LargestComponent) -> None:
    check_steps([LargestComponent("Liver", (1,)), LargestComponent(EVERYTHING, (1, 2, 3))], LABELS, "a.json")
    with pytest.raises(DataError, match=r"^a\.json is about '.*; take the file that was made for this model\.$"):
        check_steps([step], LABELS, "a.json")
