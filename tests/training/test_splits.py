from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.model_selection import KFold

from medkd.core.errors import DataError
from medkd.training.splits import Split, ensure_splits, load_splits, make_splits, save_splits, split_of_fold

CASES = [f"case_{i:03d}" for i in range(23)]


def test_folds_are_nnunets() -> None:
    expected = KFold(5, shuffle=True, random_state=12345).split(np.arange(23))
    for (train, val), split in zip(expected, make_splits(CASES[::-1]), strict=True):
        assert [CASES[i] for i in train] == list(split.train)
        assert [CASES[i] for i in val] == list(split.val)


def test_real_nnunet_splits_are_reproduced(real_data) -> None:  # type: ignore[no-untyped-def]
    theirs = json.loads((real_data / "nnunet_model_strong/model/splits_final.json").read_text())
    cases = theirs[0]["train"] + theirs[0]["val"]
    assert [{"train": list(s.train), "val": list(s.val)} for s in make_splits(cases)] == theirs


test_real_nnunet_splits_are_reproduced = pytest.mark.real_data(test_real_nnunet_splits_are_reproduced)


def test_every_case_is_validated_exactly_once() -> None:
    assert sorted(c for s in make_splits(CASES) for c in s.val) == CASES


def test_patients_are_never_torn_apart() -> None:
    patients = {c: f"patient_{int(c[-3:]) // 3}" for c in CASES}
    for split in make_splits(CASES, patients):
        assert not {patients[c] for c in split.train} & {patients[c] for c in split.val}
        assert sorted(split.train + split.val) == CASES


def test_few_cases_make_fewer_folds_and_one_is_refused() -> None:
    assert len(make_splits(["a", "b", "c"])) == 3
    with pytest.raises(DataError, match="at least two"):
        make_splits(["a"])


def test_a_users_own_file_wins(tmp_path) -> None:  # type: ignore[no-untyped-def]
    own = [Split(("a", "b"), ("c",))]
    save_splits(tmp_path / "raw" / "splits_final.json", own)
    assert ensure_splits(tmp_path / "pre", ["a", "b", "c"], None, tmp_path / "raw") == own
    assert load_splits(tmp_path / "pre" / "splits_final.json") == own


@pytest.mark.parametrize(
    ("splits", "fold", "message"),
    [
        ([Split(("a",), ("b",))], 3, "does not exist"),
        ([Split(("a", "x"), ("b",))], 0, "not preprocessed"),
        ([Split(("a", "b"), ("b",))], 0, "both in"),
    ],
)
def test_bad_folds_are_refused(splits: list[Split], fold: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_of_fold(splits, fold, ["a", "b"])


def test_fold_all_trains_on_everything_and_holds_out_nothing() -> None:
    assert split_of_fold([], "all", ["b", "a"]) == Split(("a", "b"), ())


def test_a_broken_file_is_one_sentence(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "splits_final.json").write_text('[{"train": ["a"]}]')
    with pytest.raises(DataError, match="one entry per fold"):
        load_splits(tmp_path / "splits_final.json")
