from __future__ import annotations

import numpy as np
from scipy import ndimage

from medkd.preprocessing.cropping import bounding_box, box_slices, fill_holes, nonzero_mask


def test_fill_holes_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    for threshold in (0.2, 0.5, 0.8):
        mask = rng.random((12, 13, 14)) < threshold
        np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))
    shell = np.zeros((9, 9, 9), bool)
    shell[1:8, 1:8, 1:8] = True
    shell[3:6, 3:6, 3:6] = False
    assert fill_holes(shell)[4, 4, 4] and not fill_holes(shell)[0, 0, 0]
    shell[4, 4, 0:5] = False  # a tunnel to the outside
    assert not fill_holes(shell)[4, 4, 4]


def test_mask_is_the_union_of_channels_and_its_box_is_tight() -> None:
    image = np.zeros((2, 6, 7, 8), np.float32)
    image[0, 1, 2, 3] = -1
    image[1, 4, 5, 6] = 2
    mask = nonzero_mask(image)
    assert mask.sum() == 2
    assert bounding_box(mask) == ((1, 5), (2, 6), (3, 7))
    assert mask[box_slices(bounding_box(mask))].sum() == 2


def test_an_empty_image_keeps_its_whole_grid() -> None:
    assert bounding_box(np.zeros((3, 4, 5), bool)) == ((0, 3), (0, 4), (0, 5))
