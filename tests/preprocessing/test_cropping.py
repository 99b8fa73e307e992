from __future__ import annotations

import numpy as np

from medkd.preprocessing.cropping import bounding_box, box_slices, fill_holes, nonzero_mask


def test_closed_cavities_are_filled_and_open_ones_are_not() -> None:
    shell = np.zeros((9, 9, 9), bool)
    shell[1:8, 1:8, 1:8] = True
    shell[3:6, 3:6, 3:6] = False
    filled = fill_holes(shell)
    assert filled[4, 4, 4] and not filled[0, 0, 0] and filled.sum() == 7**3
    shell[4, 4, 0:5] = False  # a tunnel to the outside
    assert not fill_holes(shell)[4, 4, 4]
    assert fill_holes(np.ones((2, 3, 4), bool)).all()


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
