from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import DataError, PlanError
from medkd.core.plan import Plan
from medkd.core.serial import save
from medkd.io.volumes import read_volume, write_volume
from medkd.preprocessing import prepare as api
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.preprocessing.store import CaseStore

from .builders import make_raw

FOLDER = "preprocessed/Dataset001_Test"


def times(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("*.json")}


def test_a_raw_data_set_becomes_plan_and_stores(tmp_path: Path) -> None:
    make_raw(tmp_path)
    plan = plan_and_preprocess(1, root=tmp_path)
    folder = tmp_path / FOLDER
    assert Plan.load(folder / "plans.json") == plan
    assert (folder / "fingerprint.json").exists() and (folder / "dataset.json").exists()
    assert list(plan.configurations) == ["2d", "3d_fullres"]
    for configuration in plan.configurations:
        store = CaseStore(folder / configuration)
        assert store.cases() == ["c0", "c1", "c2", "c3"]
        case = store.open("c2")
        assert case.image.shape == (1, 10, 14, 12) and abs(float(case.image.mean())) < 1e-4
        assert (case.label == 2).sum() == len(case.locations[2]) == 60


def test_unchanged_cases_are_kept_and_changed_ones_made_again(tmp_path: Path) -> None:
    raw, store = make_raw(tmp_path), tmp_path / FOLDER / "3d_fullres"
    plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
    before = times(store)
    plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
    assert times(store) == before
    volume = read_volume(raw / "imagesTr/c1_0000.nii.gz")
    write_volume(raw / "imagesTr/c1_0000.nii.gz", volume.array + np.arange(12, dtype=np.float32), volume.geometry)
    plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
    assert [name for name, time in times(store).items() if time != before[name]] == ["c1.json"]


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_raw(tmp_path)
    genuine = api.preprocess_case

    def killed(case: str, *args: object, **options: object) -> object:
        if case == "c2":
            raise KeyboardInterrupt
        return genuine(case, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(api, "preprocess_case", killed)
    with pytest.raises(KeyboardInterrupt):
        plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"], workers=1)
    made = []
    monkeypatch.setattr(api, "preprocess_case", lambda case, *a, **o: made.append(case) or genuine(case, *a, **o))
    plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
    assert "c2" in made and "c0" not in made
    assert len(CaseStore(tmp_path / FOLDER / "3d_fullres").cases()) == 4


def test_a_broken_case_is_named_before_anything_is_made(tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    (raw / "imagesTr/c1_0000.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"(?s)c1_0000.*Nothing was preprocessed"):
        plan_and_preprocess(1, root=tmp_path)
    assert not (tmp_path / FOLDER / "plans.json").exists()


def test_without_verification_the_others_go_on(tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    plan_and_preprocess(1, root=tmp_path, configurations=["2d"])
    (raw / "imagesTr/c1_0000.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"(?s)1 of 4 cases failed.*c1"):
        plan_and_preprocess(1, root=tmp_path, verify=False)


def test_cases_fail_one_by_one_while_preprocessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_raw(tmp_path)
    genuine = api.preprocess_case

    def failing(case: str, *args: object, **options: object) -> object:
        if case == "c1":
            raise MemoryError("no room")
        return genuine(case, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(api, "preprocess_case", failing)
    with pytest.raises(DataError, match=r"(?s)1 of 4 cases failed.*c1: MemoryError: no room"):
        plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
    assert CaseStore(tmp_path / FOLDER / "3d_fullres").cases() == ["c0", "c2", "c3"]


@pytest.mark.parametrize(
    ("removed", "after", "said"),
    [
        ("raw", "c1", "2 of 4 cases failed"),
        ("preprocessed", "c1", "lost 1 of its 4 cases"),
        ("preprocessed", "c3", "lost 3 of its 4 cases"),
        (FOLDER, "c1", "lost 1 of its 4 cases"),
        (f"{FOLDER}/3d_fullres", "c3", "lost 3 of its 4 cases"),
        (f"{FOLDER}/plans.json", "c3", "lost its plans.json"),
    ],
)
def test_what_is_deleted_meanwhile_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: str, after: str, said: str
) -> None:
    raw = make_raw(tmp_path)
    shutil.copytree(raw, tmp_path / "copy")
    genuine = api.preprocess_case

    def deleting(case: str, *args: object, **options: object) -> object:
        made = genuine(case, *args, **options)  # type: ignore[arg-type]
        if case == after:
            target = tmp_path / removed
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        return made

    monkeypatch.setattr(api, "preprocess_case", deleting)
    with pytest.raises(DataError) as error:
        plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"], workers=1)
    assert said in str(error.value) and "run the command again" in str(error.value)
    monkeypatch.undo()
    shutil.copytree(tmp_path / "copy", raw, dirs_exist_ok=True)
    plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
    assert CaseStore(tmp_path / FOLDER / "3d_fullres").cases() == ["c0", "c1", "c2", "c3"]


def test_an_edited_plan_is_kept_and_custom_configurations_survive_replanning(tmp_path: Path) -> None:
    make_raw(tmp_path)
    plan = plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
    usual = plan.configurations["3d_fullres"]
    edited = replace(usual, spacing=(1.0, 1.0, 1.0))
    custom = replace(usual, name="mine", spacing=(2.0, 2.0, 2.0))
    path = tmp_path / FOLDER / "plans.json"
    save(path, replace(plan, configurations={**plan.configurations, "3d_fullres": edited, "mine": custom}))
    assert (
        plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres", "mine"]).configurations["3d_fullres"]
        == edited
    )
    assert CaseStore(tmp_path / FOLDER / "3d_fullres").open("c0").image.shape == (1, 20, 14, 12)
    assert CaseStore(tmp_path / FOLDER / "mine").open("c0").image.shape == (1, 10, 7, 6)
    again = plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"], overwrite_plan=True)
    assert again.configurations["3d_fullres"] == usual and again.configurations["mine"] == custom
    assert CaseStore(tmp_path / FOLDER / "3d_fullres").open("c0").image.shape == (1, 10, 14, 12)


def test_cases_that_left_the_raw_data_leave_the_store(tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
    (raw / "labelsTr/c3.nii.gz").unlink()
    (raw / "imagesTr/c3_0000.nii.gz").unlink()
    data = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**data, "numTraining": 3}))
    plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
    assert CaseStore(tmp_path / FOLDER / "3d_fullres").cases() == ["c0", "c1", "c2"]


def test_unknown_configuration_and_detection_data_are_refused(tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    with pytest.raises(PlanError, match="Did you mean '3d_fullres'"):
        plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullress"])
    data = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**data, "task": "detection"}))
    with pytest.raises(DataError, match="detection"):
        plan_and_preprocess(1, root=tmp_path)


@pytest.mark.real_data
def test_real_scans_are_preprocessed_as_nnunet_did(tmp_path: Path, real_data: Path) -> None:
    """Eight hippocampus scans at 1 mm: z-scored, and the statistics close to nnU-Net's of all 200."""
    raw = tmp_path / "raw" / "Dataset004_Hippocampus"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for image in sorted((real_data / "hippocampus" / "imagesTr").glob("*.nii.gz"))[:8]:
        (raw / "imagesTr" / image.name.replace(".nii.gz", "_0000.nii.gz")).symlink_to(image)
        (raw / "labelsTr" / image.name).symlink_to(real_data / "hippocampus" / "labelsTr" / image.name)
    data = json.loads((real_data / "nnunet_model/model/dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**data, "numTraining": 8}))
    plan = plan_and_preprocess(4, root=tmp_path, configurations=["3d_fullres"])
    assert plan.configurations["3d_fullres"].spacing == (1.0, 1.0, 1.0)
    store = CaseStore(tmp_path / "preprocessed/Dataset004_Hippocampus/3d_fullres")
    for name in store.cases():
        case = store.open(name)
        assert case.image.shape[1:] == case.label.shape == case.properties.shape
        assert abs(float(case.image.mean())) < 1e-4 and float(case.image.std()) == pytest.approx(1, abs=1e-4)
        assert len(case.locations[1]) == (case.label == 1).sum() > 500
