"""From a raw detection data set to plan, folds and store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.cli.plan_and_preprocess import main
from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription, dataset_task
from medkd.core.errors import DataError, PlanError
from medkd.core.files import write_json
from medkd.core.paths import Root
from medkd.core.splits import load_splits
from medkd.detection.plan import DetectionPlan
from medkd.detection.prepare import plan_and_preprocess_detection
from medkd.detection.store import DetectionStore, stored_size
from tests.detection.builders import make_dataset

NAME = "Dataset502_Tiny"


def prepared(root: Path, **more: object) -> DetectionPlan:
    return plan_and_preprocess_detection(502, root=root, workers=1, **more)  # type: ignore[arg-type]


def test_everything_is_there_afterwards_and_nothing_is_done_twice(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    plan = prepared(tmp_path)
    folder = tmp_path / "preprocessed" / NAME
    assert {p.name for p in folder.iterdir()} >= {
        "plans.json",
        "fingerprint.json",
        "splits_final.json",
        "dataset.json",
        "detection",
    }
    assert (
        DetectionPlan.load(folder / "plans.json") == plan
        and plan.image_size == 96
        and set(plan.reasons) >= {"image_size", "epochs"}
    )
    store = DetectionStore(folder / "detection")
    assert store.cases() == [f"image_{i:02d}" for i in range(8)] and store.boxes("image_07")[0].shape == (0, 4)
    assert dataset_task(Root.resolve(tmp_path), 502) == "detection"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    assert prepared(tmp_path) == plan
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}


def test_only_what_changed_is_made_anew(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path)
    prepared(tmp_path)
    folder = tmp_path / "preprocessed" / NAME
    before = {p.stem: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    annotation = BoxAnnotation.load(raw / "labelsTr/image_03.json")
    replace(annotation, boxes=((1.0, 2.0, 30.0, 40.0),)).save(raw / "labelsTr/image_03.json")
    prepared(tmp_path)
    after = {p.stem: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    assert {case for case in before if before[case] != after[case]} == {"image_03"}
    np.testing.assert_allclose(DetectionStore(folder / "detection").boxes("image_03")[0], [[1, 2, 30, 40]])


def test_the_user_sets_sizes_and_an_edited_plan_is_kept(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    prepared(tmp_path)
    plan = prepared(tmp_path, image_size=64, batch_size=3)
    assert (plan.image_size, plan.batch_size) == (64, 3)
    folder = tmp_path / "preprocessed" / NAME
    store = DetectionStore(folder / "detection")
    assert store.size("image_00") == stored_size((96, 72), 64) == (64, 48) and store.original_size("image_00") == (
        96,
        72,
    )
    edited = replace(plan, learning_rate=0.5)
    edited.save(folder / "plans.json")
    assert prepared(tmp_path) == edited
    assert prepared(tmp_path, overwrite_plan=True).learning_rate == 0.01


def test_folds_are_stratified_and_keep_patients_and_equal_images_together(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path, images=20, negatives=10, patients=True)
    description = DatasetDescription.load(raw / "dataset.json")
    twins = {"duplicates": [["image_00", "image_19"]]}
    replace(description, extra={**description.extra, "medkd": twins}).save(raw / "dataset.json")
    prepared(tmp_path)
    splits = load_splits(tmp_path / "preprocessed" / NAME / "splits_final.json")
    store = DetectionStore(tmp_path / "preprocessed" / NAME / "detection")
    assert len(splits) == 5 and sorted(c for s in splits for c in s.val) == store.cases()
    for split in splits:
        patients = [{description.patients[c] for c in part} for part in (split.train, split.val)]
        assert not patients[0] & patients[1]
        assert ("image_00" in split.val) == ("image_19" in split.val)
        assert any(len(store.boxes(c)[1]) for c in split.val)


def test_an_official_split_wins(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path)
    official = [{"train": ["image_00", "image_01", "image_07"], "val": ["image_02"]}]
    write_json(raw / "splits_final.json", official)
    prepared(tmp_path)
    assert json.loads((tmp_path / "preprocessed" / NAME / "splits_final.json").read_text()) == official


def test_faulty_data_are_named(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path)
    image = raw / "imagesTr/image_01_0000.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:200])
    with pytest.raises(DataError, match="image_01") as caught:
        prepared(tmp_path)
    assert "Nothing was preprocessed" in str(caught.value)
    with pytest.raises(DataError, match="1 of 8 cases failed"):
        prepared(tmp_path, verify=False)
    stored = tmp_path / "preprocessed" / NAME / "detection/images"
    before = {p.stem: p.stat().st_mtime_ns for p in stored.iterdir()}
    image.write_bytes(whole)
    prepared(tmp_path, verify=False)
    after = {p.stem: p.stat().st_mtime_ns for p in stored.iterdir()}
    assert len(before) == 7 and after == {**before, "image_01": after["image_01"]}


def test_other_mistakes_are_refused(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path)
    with pytest.raises(PlanError, match="multiple of 32"):
        prepared(tmp_path, image_size=100)
    prepared(tmp_path)
    with pytest.raises(PlanError, match="follows no protocol, not sfd_kd:fracatlas_yolo"):
        prepared(tmp_path, protocol="sfd_kd:fracatlas_yolo")
    description = DatasetDescription.load(raw / "dataset.json")
    DatasetDescription.detection(("X-ray",), ("metal", "fracture"), num_training=8).save(raw / "dataset.json")
    with pytest.raises(PlanError, match="categories fracture, the data set has metal, fracture"):
        prepared(tmp_path, verify=False)
    description.save(raw / "dataset.json")
    (raw / "imagesTr/image_05_0000.png").unlink()
    with pytest.raises(DataError, match=r"image_05_0000\.png does not exist"):
        prepared(tmp_path)


def test_a_protocol_is_followed(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    plan = prepared(tmp_path, protocol="sfd_kd:fracatlas_yolo")
    assert plan.protocol == "sfd_kd:fracatlas_yolo" and (plan.image_size, plan.batch_size) == (480, 2)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(tmp_path)
    base = ["-d", "502", "--root", str(tmp_path), "-np", "1"]
    assert main([*base, "--image-size", "64"]) == 0
    shown = capsys.readouterr().out
    assert f"{NAME}: fracture" in shown and "64 px" in shown and "given by the user" in shown
    assert main([*base, "-c", "2d"]) == 1
    assert "--configuration is for segmentation, but 502 is for detection" in capsys.readouterr().err


@pytest.mark.real_data
def test_the_plan_of_real_radiographs(tmp_path: Path, real_data: Path) -> None:
    from dataset_conversion import ConversionOptions, convert_dataset

    source = real_data / "fracatlas"
    if not source.is_dir():
        pytest.skip("FracAtlas is not there")
    part = tmp_path / "fracatlas"  # a few of its images are enough for the way
    (part / "images/Fractured").mkdir(parents=True)
    for name in ("Annotations", "Utilities", "dataset.csv"):
        (part / name).symlink_to(source / name)
    listed = sorted((source / "images/Fractured").glob("*.jpg"))[::40]
    for path in listed:
        (part / "images/Fractured" / path.name).symlink_to(path)
    (part / "images/Non_fractured").mkdir()
    convert_dataset("fracatlas", part, 502, root=tmp_path / "root", options=ConversionOptions(workers=1))
    plan = plan_and_preprocess_detection(502, root=tmp_path / "root", workers=1, verify=False)
    assert plan.categories == ("fractured",) and 320 <= plan.image_size <= 640 and plan.sampling == {}
    store = DetectionStore(tmp_path / "root/preprocessed/Dataset502_FracAtlas/detection")
    assert store.cases()
    for case in store.cases():
        boxes, (width, height) = store.boxes(case)[0], store.size(case)
        assert len(boxes) and max(width, height) <= plan.image_size and store.image(case).shape == (height, width, 3)
        assert (boxes >= 0).all() and (boxes[:, 2:] <= (width, height)).all() and (boxes[:, 2:] > boxes[:, :2]).all()
