"""Scans of one patient are never on both sides, however ``dataset.json`` spells their names."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import LeakError, RunError
from medkd.core.files import read_json, write_json
from medkd.core.labels import LabelSpec
from medkd.core.patients import find_named, known_patients, torn_patients
from medkd.core.splits import Split, find_split, make_splits, save_splits
from medkd.io.verify import verify_dataset
from medkd.models.guard import allowed_folds, choose_teacher
from medkd.models.pretrained import refuse_leak
from medkd.training.out_of_fold import teachers_out_of_fold
from tests.io.test_verify import make_dataset

CASES = [f"c{number}" for number in range(8)]
PATIENTS = {case: f"p{number // 2}" for number, case in enumerate(CASES)}
SPELLED = (
    "{}.nii.gz",
    "{}_0000.nii.gz",
    "imagesTr/{}_0000.nii.gz",
    "C:\\data\\imagesTr\\{}_0000.nii.gz",
    "{}",
    "{} ",
)


def raw_of(folder: Path, patients: dict[str, str]) -> Path:
    """A raw data set of empty label files."""
    (folder / "labelsTr").mkdir(parents=True)
    for case in CASES:
        (folder / "labelsTr" / f"{case}.nii.gz").touch()
    DatasetDescription(
        channel_names=("MR",), labels=LabelSpec.from_names(["a"]), num_training=len(CASES), patients=patients
    ).save(folder / "dataset.json")
    return folder


@pytest.mark.parametrize("spelled", [*SPELLED, "upper"])
def test_names_of_patients_mean_cases_however_they_are_spelled(tmp_path: Path, spelled: str) -> None:
    def name(case: str) -> str:
        return case.upper() if spelled == "upper" else spelled.format(case)

    stated = {name(case): patient for case, patient in PATIENTS.items()}
    raw = raw_of(tmp_path / "raw", stated)
    split = find_split(tmp_path / "pre", 0, CASES, stated, raw)
    assert split == make_splits(CASES, PATIENTS)[0]
    assert not {PATIENTS[case] for case in split.train} & {PATIENTS[case] for case in split.val}
    prepared = DatasetDescription.load(raw / "dataset.json")
    assert known_patients(prepared, tmp_path / "nowhere", CASES) == known_patients(prepared, raw, CASES) == PATIENTS


def test_names_that_mean_nothing_are_told() -> None:
    found = find_named({"x": "p0", "c1": " ", "c2": "p1", "c2.nii.gz": "p2", "c3": "p3"}, CASES)
    assert found.of == {"c2": "p1", "c3": "p3"}
    assert [fault.split("'")[1] for fault in found.faults] == ["x", "c2.nii.gz", "c1"]


def test_verification_refuses_names_that_are_no_case(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "D", channels=1, medkd={"patients": {"c0.nii.gz": "p0", "c7": "p0", "c1": "p0"}})
    report = verify_dataset(folder)
    (problem,), (warning,) = report.problems, report.warnings
    assert "'c7', which is no case" in problem.text() and "none for 1 of 3 (c2, for example)" in warning.text()
    for part in ("imagesUn", "imagesTs"):
        (folder / part).mkdir()
    for place in ("imagesUn/c7_0000.nii.gz", "imagesTs/c8_0000.nii.gz"):
        (folder / place).write_bytes((folder / "imagesTr/c0_0000.nii.gz").read_bytes())
    data = read_json(folder / "dataset.json")
    stated = {**data["medkd"]["patients"], "c2": "p1", "c8_0000.nii.gz": "p1"}
    write_json(folder / "dataset.json", {**data, "medkd": {"patients": stated}})
    found = verify_dataset(folder)
    [torn] = [finding for finding in (*found.problems, *found.warnings) if "patient" in finding.text()]
    assert "found patient p1 on both sides" in torn.text() and not torn.error
    write_json(folder / "dataset.json", {**data, "medkd": {"patients": {**stated, "c8_0000.nii.gz": "p2"}}})
    found = verify_dataset(folder)
    assert not [finding for finding in (*found.problems, *found.warnings) if "patient" in finding.text()]


def test_a_split_that_tears_a_patient_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = raw_of(tmp_path / "raw", PATIENTS)
    save_splits(raw / "splits_final.json", [Split(tuple(CASES[1:]), ("c0",)), Split(tuple(CASES[2:]), ("c0", "c1"))])
    with caplog.at_level(logging.WARNING):
        split = find_split(tmp_path / "pre", 1, CASES, None, raw)  # patients were added since
    assert "fold 0 trains on 1 and is judged on 1 of the scans of patient p0;" in caplog.text
    assert "fold 1" not in caplog.text
    assert torn_patients(1, split.train, split.val, PATIENTS) is None
    both = torn_patients("0", CASES[1:], ("c0", "c1", "c2"), PATIENTS)
    assert both is not None and both.patients == ("p0", "p1") and (both.trained, both.judged) == (1, 2)


def model_of(seen: dict[str, set[str]]) -> Any:
    """A model whose folds have seen these cases."""
    return SimpleNamespace(
        path=Path("teacher"),
        name="teacher",
        teaching_folds=tuple(seen),
        seen=lambda fold, cases, raw: frozenset(seen[fold]),
        cleared=lambda raw: "",
    )


def test_a_teacher_that_has_seen_a_judged_patient_may_not_teach() -> None:
    split, raw = Split(("c4", "c5"), ("c0", "c2")), Path("raw")
    known = model_of({"0": {"c1", "c4"}})
    with pytest.raises(LeakError, match=r"on 1 other scans of patients on whom fold 0 of the student is judged, .* c1"):
        choose_teacher(known, 0, split, CASES, raw, PATIENTS)
    assert choose_teacher(known, 0, split, CASES, raw).fold == "0"  # nobody knows patients
    several = model_of({"0": {"c1"}, "1": {"c6"}, "2": {"c7"}, "3": {"c3"}})
    chosen = choose_teacher(several, 0, split, CASES, raw, PATIENTS)
    assert [teacher.fold for teacher in allowed_folds(chosen, split, CASES, raw, PATIENTS)] == ["1", "2"]
    with pytest.raises(LeakError, match=r"--weights w\.pt was trained on 1 other scans of patients on whom fold 0 is"):
        refuse_leak(Path("w.pt"), frozenset({"c3"}), 0, split, "--weights", PATIENTS)
    torn = Split(("c1", "c4"), ("c0",))  # of which its user was told
    assert choose_teacher(model_of({"0": {"c1", "c4"}}), 0, torn, CASES, raw, PATIENTS).fold == "0"
    with pytest.raises(LeakError, match="1 of the 1 cases"):
        choose_teacher(model_of({"0": {"c0"}}), 0, torn, CASES, raw, PATIENTS)


def test_out_of_fold_targets_are_of_folds_that_have_not_seen_the_patient(caplog: pytest.LogCaptureFixture) -> None:
    cases, raw = CASES[:4], Path("raw")
    model = model_of({"0": {"c0", "c1"}, "1": {"c2"}, "2": {"c0", "c2"}})
    found = {teacher.fold: teacher.seen for teacher in teachers_out_of_fold(model, cases, raw, PATIENTS, strict=True)}
    assert found == {"0": {"c0", "c1"}, "1": {"c2", "c3"}}
    torn = model_of({"0": {"c0", "c2"}, "1": {"c1", "c3"}})
    assert [teacher.seen for teacher in teachers_out_of_fold(torn, cases, raw, PATIENTS)] == [
        {"c0", "c2"},
        {"c1", "c3"},
    ]
    assert "tear patients apart, so that 4 cases" in caplog.text
    with pytest.raises(RunError, match="--strict: the folds of the teacher teacher tear patients apart"):
        teachers_out_of_fold(torn, cases, raw, PATIENTS, strict=True)
