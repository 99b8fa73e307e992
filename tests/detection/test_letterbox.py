"""Images on the detector's square, and boxes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from medkd.detection.letterbox import PADDING, letterbox, shrink
from medkd.detection.store import stored_size

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64), (300, 211), (13, 500), (20, 31)])
def test_boxes_come_back_where_they_were(shape: tuple[int, int]) -> None:
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    square, place = letterbox(pixels, 64)
    assert square.shape == (3, 64, 64) and float(square.min()) >= 0 and float(square.max()) <= 1
    corner = RNG.uniform(0, 0.5, (7, 2)) * [shape[1], shape[0]]
    boxes = np.concatenate([corner, corner + RNG.uniform(0.1, 0.5, (7, 2)) * [shape[1], shape[0]]], axis=1)
    np.testing.assert_allclose(place.back(place.forth(boxes)), boxes, atol=1e-9)
    whole = place.forth([[0, 0, shape[1], shape[0]]])[0]
    assert (
        (whole >= 0).all()
        and (whole <= 64).all()
        and max(whole[2] - whole[0], whole[3] - whole[1]) == pytest.approx(64, abs=1)
    )
    outside = place.back([[-50, -50, 200, 200]])[0]
    np.testing.assert_allclose(outside, [0, 0, shape[1], shape[0]])


def test_a_mark_lies_where_the_box_says() -> None:
    pixels = np.zeros((300, 200), np.uint8)
    pixels[90:150, 20:80] = 255
    square, place = letterbox(pixels, 96)
    rows, columns = torch.nonzero(square[0] > 0.5, as_tuple=True)
    inside = (columns >= place.left) & (columns < 96 - place.left)
    rows, columns = rows[inside], columns[inside]
    found = [float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1]
    np.testing.assert_allclose(place.back([found])[0], [20, 90, 80, 150], atol=300 / 96)


def test_the_border_is_grey_and_the_image_is_exact_where_it_fits() -> None:
    pixels = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    square, place = letterbox(pixels, 64)
    np.testing.assert_array_equal(
        square[:, place.top : place.top + 48].numpy(), pixels.transpose(2, 0, 1).astype(np.float32) / 255
    )
    assert torch.all(square[:, : place.top] == PADDING) and place.top == 8 and PADDING == 114 / 255


def test_prediction_sees_what_the_store_holds() -> None:
    """The same pixels from a raw image as from its smaller copy in the store, with boxes in raw pixels either way."""
    raw = RNG.integers(0, 256, (333, 500), dtype=np.uint8)
    stored = np.asarray(Image.fromarray(raw).resize(stored_size((500, 333), 96), Image.Resampling.BOX))
    np.testing.assert_array_equal(shrink(raw, 96), stored)
    first, second = letterbox(raw, 96), letterbox(stored, 96, (500, 333))
    assert torch.equal(first[0], second[0]) and first[1] == second[1]
