"""Charts whose labels can be read."""

from __future__ import annotations

import pytest

from medkd.evaluation.report.figures import _plain_log, human, new_axes


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(40, 300, "50 100 200"), (50, 1100, "100 300 1 k"), (1, 90_000, "1 10 100 1 k 10 k")]
)
def test_labels_of_a_logarithmic_axis_are_few(low: float, high: float, expected: str) -> None:
    _, axes = new_axes(4, 3)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    _plain_log(axes, low, high, human)
    assert " ".join(label.get_text() for label in axes.get_xticklabels()) == expected
