"""What a ``teachers.json`` may say: everything else is one sentence, and nothing is passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medkd.core.errors import MedkdError, RunError
from medkd.core.files import write_json
from medkd.models.base import open_model
from medkd.models.several import SeveralTeachers
from tests.models.nnunet.builders import configured, dataset_of, plans_of, write_model


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model ``a`` in it."""
    planned = configured((1.0,) * 3, (16,) * 3, 1)
    write_model(tmp_path / "a", plans_of({"3d_fullres": planned}), dataset_of(), "3d_fullres", folds=(0, 1))
    return tmp_path


def test_folds_are_those_that_are_named(place: Path) -> None:
    write_json(place / "inner" / "teachers.json", {"teachers": [{"model": "../a", "folds": [1]}]})
    write_json(place / "teachers.json", {"teachers": ["a", {"model": "a", "folds": [0, "1"]}, "inner", "inner"]})
    opened = open_model(place)
    assert isinstance(opened, SeveralTeachers)
    assert [member.folds for member in opened.members] == [(), ("0", "1"), (), ()]
    assert opened.members[2].model.teaching_folds == ("1",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"teachers": [{"model": "a", "fold": [0]}]}, "unknown key 'fold', .* Did you mean 'folds'"),
        ({"teachers": ["a"], "weights": [1]}, "unknown key 'weights', expected teachers"),
        ({"teachers": [{"model": "a", "folds": [True]}]}, r"under 'folds' a list of folds, .* found \[True\]"),
        ({"teachers": [{"model": "a", "folds": [0, "0"]}]}, "each once"),
        ({"teachers": [{"model": "a", "folds": [0.0]}]}, "found .0.0."),
        ({"teachers": [{"model": "a", "folds": []}]}, r"found \[\], or leave it out"),
        ({"teachers": [{"model": "a", "folds": None}]}, "found None"),
        ({"teachers": [{"model": 7}]}, "expected a folder, or"),
        ({"teachers": [["a"]]}, "expected a folder, or"),
        ({"teachers": ["."]}, "the list names itself"),
        ({"teachers": [""]}, "the list names itself"),
        ({"teachers": ["a", "teachers.json"]}, "the list names itself"),
        ({"teachers": ["a", "inner"]}, r"inner/teachers.json: the list names itself \('..' is"),
    ],
)
def test_what_is_no_list_of_models_is_refused(place: Path, content: dict[str, Any], message: str) -> None:
    write_json(place / "inner" / "teachers.json", {"teachers": [".."]})
    write_json(place / "teachers.json", content)
    with pytest.raises(MedkdError, match=message) as caught:
        open_model(place)
    assert isinstance(caught.value, RunError) and "\n" not in str(caught.value)
