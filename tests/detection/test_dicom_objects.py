"""Structured Reports and Secondary Captures of radiographs, read by highdicom, dcmqi and dciodvfy."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from medkd.core.errors import DataError, RunError  # noqa: E402
from medkd.detection.predict import predict_detections  # noqa: E402
from medkd.evaluation.detection.predictions import DetectionPredictions  # noqa: E402
from medkd.io.writing.maker import Maker  # noqa: E402
from medkd.io.writing.radiograph_objects import FoundBox, write_report  # noqa: E402
from medkd.io.writing.source import read_reference  # noqa: E402
from medkd.io.writing.structures import Structure  # noqa: E402
from medkd.io.writing.terms import known_terms  # noqa: E402
from tests.detection.test_predict import HEIGHT, WIDTH, picture, run, write_all, write_dicom  # noqa: E402
from tests.io.writing.test_dicom_seg import validator  # noqa: E402

__all__ = ["run"]
DX = "1.2.840.10008.5.1.4.1.1.1.1"
BOTH = ["dicom-sr", "dicom-sc"]


def radiograph(path: Path, **tags: object) -> None:
    whose: dict[str, object] = {
        "PatientName": "Doe^Jane",
        "PatientID": "P7",
        "PatientSex": "F",
        "StudyInstanceUID": "1.2.3.4",
    }
    write_dicom(path, picture(4095), WindowCenter=2048, WindowWidth=4096, SOPClassUID=DX, **(whose | tags))


def boxes_of(report: Any) -> list[tuple[float, ...]]:
    """Left, top, right, bottom of the closed polygons, from highdicom's reading."""
    found = []
    for group in report.content.get_planar_roi_measurement_groups():
        corners = np.array(group.roi.value)
        assert len(corners) == 5 and np.array_equal(corners[0], corners[-1])
        found.append((*corners.min(0), *corners.max(0)))
    return found


def errors_of(path: Path) -> list[str]:
    done = subprocess.run([validator("dciodvfy"), path], capture_output=True, text=True, check=False)
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]


def test_both_objects_hold_the_boxes_and_refer_to_the_radiograph(run: Path, tmp_path: Path) -> None:
    radiograph(tmp_path / "in" / "wrist.dcm")
    out = tmp_path / "out"
    assert predict_detections(tmp_path / "in", out, run, device="cpu", format=BOTH).predicted == ["wrist"]
    image = pydicom.dcmread(tmp_path / "in" / "wrist.dcm")
    found = DetectionPredictions.load(out / "predictions.json").images["wrist"].found
    kept = found.boxes[found.scores >= 0.25]
    report = highdicom.sr.srread(out / "dicom" / "wrist.sr.dcm")
    assert np.allclose(boxes_of(report), kept, atol=0.01) and len(kept)
    group = report.content.get_planar_roi_measurement_groups()[0]
    assert group.finding_type.meaning in ("Fracture", "Unknown")
    assert group.get_measurements()[0].value == pytest.approx(100 * found.scores[0], abs=0.1)
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert evidence.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    capture = pydicom.dcmread(out / "dicom" / "wrist.sc.dcm")
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert capture.pixel_array.shape == (HEIGHT, WIDTH, 3)
    colours = capture.pixel_array.astype(int)
    assert (np.abs(colours - [255, 209, 102]).sum(-1) < 60).sum() > 100  # the outline
    for read in (report, capture):
        assert (str(read.PatientName), read.PatientID, read.StudyInstanceUID) == ("Doe^Jane", "P7", "1.2.3.4")
    assert str(tmp_path) not in str(report) + str(capture)
    assert errors_of(out / "dicom" / "wrist.sr.dcm") == errors_of(out / "dicom" / "wrist.sc.dcm") == []


def test_a_continued_run_makes_what_is_missing_and_passes_over_its_own(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a", "b"):
        radiograph(folder / f"{name}.dcm")
    predict_detections(folder, folder / "out", run, device="cpu", format=BOTH)
    (folder / "out" / "dicom" / "b.sc.dcm").unlink()
    again = predict_detections(folder, folder / "out", run, device="cpu", format=BOTH, resume=True)
    assert (again.predicted, again.skipped) == (["b"], ["a"]) and (folder / "out" / "dicom" / "b.sc.dcm").exists()


def test_pictures_of_other_formats_and_foreign_formats_are_refused(run: Path, tmp_path: Path) -> None:
    write_all(tmp_path / "in")
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"--format dicom-sr refers to the radiograph's DICOM file, but .*a_png_0000"):
        predict_detections(tmp_path / "in", out, run, device="cpu", format="dicom-sr")
    with pytest.raises(RunError, match="--format dicom-seg is for segmentation, but the model is for detection"):
        predict_detections(tmp_path / "in", out, run, device="cpu", format="dicom-seg")
    assert not out.exists()


def test_a_report_without_boxes_and_with_a_site(tmp_path: Path) -> None:
    radiograph(tmp_path / "x.dcm", PatientSex="X", SpecificCharacterSet="ISO_IR 100")
    header = read_reference(tmp_path / "x.dcm")
    write_report(tmp_path / "none.dcm", header, [], Maker())
    nothing = highdicom.sr.srread(tmp_path / "none.dcm")
    assert boxes_of(nothing) == []
    (whole,) = nothing.content.get_image_measurement_groups()
    assert whole.get_measurements()[0].value == 0
    term = known_terms().find("radius_left_fracture")
    assert term is not None
    structure = Structure(name="Fraktur über Gelenk", values=(1,), colour=(1, 2, 3), term=term)
    boxes = [FoundBox((1.5, 2.25, 30.0, 40.0), structure, 0.5)]
    write_report(tmp_path / "one.dcm", header, boxes, Maker("yolo", "ab"))
    report = highdicom.sr.srread(tmp_path / "one.dcm")
    (group,) = report.content.get_planar_roi_measurement_groups()
    assert group.tracking_identifier == "Fraktur über Gelenk 1" and group.finding_type.value == "72704001"
    assert [(site.value.meaning, site.laterality.meaning) for site in group.finding_sites] == [("Radius", "Left")]
    assert boxes_of(report) == [(1.5, 2.25, 30.0, 40.0)]
    for name in ("none", "one"):
        assert errors_of(tmp_path / f"{name}.dcm") == []
    done = subprocess.run(
        [validator("tid1500reader"), "--inputDICOM", tmp_path / "one.dcm", "--outputMetadata", tmp_path / "q.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "q.json").read_text())
