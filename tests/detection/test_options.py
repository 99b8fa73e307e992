"""Numbers that no training of a detector can work with are refused."""

from __future__ import annotations

import pytest

from medkd.core.errors import RunError
from medkd.detection.options import DetectorOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("iterations_per_epoch", -1),
        ("batch_size", 0),
        ("image_size", 0),
        ("learning_rate", 0.0),
        ("seed", -1),
        ("workers", -1),
    ],
)
def test_a_number_outside_of_its_limits_is_one_sentence(name: str, value: float) -> None:
    with pytest.raises(RunError, match=f"^{name} expects .*, found {value}; .*default\\.$"):
        DetectorOptions(**{name: value})  # type: ignore[arg-type]


def test_the_smallest_numbers_are_taken() -> None:
    assert (
        DetectorOptions(
            epochs=1, iterations_per_epoch=1, batch_size=1, image_size=32, learning_rate=1e-9, seed=0, workers=0
        ).epochs
        == 1
    )
