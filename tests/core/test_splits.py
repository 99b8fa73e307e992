from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import KFold

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.core.splits import Split, ensure_splits, find_split, load_splits, make_splits, save_splits, split_of_fold

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


@pytest.mark.parametrize("fold", ["00", "²", "+0", "-1", "5", "", "ALL"])
def test_only_numbers_as_written_and_all_are_folds(fold: str) -> None:
    with pytest.raises(DataError, match="folds 0 to 4 and 'all'"):
        split_of_fold(make_splits(CASES), fold, CASES)


def _raw(folder: Path, cases: list[str], patients: dict[str, str] | None = None) -> Path:
    """A raw data set of empty label files."""
    (folder / "labelsTr").mkdir(parents=True)
    for case in cases:
        (folder / "labelsTr" / f"{case}.nii.gz").touch()
    DatasetDescription(
        channel_names=("MR",), labels=LabelSpec.from_names(["a"]), num_training=len(cases), patients=patients or {}
    ).save(folder / "dataset.json")
    return folder


def test_new_splits_are_of_all_raw_cases_and_one_that_is_not_preprocessed_is_refused(tmp_path: Path) -> None:
    patients = {case: case[:7] for case in CASES}
    raw = _raw(tmp_path / "raw", CASES, patients)
    with pytest.raises(
        DataError, match=r"1 cases that are not preprocessed \(case_022\); run medkd_plan_and_preprocess"
    ):
        find_split(tmp_path / "pre", 0, CASES[:-1], None, raw)
    assert load_splits(tmp_path / "pre" / "splits_final.json") == make_splits(CASES, patients)


def test_a_case_in_no_fold_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = _raw(tmp_path / "raw", CASES)
    save_splits(tmp_path / "pre" / "splits_final.json", make_splits(CASES[:-1]))
    with caplog.at_level(logging.WARNING):
        find_split(tmp_path / "pre", 0, CASES[:-1], None, raw)
    assert (
        "1 training case is in no fold" in caplog.text and "case_022" in caplog.text and "case_021" not in caplog.text
    )
    caplog.clear()
    save_splits(tmp_path / "pre" / "splits_final.json", make_splits(CASES))
    with caplog.at_level(logging.WARNING):
        find_split(tmp_path / "pre", 0, CASES, None, raw)
    assert not caplog.text


def test_fold_all_makes_no_splits_and_tells_of_cases_that_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = _raw(tmp_path / "raw", ["a", "b"])
    with caplog.at_level(logging.WARNING):
        assert find_split(tmp_path / "pre", "all", ["a"], None, raw) == Split(("a",), ())
    assert "1 training case is not preprocessed and left out: b" in caplog.text and not (tmp_path / "pre").exists()


def test_a_later_file_of_the_users_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    used = make_splits(CASES)
    save_splits(tmp_path / "pre" / "splits_final.json", used)
    save_splits(tmp_path / "raw" / "splits_final.json", [Split(s.train[::-1], s.val) for s in used])
    with caplog.at_level(logging.WARNING):
        assert ensure_splits(tmp_path / "pre", CASES, None, tmp_path / "raw") == used
        assert not caplog.text, "the order of cases means nothing"
        save_splits(tmp_path / "raw" / "splits_final.json", used[::-1])
        assert ensure_splits(tmp_path / "pre", CASES, None, tmp_path / "raw") == used
    assert (
        f"{tmp_path / 'raw/splits_final.json'} differs from {tmp_path / 'pre/splits_final.json'}, which is used"
        in caplog.text
    )


def test_nnunets_own_file_is_taken_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = make_splits(CASES)[::-1]
    save_splits(tmp_path / "nnunet" / "Dataset900_X" / "splits_final.json", theirs)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nnunet"))
    folder = tmp_path / "pre" / "Dataset900_X"
    assert ensure_splits(folder, CASES, None, write=False) == theirs
    patients = {case: case[:7] for case in CASES}
    assert ensure_splits(folder, CASES, patients, write=False) == make_splits(CASES, patients)
    assert ensure_splits(folder, CASES[1:], None, write=False) == make_splits(CASES[1:])


def test_fold_all_trains_on_everything_and_holds_out_nothing() -> None:
    assert split_of_fold([], "all", ["b", "a"]) == Split(("a", "b"), ())


def test_a_broken_file_is_one_sentence(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "splits_final.json").write_text('[{"train": ["a"]}]')
    with pytest.raises(DataError, match="one entry per fold"):
        load_splits(tmp_path / "splits_final.json")


def test_a_fold_without_training_cases_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "splits_final.json"
    for content in ('[{"train": [], "val": ["a"]}]', "[]", '{"train": []}', '[{"train": ["a"], "val": [["b"]]}]'):
        path.write_text(content)
        with pytest.raises(DataError, match=r"splits_final\.json: expected a list"):
            load_splits(path)


def test_a_case_that_is_left_out_for_its_twin_is_not_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases = ["a", "b", "c", "d"]
    DatasetDescription(
        channel_names=("X",),
        labels=LabelSpec.from_names(["one"]),
        num_training=4,
        extra={"medkd": {"duplicates": [["b", "c"]]}},
    ).save(tmp_path / "dataset.json")
    save_splits(tmp_path / "splits_final.json", [Split(("a",), ("b",))])
    ensure_splits(tmp_path, cases, {})
    [text] = [record.getMessage() for record in caplog.records]
    assert text.startswith("1 training case is in no fold") and ": d;" in text


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_case_twice_in_a_part_is_refused(part: str) -> None:
    """It would be drawn, or count, twice."""
    named = {"train": ("a", "b"), "val": ("c",), part: ("d", "e", "d")}
    with pytest.raises(DataError, match=f"Fold 0 has the case d more than once in '{part}'"):
        split_of_fold([Split(named["train"], named["val"])], 0, ["a", "b", "c", "d", "e"])
