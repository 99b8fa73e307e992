"""Scans that are turned to the plan's axis code: one network input for every way of storing, and the way back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import DataError, PlanError
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.plan import Plan
from medkd.core.splits import ensure_splits
from medkd.inference.export import logits_to_labels
from medkd.io.orientation import axis_code, turn, turn_geometry
from medkd.io.volumes import read_volume, write_volume
from medkd.preprocessing.pipeline import preprocess_case
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.preprocessing.store import CaseStore

from .builders import make_configuration, make_raw, plan_of

SHAPE = (9, 10, 12)
FOLDER = "preprocessed/Dataset001_Test"


def stored_as(code: str) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """One and the same oblique patient, stored along other axes."""
    rng = np.random.default_rng(3)
    label = np.zeros(SHAPE, np.int16)
    label[2:6, 3:8, 1:5] = 1
    image = (rng.normal(size=(1, *SHAPE)) + 5 * label).astype(np.float32)
    angle = np.deg2rad(15)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) * (
        1,
        1,
        3,
    )
    geometry = Geometry.from_affine(SHAPE, matrix)
    return turn(image, "RAS", code), turn(label, "RAS", code), turn_geometry(geometry, code)


@pytest.mark.parametrize("code", ["RAS", "LAS", "LPS", "PIR", "ASL"])
def test_every_way_of_storing_gives_one_input_and_its_own_output(code: str) -> None:
    configuration = make_configuration((3.0, 1.5, 1.5))
    plan = replace(plan_of(configuration), orientation="RAS")
    expected = preprocess_case("c", *stored_as("RAS")[::2], plan, configuration, stored_as("RAS")[1])
    image, label, geometry = stored_as(code)
    found = preprocess_case("c", image, geometry, plan, configuration, label)
    np.testing.assert_allclose(found.image, expected.image, atol=1e-5)
    np.testing.assert_array_equal(found.label, expected.label)
    assert found.properties.geometry == geometry and (found.properties.turned is None) == (code == "RAS")
    logits = np.stack([found.label < 1, found.label == 1]).astype(np.float32)
    back = logits_to_labels(logits, found.properties, plan, configuration, LabelSpec.from_names(["a"]))
    assert back.shape == geometry.shape
    overlap = 2 * ((back == 1) & (label == 1)).sum() / ((back == 1).sum() + (label == 1).sum())
    assert overlap > 0.6  # a small structure, resampled twice
    native = logits_to_labels(logits, expected.properties, plan, configuration, LabelSpec.from_names(["a"]))
    np.testing.assert_array_equal(turn(back, code, "RAS"), native)


def test_without_a_code_a_scan_is_taken_as_it_is_stored() -> None:
    configuration = make_configuration((3.0, 1.5, 1.5))
    image, _, geometry = stored_as("LAS")
    found = preprocess_case("c", image, geometry, plan_of(configuration), configuration)
    assert found.properties.turned is None and found.properties.grid == geometry


def turn_files(raw: Path, case: str, code: str) -> None:
    for path in (raw / f"imagesTr/{case}_0000.nii.gz", raw / f"labelsTr/{case}.nii.gz"):
        volume = read_volume(path, None)
        array = turn(volume.array, axis_code(volume.geometry), code)
        write_volume(path, np.ascontiguousarray(array), turn_geometry(volume.geometry, code))


def test_a_mixed_data_set_is_turned_as_a_whole(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "same")
    plain = plan_and_preprocess(1, root=tmp_path / "same", orientation="RAS")
    before = {case: CaseStore(tmp_path / "same" / FOLDER / "3d_fullres").open(case).image for case in ("c0", "c1")}
    raw = make_raw(tmp_path / "mixed")
    turn_files(raw, "c1", "LIP")
    plan = plan_and_preprocess(1, root=tmp_path / "mixed", orientation="ras")
    assert plan == plain and plan.orientation == "RAS" and plan.ranges.orientations == {"RAS": 4}
    store = CaseStore(tmp_path / "mixed" / FOLDER / "3d_fullres")
    for case, image in before.items():
        np.testing.assert_allclose(store.open(case).image, image, atol=1e-5)
    with pytest.raises(PlanError, match="turns scans to RAS, not to LPS; give --overwrite-plan"):
        plan_and_preprocess(1, root=tmp_path / "mixed", orientation="LPS")
    with pytest.raises(DataError, match="Unknown axis code 'RAR'"):
        plan_and_preprocess(1, root=tmp_path / "mixed", orientation="RAR")


def test_the_reader_that_a_data_set_asks_for_is_followed_or_refused(tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    description = json.loads((raw / "dataset.json").read_text())
    for reader, code in (("NibabelIOWithReorient", "RAS"), ("SimpleITKIO", None)):
        (raw / "dataset.json").write_text(json.dumps({**description, "overwrite_image_reader_writer": reader}))
        plan = plan_and_preprocess(1, root=tmp_path, overwrite_plan=True, configurations=["3d_fullres"])
        assert plan.orientation == code
    (raw / "dataset.json").write_text(json.dumps({**description, "overwrite_image_reader_writer": "OwnReader"}))
    with pytest.raises(PlanError, match="asks for nnU-Net's OwnReader"):
        plan_and_preprocess(1, root=tmp_path)


def test_mirror_axes_are_kept_in_the_plan_of_each_configuration(tmp_path: Path) -> None:
    make_raw(tmp_path)
    plan = plan_and_preprocess(1, root=tmp_path)
    assert {c.mirror_axes for c in plan.configurations.values()} == {None}
    assert plan.configurations["3d_fullres"].mirrored == (0, 1, 2) and plan.configurations["2d"].mirrored == (0, 1)
    plan = plan_and_preprocess(1, root=tmp_path, mirror_axes=(2, 0))
    assert Plan.load(tmp_path / FOLDER / "plans.json") == plan
    assert plan.configurations["3d_fullres"].mirrored == (0, 2) and plan.configurations["2d"].mirrored == (1,)
    assert plan_and_preprocess(1, root=tmp_path) == plan
    plan = plan_and_preprocess(1, root=tmp_path, mirror_axes=())
    assert all(configuration.mirrored == () for configuration in plan.configurations.values())
    with pytest.raises(PlanError, match="0, 1 and 2"):
        plan_and_preprocess(1, root=tmp_path, mirror_axes=(3,))


def test_warnings_are_told_each_time_and_refused_when_strict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turn_files(make_raw(tmp_path), "c1", "LAS")
    for _ in range(2):
        caplog.clear()
        plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
        assert "LAS in 1 (c1)" in caplog.text
    with pytest.raises(
        DataError, match=r"(?s)LAS in 1 .c1.*leave out --strict; the report is .*verification_report.txt"
    ):
        plan_and_preprocess(1, root=tmp_path, strict=True)


def test_twins_stay_together_in_new_folds_and_torn_ones_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = make_raw(tmp_path, cases=10)
    twin = read_volume(raw / "imagesTr/c1_0000.nii.gz")
    write_volume(raw / "imagesTr/c7_0000.nii.gz", twin.array, twin.geometry)
    plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
    cases = [f"c{i}" for i in range(10)]
    splits = ensure_splits(tmp_path / FOLDER, cases, {}, raw)
    assert all(("c1" in split.val) == ("c7" in split.val) for split in splits)
    assert sorted(case for split in splits for case in split.val) == cases
    caplog.clear()
    torn = [{"train": [c for c in cases if c != case], "val": [case]} for case in cases]
    (tmp_path / FOLDER / "splits_final.json").write_text(json.dumps(torn))
    ensure_splits(tmp_path / FOLDER, cases, {}, raw)
    assert "equal scans are in training and validation at once" in caplog.text and "c1, c7" in caplog.text


def test_a_fingerprint_of_an_older_version_is_made_anew(tmp_path: Path) -> None:
    make_raw(tmp_path)
    plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
    path = tmp_path / FOLDER / "fingerprint.json"
    content = json.loads(path.read_text())
    facts = content.pop("facts")
    assert [case["orientation"] for case in facts] == ["RAS"] * 4 and facts[0]["volumes"] == {"1": 200.0, "2": 120.0}
    path.write_text(json.dumps(content))
    plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
    assert json.loads(path.read_text())["facts"] == facts


def test_a_spacing_that_would_not_fit_into_memory_is_named() -> None:
    configuration = make_configuration((1.0, 1.0, 1.0))
    image = np.zeros((1, *SHAPE), np.float32)
    with pytest.raises(DataError, match=r"would become .* more than the memory; check the voxel size"):
        preprocess_case("c", image, Geometry.from_spacing(SHAPE, (1e3,) * 3), plan_of(configuration), configuration)
