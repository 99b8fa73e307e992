from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from skimage.transform import resize

from medkd.core.plan import Resampling
from medkd.preprocessing.resampling import (
    axis_matrix,
    axis_orders,
    coarse_axis,
    multiply,
    nearest_index,
    resample_image,
    resample_label,
    resampled_shape,
)

DEFAULT = Resampling()
ISO = (1.0, 1.0, 1.0)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def blobs(*shape: int, labels: int = 5) -> np.ndarray:
    smooth = ndimage.gaussian_filter(noise(*shape), 2)
    return (smooth / smooth.std() * labels / 2).round().clip(0, labels - 1).astype(np.int16)


def skimage_image(image: np.ndarray, shape: tuple[int, ...], order: int = 3) -> np.ndarray:
    return np.stack([resize(c.astype(np.float64), shape, order=order, mode="edge", anti_aliasing=False) for c in image])


def nnunet_separate(channel: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """The two steps of nnU-Net: every slice on its own, then the slices picked by map_coordinates of order 0."""
    plane = [n for i, n in enumerate(shape) if i != axis]
    slices = [
        resize(s.astype(np.float64), plane, order=3, mode="edge", anti_aliasing=False)
        for s in np.moveaxis(channel, axis, 0)
    ]
    stacked = np.stack(slices, axis)
    grid = np.meshgrid(
        *[(np.arange(n) + 0.5) * o / n - 0.5 for n, o in zip(shape, stacked.shape, strict=True)], indexing="ij"
    )
    return ndimage.map_coordinates(stacked, grid, order=0, mode="nearest")


@pytest.mark.parametrize("shape", [(30, 20, 50), (10, 33, 41), (20, 33, 40), (1, 3, 99), (41, 66, 82), (7, 11, 13)])
def test_image_equals_skimage(shape: tuple[int, ...]) -> None:
    image = noise(2, 20, 33, 41)
    found = resample_image(image, shape, ISO, ISO, DEFAULT)
    assert found.dtype == np.float32
    assert np.abs(found - skimage_image(image, shape)).max() < 1e-5 * np.ptp(image)


def test_image_longer_than_the_band_equals_skimage() -> None:
    """Long axes are multiplied block by block; the skipped weights must not show."""
    image = noise(1, 2, 3, 400)
    for size in (150, 390, 700):
        found = resample_image(image, (2, 3, size), ISO, ISO, DEFAULT)
        assert np.abs(found - skimage_image(image, (2, 3, size))).max() < 1e-5 * np.ptp(image)


@pytest.mark.parametrize(
    ("spacing", "target", "shape", "axis"),
    [
        ((5, 1, 1), (5, 0.7, 0.8), (12, 47, 51), 0),
        ((5, 1, 1), (2, 1, 1), (30, 33, 41), 0),
        ((5, 1, 1), (10, 0.7, 1.5), (6, 47, 27), 0),
        ((1, 5, 1), (1, 3, 1.2), (12, 55, 34), 1),
        ((1, 1, 1), (1, 1, 4), (12, 30, 10), 2),
    ],
)
def test_coarse_axis_is_resampled_as_in_nnunet(spacing: tuple, target: tuple, shape: tuple, axis: int) -> None:
    image = noise(1, 12, 33, 41)
    assert coarse_axis(spacing, target) == axis
    found = resample_image(image, shape, spacing, target, DEFAULT)
    assert np.abs(found[0] - nnunet_separate(image[0], shape, axis)).max() < 1e-5 * np.ptp(image)


def test_overshoot_is_clipped_to_the_input_range() -> None:
    image = np.zeros((1, 8, 8, 8), dtype=np.float32)
    image[:, 4:] = 1
    free = multiply(axis_matrix(8, 20, 3), image[0], 0)
    found = resample_image(image, (20, 8, 8), ISO, ISO, DEFAULT)
    assert free.max() > 1.01
    assert found.max() <= 1 and found.min() >= 0


def test_equal_shape_returns_the_input_untouched() -> None:
    image, label = noise(1, 4, 5, 6), blobs(4, 5, 6)
    assert resample_image(image, (4, 5, 6), ISO, (2.0, 1.0, 1.0), DEFAULT) is image
    assert resample_label(label, (4, 5, 6), ISO, ISO, DEFAULT) is label


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("size_in", "size_out"), [(1, 5), (5, 1), (7, 7), (3, 2), (2, 9), (64, 100), (100, 33)])
def test_axis_matrix_keeps_constants_and_is_read_only(size_in: int, size_out: int, order: int) -> None:
    matrix = axis_matrix(size_in, size_out, order)
    assert matrix.shape == (size_out, size_in)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    assert not matrix.flags.writeable


def test_nearest_index_takes_the_cell_that_holds_the_centre() -> None:
    for size_in, size_out in [(4, 2), (2, 4), (10, 7), (7, 10), (1, 3), (5, 5), (4, 3)]:
        slow = [min(int((i + 0.5) * size_in / size_out), size_in - 1) for i in range(size_out)]
        assert nearest_index(size_in, size_out).tolist() == slow


def test_multiply_equals_tensordot_along_every_axis() -> None:
    array, matrix = noise(6, 50, 7), axis_matrix(50, 90, 3)
    for axis in range(3):
        moved = np.ascontiguousarray(np.moveaxis(array, 1, axis))
        expected = np.moveaxis(np.tensordot(matrix, moved, axes=(1, axis)), 0, axis)
        np.testing.assert_allclose(multiply(matrix, moved, axis), expected, atol=1e-5)


def slow_label(label: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores, all indicators at once, ties to the larger label."""
    values = np.unique(label)
    scores = np.stack(
        [resize((label == v).astype(np.float64), shape, order=1, mode="edge", anti_aliasing=False) for v in values]
    )
    scores = scores.round(9)
    return values[len(values) - 1 - scores[::-1].argmax(0)], scores.max(0)


@pytest.mark.parametrize("shape", [(9, 50, 30), (24, 20, 41), (13, 34, 42), (6, 10, 12)])
def test_label_is_the_largest_linear_score(shape: tuple[int, ...]) -> None:
    label = blobs(12, 33, 41)
    label[:, :4][label[:, :4] == 0] = -1
    found = resample_label(label, shape, ISO, ISO, DEFAULT)
    assert found.dtype == label.dtype
    np.testing.assert_array_equal(found, slow_label(label, shape)[0])


def test_label_agrees_with_the_threshold_wherever_there_is_a_majority() -> None:
    label = blobs(12, 33, 41)
    shape = (17, 40, 29)
    threshold = np.zeros(shape, dtype=label.dtype)
    for value in np.unique(label):
        threshold[
            resize((label == value).astype(np.float64), shape, order=1, mode="edge", anti_aliasing=False) >= 0.5
        ] = value
    found, majority = resample_label(label, shape, ISO, ISO, DEFAULT), slow_label(label, shape)[1] > 0.5
    np.testing.assert_array_equal(found[majority], threshold[majority])
    assert majority.mean() > 0.9


def test_a_tie_goes_to_the_larger_label() -> None:
    label = np.array([[[0, 1, 2, 1, 0, -1]]], dtype=np.int16)
    assert resample_label(label, (1, 1, 3), ISO, ISO, DEFAULT).tolist() == [[[1, 2, 0]]]


def test_label_without_background_or_of_one_value() -> None:
    both = np.array([[[1, 1, 2, 2]]], dtype=np.uint8)
    assert resample_label(both, (1, 1, 8), ISO, ISO, DEFAULT).tolist() == [[[1, 1, 1, 1, 2, 2, 2, 2]]]
    for value in (-1, 0, 3):
        assert (resample_label(np.full((3, 4, 5), value, np.int16), (5, 5, 5), ISO, ISO, DEFAULT) == value).all()


def test_label_along_a_coarse_axis_takes_whole_slices() -> None:
    label = blobs(6, 20, 20)
    found = resample_label(label, (15, 20, 20), (5.0, 1.0, 1.0), (2.0, 1.0, 1.0), DEFAULT)
    np.testing.assert_array_equal(found, label[nearest_index(6, 15)])


def test_orders_per_axis() -> None:
    assert axis_orders(ISO, ISO, DEFAULT, "image") == (3, 3, 3)
    assert axis_orders((4, 1, 1), ISO, DEFAULT, "image") == (0, 3, 3)
    assert axis_orders(ISO, (1, 1, 4), DEFAULT, "label") == (1, 1, 0)
    assert axis_orders((3, 1, 1), ISO, DEFAULT, "logits") == (1, 1, 1), "exactly 3 is not anisotropic"
    assert axis_orders((0.2, 1, 1), ISO, DEFAULT, "image") == (3, 3, 3), "two coarse axes: plain 3D"
    assert axis_orders((4, 1, 1), ISO, replace(DEFAULT, force_separate_z=False), "image") == (3, 3, 3)
    assert axis_orders((2, 1, 1), ISO, replace(DEFAULT, force_separate_z=True), "logits") == (0, 1, 1)


def test_new_shape_rounds_and_never_vanishes() -> None:
    assert resampled_shape((10, 10, 1), (3, 1, 1), (1, 1.5, 9)) == (30, 7, 1)
