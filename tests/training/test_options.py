"""Numbers that no training can work with are refused before anything is read."""

from __future__ import annotations

from typing import Any

import pytest

from medkd.core.errors import RunError
from medkd.detection.options import DetectorOptions
from medkd.training.options import RunOptions, TrainOptions

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
    assert text.startswith(f"{name} expects ") and message in text and "\n" not in text


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


@pytest.mark.parametrize("tag", ["../../x", "a/b", "a\\b", "..", ".hidden", "", "  ", " a", "a\x00b", "a\nb"])
@pytest.mark.parametrize("options", [TrainOptions, DetectorOptions])
def test_a_tag_does_not_lead_out_of_the_results_folder(options: type[RunOptions], tag: str) -> None:
    with pytest.raises(RunError, match=r"^--tag becomes part of a folder's name: .*; choose another text\.$"):
        options(tag=tag)


@pytest.mark.parametrize("tag", ["a", "lr0.01", "seed_3-b", "zweiter Lauf", "größer"])
def test_other_tags_are_taken(tag: str) -> None:
    assert TrainOptions(tag=tag).tag == DetectorOptions(tag=tag).tag == tag


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp64"}, "--precision must be one of fp32, bf16, fp16, auto, found 'fp64'"),
        ({"resume": True, "overwrite": True}, "Expected --continue or --overwrite, found both"),
        ({"targets": "cashed"}, "--targets must be one of live, cached"),
        ({"init": "random_teacher"}, "--init must be one of random, teacher"),
    ],
)
def test_words_that_are_not_known_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        TrainOptions(**changes)
    shared = {key: value for key, value in changes.items() if key in ("precision", "resume", "overwrite")}
    if shared:
        with pytest.raises(RunError, match=message):
            DetectorOptions(**shared)
