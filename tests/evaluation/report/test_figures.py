"""Charts whose labels can be read, and contours of a known width."""

from __future__ import annotations

import numpy as np
import pytest

from medkd.evaluation.report.figures import _plain_log, human, new_axes
from medkd.evaluation.report.segmentation_pictures import _eroded


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(40, 300, "50 100 200"), (50, 1100, "100 300 1 k"), (1, 90_000, "1 10 100 1 k 10 k")]
)
def test_labels_of_a_logarithmic_axis_are_few(low: float, high: float, expected: str) -> None:
    _, axes = new_axes(4, 3)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    _plain_log(axes, low, high, human)
    assert " ".join(label.get_text() for label in axes.get_xticklabels()) == expected


def test_contours_are_two_pixels_wide_inside_of_the_structure() -> None:
    """Against the definition: a pixel with a pixel of the background, or a neighbour of one, among its neighbours."""
    masks = np.random.default_rng(0).random((3, 20, 24)) < 0.9
    expected = masks
    for _ in range(2):
        padded = np.pad(expected, ((0, 0), (1, 1), (1, 1)), constant_values=True)
        around = [padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]]
        expected = expected & np.logical_and.reduce(around)
    np.testing.assert_array_equal(_eroded(masks), expected)
    assert expected.any() and not expected.all()
