"""Patients as the raw data set says it now guard trainings of both tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, LeakError, RunError
from medkd.core.paths import Root
from medkd.core.splits import Split, save_splits
from medkd.detection.options import DetectorOptions
from medkd.detection.prepare import plan_and_preprocess_detection
from medkd.detection.task import DetectionTask
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.reproduction.inner import make_inner_root
from medkd.training import run
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import SegmentationTask
from tests.detection.builders import make_dataset as make_radiographs
from tests.io.test_verify import make_dataset as make_raw
from tests.training.builders import NAME, make_dataset, write_scans


def state(raw: Path, patients: dict[str, str]) -> None:
    described = DatasetDescription.load(raw / "dataset.json")
    replace(described, patients=patients).save(raw / "dataset.json")


def of_scans(root: Path) -> tuple[Any, int, Any, Path, Path]:
    prepared = make_dataset(root)
    write_scans(root)
    return SegmentationTask(), 900, partial_options(TrainOptions, root), root / "raw" / NAME, prepared


def of_radiographs(root: Path) -> tuple[Any, int, Any, Path, Path]:
    raw = make_radiographs(root, size=64)
    plan_and_preprocess_detection(502, root=root, image_size=64)
    return DetectionTask(), 502, partial_options(DetectorOptions, root), raw, root / "preprocessed" / raw.name


def partial_options(kind: Callable[..., Any], root: Path) -> Callable[..., Any]:
    return lambda **more: kind(root=root, device="cpu", **more)


@pytest.mark.parametrize("made", [of_scans, of_radiographs])
def test_torn_patients_are_told_and_refused_in_earnest(
    made: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, number, options, raw, prepared = made(tmp_path)
    cases = sorted(path.name.split(".")[0] for path in (raw / "labelsTr").iterdir())
    patients = {case: f"p{place // 2}" for place, case in enumerate(cases)}
    state(raw, {f"imagesTr/{case}_0000.nii.gz": patient for case, patient in patients.items()})
    save_splits(
        prepared / "splits_final.json",
        [Split(tuple(cases[1:]), (cases[0],)), Split(tuple(cases[2:]), tuple(cases[:2]))],
    )
    with caplog.at_level(logging.WARNING):
        data = run.read_fold(task, number, 0, options())
    assert "fold 0 trains on 1 and is judged on 1 of the scans of patient p0" in caplog.text
    assert data.description.patients == patients
    with pytest.raises(
        RunError, match=r"--strict: fold 0 trains on 1 .* keep patients together, or leave out --strict"
    ):
        run.read_fold(task, number, 0, options(strict=True))
    whole = run.read_fold(task, number, 1, options(strict=True))
    assert whole.split.val == tuple(cases[:2])
    kept = make_inner_root(Root.resolve(tmp_path), raw.name, "1", tmp_path / "inner")
    told = DatasetDescription.load(tmp_path / "inner" / "preprocessed" / raw.name / "dataset.json").patients
    assert told == {case: patients[case] for case in kept} and set(kept) == set(cases[2:])
    state(raw, {cases[0]: "p0", cases[2]: "p0"})  # as is known since; the teacher has seen the one, the other is judged
    data = run.read_fold(task, number, 1, options())
    data = replace(data, split=Split(tuple(cases[3:]), (cases[0],)))
    teacher: Any = SimpleNamespace(
        path=Path("t"), teaching_folds=("1",), seen=lambda *_: frozenset(cases[2:]), cleared=lambda _: ""
    )
    with pytest.raises(LeakError, match=f"1 other scans of patients on whom fold 1 .* for example {cases[2]}"):
        run._choose(teacher, data)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_patients_that_were_stated_wrongly_since_are_found_by_the_next_preparation(task: str, tmp_path: Path) -> None:
    """The cases are the same, so that what was found of them is kept."""
    prepare: Callable[..., Any]
    if task == "detection":
        raw = make_radiographs(tmp_path, size=64, patients=True)
        prepare = partial(plan_and_preprocess_detection, 502, root=tmp_path, image_size=64)
    else:
        raw = make_raw(tmp_path / "raw" / "Dataset001_D", channels=1)
        prepare = partial(plan_and_preprocess, 1, root=tmp_path, configurations=["3d_fullres"])
    prepare()
    cases = sorted(path.name.split(".")[0] for path in (raw / "labelsTr").iterdir())
    state(raw, {**dict.fromkeys(cases, "p0"), "somebody": "p1"})
    with pytest.raises(DataError, match="'somebody', which is no case"):
        prepare()
    state(raw, {f"{case}.nii.gz": f"p{place % 2}" for place, case in enumerate(cases)})
    prepare()
    prepared = DatasetDescription.load(tmp_path / "preprocessed" / raw.name / "dataset.json")
    assert prepared.patients == {case: f"p{place % 2}" for place, case in enumerate(cases)}
