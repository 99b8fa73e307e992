"""``--format``: what a prediction writes, from which scans, and what is refused before anything is computed."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from medkd.cli.predict import main  # noqa: E402
from medkd.core.errors import DataError, RunError  # noqa: E402
from medkd.core.files import read_json  # noqa: E402
from medkd.core.geometry import Geometry  # noqa: E402
from medkd.core.made_with import MADE_WITH_FILE  # noqa: E402
from medkd.inference.folder import predict_folder  # noqa: E402
from medkd.inference.inputs import SETTINGS_FILE  # noqa: E402
from medkd.inference.loaded import load  # noqa: E402
from medkd.io.volumes import read_geometry, read_label, read_volume, write_volume  # noqa: E402
from tests.io.dicom_series import SHAPE, on_slice, write_series  # noqa: E402

FAST: dict[str, Any] = {"mirror": False, "step_size": 1.0, "device": "cpu"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two series of two patients."""
    for patient in ("p1", "p2"):
        write_series(tmp_path / "tree" / patient, change=on_slice(-1, PatientID=patient, PatientName="Doe^J"))
    return tmp_path / "tree"


def masks(path: Path) -> np.ndarray:
    """Label map ``(z, y, x)`` of a BINARY DICOM-SEG of the series above, frame by frame."""
    read = pydicom.dcmread(path)
    array = np.zeros(SHAPE, np.int16)
    planes = read.pixel_array.reshape(-1, *SHAPE[1:])
    for frame, plane in zip(read.PerFrameFunctionalGroupsSequence, planes, strict=True):
        z = round((float(frame.PlanePositionSequence[0].ImagePositionPatient[2]) + 700) / 2.5)
        array[z][plane > 0] = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return array


def test_several_formats_of_a_series_say_the_same(make_run: Callable[..., Path], tree: Path, tmp_path: Path) -> None:
    run, out = make_run(folds=1), tmp_path / "out"
    chosen = ["nifti", "nrrd", "mha", "dicom-seg", "rtstruct"]
    report = predict_folder(tree, out, run, format=chosen, **FAST)
    assert report.predicted == ["p1", "p2"]
    endings = (".dcm", ".mha", ".nii.gz", ".rtstruct.dcm", ".seg.nrrd")
    listed = [f"{patient}{ending}" for patient in ("p1", "p2") for ending in endings]
    assert names(out) == sorted([*listed, "labels.ctbl", MADE_WITH_FILE, SETTINGS_FILE])
    (out / "labels.ctbl").write_text("of another model that predicted into this folder")
    predict_folder(tree, out, run, format=chosen, **FAST)
    assert "liver" in (out / "labels.ctbl").read_text()
    expected = read_label(out / "p1.nii.gz")
    for ending in (".mha", ".seg.nrrd"):
        found = read_label(out / f"p1{ending}")
        assert np.array_equal(found.array, expected.array)
        assert found.geometry.differences(read_geometry(tree / "p1"), tolerance=1e-5) == []
    assert np.array_equal(masks(out / "p1.dcm"), expected.array)
    read = pydicom.dcmread(out / "p2.dcm")
    assert read.PatientID == "p2" and [segment.SegmentLabel for segment in read.SegmentSequence] == ["liver", "spleen"]
    assert read_json(out / SETTINGS_FILE)["written"] == ["nifti", "nrrd", "mha", "dicom-seg binary", "rtstruct"]
    # what lies there is no scan, and a further run goes on from it
    (out / "p2.dcm").unlink()
    again = predict_folder(tree, out, run, format=chosen, resume=True, **FAST)
    assert (again.predicted, again.skipped) == (["p2"], ["p1"])
    with pytest.raises(RunError, match="made with other settings"):
        predict_folder(tree, out, run, format="dicom-seg", resume=True, **FAST)


def test_the_command_takes_a_format_and_one_file(
    make_run: Callable[..., Path], tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(make_run(folds=1))
    for number, options in enumerate((["--format", "dicom-seg"], ["-f", "dicom-seg"], [])):
        file = tmp_path / f"{number}.dcm"
        command = ["-i", str(tree / "p1"), "-o", str(file), "-m", run, "--no-tta", *options]
        assert main([*command, "--seg-kind", "labelmap"]) == 0
        assert pydicom.dcmread(file).SegmentationType == "LABELMAP"
    assert "copy " not in capsys.readouterr().err  # highdicom tells what it copies
    assert main(["-i", str(tree / "p1"), "-o", str(tmp_path / "x.rtstruct.dcm"), "-m", run, "--no-tta"]) == 0
    assert pydicom.dcmread(tmp_path / "x.rtstruct.dcm").Modality == "RTSTRUCT"
    capsys.readouterr()
    assert main(["-i", str(tree / "p1"), "-o", str(tmp_path / "x.nii"), "-m", run, "--format", "nrrd"]) == 1
    assert "does not end as --format nrrd does; end the name with .seg.nrrd or .nrrd" in capsys.readouterr().err


def test_a_scan_that_is_no_series_needs_one(make_run: Callable[..., Path], tree: Path, tmp_path: Path) -> None:
    """A converted scan whose axes run otherwise than the series' gets its label map back on the slices."""
    run, out = make_run(folds=1), tmp_path / "out"
    volume = read_volume(tree / "p1")
    flipped = volume.geometry.matrix @ np.array([[-1, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    (tmp_path / "in").mkdir()
    scan = tmp_path / "in" / "p1.nii.gz"
    write_volume(scan, volume.array[:, :, ::-1], Geometry.from_affine(volume.array.shape, flipped))
    with pytest.raises(DataError, match=r"refers to the DICOM series of the scan, but .*p1\.nii\.gz is none"):
        predict_folder(scan, out, run, format="dicom-seg", **FAST)
    assert not out.exists()
    predict_folder(scan, out, run, format=["nifti", "dicom-seg"], source_series=tree / "p1", **FAST)
    assert np.array_equal(masks(out / "p1.dcm"), read_label(out / "p1.nii.gz").array[:, :, ::-1])
    assert pydicom.dcmread(out / "p1.dcm").PatientID == "p1"
    predict_folder(tmp_path / "in", tmp_path / "tree_of_series", run, format="dicom-seg", source_series=tree, **FAST)
    assert pydicom.dcmread(tmp_path / "tree_of_series" / "p1.dcm").PatientID == "p1"


def test_a_series_of_another_grid_fails_before_the_network_runs(
    make_run: Callable[..., Path], tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "other", spacing=(0.8, 0.5))
    volume = read_volume(tree / "p1")
    write_volume(tmp_path / "p1.nii.gz", volume.array, volume.geometry)
    monkeypatch.setattr("medkd.inference.predictor.Predictor.predict", lambda *_, **__: pytest.fail("it ran"))
    run, other = make_run(folds=1), tmp_path / "other"
    report = predict_folder(
        tmp_path / "p1.nii.gz", tmp_path / "out", run, format="dicom-seg", source_series=other, **FAST
    )
    assert "does not lie on the grid of the DICOM series" in report.failed["p1"]
    assert names(tmp_path / "out") == [MADE_WITH_FILE, SETTINGS_FILE]


def test_what_cannot_be_written_is_one_sentence(
    make_run: Callable[..., Path], tree: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = make_run(folds=1), tmp_path / "out"

    def refused(text: str, inputs: Path = tree, **more: Any) -> None:
        with pytest.raises((DataError, RunError), match=text):
            predict_folder(inputs, out, run, **FAST, **more)
        assert not out.exists()

    refused("--format has no 'dicomseg'. Did you mean", format="dicomseg")
    refused("--format dicom-sr is for detection, but the model is for segmentation", format="dicom-sr")
    refused("--seg-kind expects binary or labelmap, found 'x'", format="dicom-seg", seg_kind="x")
    refused("--source-series is for formats that refer to a DICOM series", source_series=tree)
    refused("gone does not exist", scans, format="dicom-seg", source_series=tmp_path / "gone")
    refused("has no series called case_0", scans, format="dicom-seg", source_series=tree)
    refused("Expected the file .*no.json", format="dicom-seg", terms=tmp_path / "no.json")
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    refused(
        r"needs highdicom, which is not installed; install it with: pip install 'medkd\[dicom\]'", format="dicom-seg"
    )


def test_unknown_terms_are_said_and_taken_from_a_file(
    make_run: Callable[..., Path], tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(folds=1)
    content = json.loads((run / "dataset.json").read_text())
    content["labels"] = {"background": 0, "liver": 1, "my thing": 2}
    (run / "dataset.json").write_text(json.dumps(content))
    caplog.set_level(logging.WARNING)
    predict_folder(tree / "p1", tmp_path / "a", run, format="dicom-seg", **FAST)
    assert "No coded term is known for my thing;" in caplog.text
    caplog.clear()
    (tmp_path / "terms.json").write_text('{"my thing": {"code": "T1", "scheme": "99ME", "meaning": "My thing"}}')
    predict_folder(tree / "p1", tmp_path / "b", run, format="dicom-seg", terms=tmp_path / "terms.json", **FAST)
    assert "No coded term" not in caplog.text
    codes = [
        pydicom.dcmread(tmp_path / folder / "p1.dcm").SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeValue
        for folder in "ab"
    ]
    assert codes == ["261665006", "T1"]
    assert caplog.text.count("highdicom") == 0


def test_a_loaded_model_saves_in_every_format(make_run: Callable[..., Path], tree: Path, tmp_path: Path) -> None:
    scan = load(make_run(folds=1), mirror=False, step_size=1.0).predict(tree / "p1")
    for name in ("a.nii.gz", "a.seg.nrrd", "a.mha", "a.dcm", "a.rtstruct.dcm"):
        scan.save(tmp_path / name)
    assert np.array_equal(masks(tmp_path / "a.dcm"), scan.labels)
    assert np.array_equal(read_label(tmp_path / "a.seg.nrrd").array, scan.labels)
    assert pydicom.dcmread(tmp_path / "a.rtstruct.dcm").StructureSetROISequence[0].ROIName == "liver"
    scan.save(tmp_path / "b.dcm", "rtstruct")
    assert pydicom.dcmread(tmp_path / "b.dcm").Modality == "RTSTRUCT"
    for name, text in (("a.xyz", "cannot be written as a.xyz"), ("a.dcm", "does not end as --format nrrd does")):
        with pytest.raises(DataError, match=text):
            scan.save(tmp_path / name, "nrrd" if name == "a.dcm" else None)
    write_volume(tmp_path / "x.nii.gz", *scan_of(tree / "p1"))
    converted = load(make_run(folds=1), mirror=False, step_size=1.0).predict(tmp_path / "x.nii.gz")
    with pytest.raises(DataError, match=r"x\.nii\.gz is none; predict from the series itself"):
        converted.save(tmp_path / "c.dcm")
    converted.save(tmp_path / "c.dcm", source_series=tree / "p1")
    assert pydicom.dcmread(tmp_path / "c.dcm").PatientID == "p1"


def scan_of(folder: Path) -> tuple[np.ndarray, Geometry]:
    volume = read_volume(folder)
    return volume.array, volume.geometry


def test_no_object_tells_a_folder_of_the_machine(make_run: Callable[..., Path], tree: Path, tmp_path: Path) -> None:
    """Files that are sent carry the patient of their source, and the model's name, but no path."""
    run, out = make_run(folds=1), tmp_path / "out"
    predict_folder(tree / "p1", out, run, format=["nifti", "nrrd", "mha", "dicom-seg", "rtstruct"], **FAST)
    for file in out.iterdir():
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        if file.name not in (MADE_WITH_FILE, SETTINGS_FILE):  # which stay where the predictions are made
            assert str(tmp_path).encode() not in content and b"pytest" not in content, file


def test_label_maps_beside_the_scans_are_no_scans(make_run: Callable[..., Path], scans: Path) -> None:
    run = make_run(folds=1)
    for _ in range(2):
        report = predict_folder(scans, scans, run, format=["nrrd", "mha"], **FAST)
        assert report.predicted == ["case_0", "case_1", "case_2"]
    assert read_label(scans / "case_0.seg.nrrd").array.shape == read_geometry(scans / "case_0_0000.nii.gz").shape
    alone = scans / "alone"
    alone.mkdir()
    (scans / "case_0_0000.nii.gz").rename(alone / "x.nii.gz")
    for _ in range(2):
        assert predict_folder(alone, alone, run, format="nrrd", **FAST).predicted == ["x"]
