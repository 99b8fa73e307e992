"""Numbers that no training can work with are refused before anything is read."""

from __future__ import annotations

from typing import Any

import pytest

from medkd.core.errors import RunError
from medkd.training.options import TrainOptions

WRONG: list[tuple[str, Any, str]] = [
    ("epochs", 0, "a whole number of at least 1, found 0"),
    ("epochs", -5, "found -5"),
    ("epochs", 2.5, "found 2.5"),
    ("epochs", True, "found True"),
    ("iterations_per_epoch", 0, "at least 1"),
    ("batch_size", -1, "at least 1"),
    ("learning_rate", 0.0, "a number above 0, found 0.0"),
    ("learning_rate", -1.0, "found -1.0"),
    ("learning_rate", float("nan"), "found nan"),
    ("learning_rate", float("inf"), "found inf"),
    ("learning_rate", "0.1", "found '0.1'"),
    ("seed", -1, "at least 0"),
    ("seed", 2**32, "at most 4294967295"),
    ("seed", None, "found None"),
    ("workers", -1, "at least 0"),
    ("save_every", 0, "at least 1"),
    ("width_divisor", 0, "at least 1"),
    ("targets_limit", 0.0, "above 0"),
    ("patch_size", (0, 0, 0), "whole numbers of at least 1, one per axis, found (0, 0, 0)"),
    ("patch_size", (16, 2.5), "found (16, 2.5)"),
    ("patch_size", (), "found ()"),
    ("patch_size", 64, "found 64"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_number_outside_of_its_limits_is_one_sentence(name: str, value: object, message: str) -> None:
    with pytest.raises(RunError) as caught:
        TrainOptions(**{name: value})  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.startswith(f"--{name.replace('_', '-')} expects ") and message in text and "\n" not in text


def test_the_smallest_numbers_and_none_where_it_is_the_default_are_taken() -> None:
    small = TrainOptions(
        epochs=1,
        iterations_per_epoch=1,
        batch_size=1,
        learning_rate=1e-9,
        seed=0,
        workers=0,
        save_every=1,
        patch_size=(1,),
    )
    assert small.epochs == 1
    assert TrainOptions(epochs=None, learning_rate=None, workers=None, patch_size=None) == TrainOptions()
