"""INT8 exports: smaller, nearly the same label maps, and refused with the figure where they are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import RunError
from medkd.core.files import read_json
from medkd.exporting import quantising
from medkd.exporting.export import export_model
from medkd.inference.predictor import Predictor
from medkd.io.volumes import read_image
from medkd.runtime.predictor import RuntimePredictor

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0"
STUDENT = OLD / "plain_unet_w2__3d_fullres__kd+at__from_plain_unet"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    (tmp_path / "scans").mkdir()
    shutil.copy(OLD / "scan_0000.nii.gz", tmp_path / "scans")
    return tmp_path / "scans"


def test_a_quantised_student_predicts_nearly_the_same(scans: Path, tmp_path: Path) -> None:
    import onnx

    export_model(STUDENT, tmp_path / "int8", int8=True, scans=scans, tolerance=0.05)
    stated = read_json(tmp_path / "int8" / "export.json")["int8"]
    image, geometry = read_image([scans / "scan_0000.nii.gz"], "scan")
    found = RuntimePredictor.open(tmp_path / "int8", mirror=False).predict_case(image, geometry, "scan")
    expected = Predictor.from_run(STUDENT, [0], "cpu", mirror=False).predict_case(image, geometry, "scan")
    labels = [label for label in np.unique(expected) if label]
    dice = [2 * ((found == v) & (expected == v)).sum() / ((found == v).sum() + (expected == v).sum()) for v in labels]
    assert 1 - np.mean(dice) == pytest.approx(stated["loss"], abs=1e-3) and stated["loss"] < 0.05
    nodes = [node.op_type for node in onnx.load(tmp_path / "int8" / "model.onnx").graph.node]
    assert "QuantizeLinear" in nodes
    assert stated["scans"] == ["scan"] and 0 < stated["patches"] <= 32


def test_a_loss_above_the_tolerance_is_refused_with_its_figure(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibrated on empty patches, which say nothing of the ranges of activations."""
    true = quantising._patches
    monkeypatch.setattr(quantising, "_patches", lambda *given: [patch * 0 for patch in true(*given)])
    with pytest.raises(RunError, match=r"INT8 costs 0\.\d+ Dice .* more than --tolerance 0\.005"):
        export_model(STUDENT, tmp_path / "int8", int8=True, scans=scans)
    assert not (tmp_path / "int8").exists()


def test_int8_without_scans_or_of_another_format_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--int8 quantises --format onnx, not nnunet"):
        export_model(STUDENT, tmp_path / "out", format="nnunet", int8=True)
    pytest.importorskip("onnxscript")
    with pytest.raises(RunError, match="give a folder of scans with --scans"):
        export_model(STUDENT, tmp_path / "out", int8=True, root=tmp_path)
    assert not (tmp_path / "out").exists()
