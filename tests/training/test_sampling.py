from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from medkd.training.sampling import OUTSIDE, PatchSampler, read_padded


@dataclass
class _Case:
    image: np.ndarray
    label: np.ndarray
    locations: dict[int, np.ndarray]


def _case(shape: tuple[int, int, int] = (10, 12, 14)) -> _Case:
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape) + 1
    label = np.zeros(shape, np.int16)
    label[2, 3, 4] = 1
    return _Case(image, label, {1: np.array([[2, 3, 4]], np.int32), 2: np.empty((0, 3), np.int32)})


@pytest.mark.parametrize("start", [[0, 0, 0], [-3, 2, 11], [20, 20, 20], [-30, 0, 0], [4, -2, 6]])
def test_read_padded_equals_padding_everything_first(start: list[int]) -> None:
    array = _case().image
    padded = np.pad(array, [(0, 0), (40, 40), (40, 40), (40, 40)], constant_values=7)
    expected = padded[(slice(None), *(slice(s + 40, s + 46) for s in start))]
    assert np.array_equal(read_padded(array, start, (6, 6, 6), 7), expected)


def test_foreground_patches_hold_the_structure_in_their_middle() -> None:
    sampler = PatchSampler((8, 8, 8), (4, 4, 4))
    for seed in range(20):
        _, label = sampler.sample(_case(), np.random.default_rng(seed), foreground=True)  # type: ignore[arg-type]
        assert label[0, 2:6, 2:6, 2:6].max() == 1


def test_random_patches_reach_every_border_with_the_final_patch_and_never_leave_the_case() -> None:
    case, sampler, starts = _case(), PatchSampler((6, 6, 6), (4, 4, 4)), []
    for seed in range(300):
        image, _ = sampler.sample(case, np.random.default_rng(seed), foreground=False)  # type: ignore[arg-type]
        inner = image[0, 1:5, 1:5, 1:5]
        assert (inner > 0).all()
        starts.append(np.unravel_index(int(inner[0, 0, 0]) - 1, case.label.shape))
    assert np.array_equal(np.min(starts, 0), [0, 0, 0])
    assert np.array_equal(np.max(starts, 0) + 4, case.label.shape)


def test_a_case_smaller_than_the_patch_is_padded_and_marked() -> None:
    image, label = PatchSampler((16, 16, 16), (16, 16, 16)).sample(_case(), np.random.default_rng(0), foreground=False)  # type: ignore[arg-type]
    assert image.shape == (1, 16, 16, 16) and np.count_nonzero(image) == 10 * 12 * 14
    assert np.array_equal(label[0] == OUTSIDE, image[0] == 0)


def test_a_2d_patch_is_a_slice_through_the_structure() -> None:
    image, label = PatchSampler((8, 8), (8, 8)).sample(_case(), np.random.default_rng(1), foreground=True)  # type: ignore[arg-type]
    assert image.shape == (1, 8, 8) and label.max() == 1


def test_with_an_ignore_label_random_patches_see_annotated_voxels() -> None:
    case = _case((40, 40, 40))
    case.locations = {0: np.array([[5, 5, 5]], np.int32), 1: np.empty((0, 3), np.int32)}
    image, _ = PatchSampler((8, 8, 8), (8, 8, 8)).sample(case, np.random.default_rng(3), foreground=False)  # type: ignore[arg-type]
    assert case.image[0, 5, 5, 5] in image
