"""Exported models predict what the model predicts that they were made from, without torch; damaged ones are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medkd.core.errors import MedkdError, RunError
from medkd.core.files import write_json
from medkd.core.geometry import Geometry
from medkd.exporting.export import export_model
from medkd.exporting.formats import FORMATS, Parcel
from medkd.exporting.packing import pack_run
from medkd.inference.predictor import Predictor
from medkd.io.volumes import read_image, read_label
from medkd.models.run import SegmentationRun
from medkd.runtime.package import measured_export
from medkd.runtime.predictor import RuntimePredictor
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train
from tests.training.builders import make_dataset

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0"
STUDENT = OLD / "plain_unet_w2__3d_fullres__kd+at__from_plain_unet"


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[request.param])
    folder = tmp_path_factory.mktemp("exported") / request.param
    parity = export_model(STUDENT, folder, format=request.param, scan=[OLD / "scan_0000.nii.gz"])
    assert parity.foreground > 50
    return folder


def test_reports_know_the_run_that_was_exported(exported: Path) -> None:
    """By the name of its folder, under which its times are kept, not by the short one."""
    assert measured_export(exported, "onnxruntime").made_from == STUDENT.name


def test_the_exported_student_predicts_what_the_run_predicted(exported: Path) -> None:
    image, geometry = read_image([OLD / "scan_0000.nii.gz"], "scan")
    found = RuntimePredictor.open(exported).predict_case(image, geometry, "scan")
    expected = read_label(STUDENT / "expected.nii.gz").array
    assert np.mean(found != expected) < 1e-3


@pytest.mark.parametrize("shape", [(16, 16, 16), (30, 9, 41), (17, 50, 16)])
def test_logits_are_equal_on_volumes_of_any_size(exported: Path, shape: tuple[int, int, int]) -> None:
    noise = np.random.default_rng(1).normal(5, 2, (1, *shape)).astype(np.float32)
    noise[:, :, : shape[1] // 3] = 0
    ours = Predictor.from_run(STUDENT, [0], "cpu").predict_preprocessed(noise).numpy()
    theirs = RuntimePredictor.open(exported).logits(noise)
    tolerance = 1e-4 if exported.name == "onnx" else 0.05  # OpenVINO's weights are stored in half precision
    assert np.abs(ours - theirs).max() < tolerance * max(1.0, np.abs(ours).max())


def test_probabilities_are_those_of_the_torch_path(exported: Path) -> None:
    from medkd.preprocessing.pipeline import preprocess_case

    image, geometry = read_image([OLD / "scan_0000.nii.gz"], "scan")
    predictor, runtime = Predictor.from_run(STUDENT, [0], "cpu"), RuntimePredictor.open(exported)
    prepared = preprocess_case("scan", image, geometry, predictor.plan, predictor.configuration)
    ours = predictor.predict(prepared, probabilities=True).probabilities
    theirs = runtime.predict(prepared, probabilities=True).probabilities
    assert ours is not None and theirs is not None and theirs.shape == ours.shape
    assert np.abs(ours.astype(float) - theirs.astype(float)).max() < 0.02


def test_prediction_needs_no_torch(exported: Path) -> None:
    code = f"""
import sys
for name in ("torch", "monai", "torchvision"):
    sys.modules[name] = None
from pathlib import Path
from typing import Any
from medkd.io.volumes import read_image
from medkd.runtime.package import measured_export
from medkd.runtime.predictor import RuntimePredictor
image, geometry = read_image([Path({str(OLD / "scan_0000.nii.gz")!r})], "scan")
print(int((RuntimePredictor.open(Path({str(exported)!r})).predict_case(image, geometry, "scan") > 0).sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def _damage(folder: Path, what: str) -> None:
    network = next(path for path in folder.glob("model.*") if path.suffix in (".onnx", ".xml"))
    described = json.loads((folder / "preprocessing.json").read_text())
    if what == "truncated network":
        network.write_bytes(network.read_bytes()[: network.stat().st_size // 2])
    elif what == "missing network":
        network.unlink()
    elif what == "another file":
        write_json(folder / "preprocessing.json", {**described, "network": "../../etc/passwd"})
    elif what == "another patch":
        write_json(folder / "preprocessing.json", {**described, "patch_size": [16, 16]})
    elif what == "unknown key":
        write_json(folder / "preprocessing.json", {**described, "step_sise": 0.5})
    elif what == "no labels":
        write_json(folder / "preprocessing.json", {**described, "labels": {"lung": 1}})
    else:
        (folder / "preprocessing.json").write_text(what)


@pytest.mark.parametrize(
    "what",
    [
        "truncated network",
        "missing network",
        "another file",
        "another patch",
        "unknown key",
        "no labels",
        "{",
        "[]",
    ],
)
def test_a_damaged_export_is_refused_in_one_sentence(exported: Path, what: str, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    _damage(folder, what)
    with pytest.raises(MedkdError) as caught:
        RuntimePredictor.open(folder)
    assert str(folder) in str(caught.value) or "preprocessing.json" in str(caught.value)


def test_an_export_that_predicts_otherwise_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    format = FORMATS["onnx"]

    def spoilt(parcel: Parcel, folder: Path) -> None:
        (network,) = parcel.trained.networks
        own = {name: value.clone() for name, value in network.state_dict().items()}
        with torch.no_grad():
            for value in network.parameters():
                value.mul_(1.2)
        format.write(parcel, folder)
        network.load_state_dict(own)

    monkeypatch.setitem(FORMATS, "onnx", replace(format, write=spoilt))
    with pytest.raises(RunError, match=r"predicts scan_0000\.nii\.gz otherwise than the model"):
        export_model(STUDENT, tmp_path / "out", scan=[OLD / "scan_0000.nii.gz"])
    assert list(tmp_path.iterdir()) == []


def test_one_changed_weight_is_found_though_the_label_maps_are_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that calls nothing a structure: its logits differ, its label maps cannot."""
    pytest.importorskip("onnxscript")

    def changed(parcel: Parcel, folder: Path) -> None:
        (network,) = parcel.trained.networks
        weights = [value for value in network.parameters() if value.ndim == 5]
        middle = weights[len(weights) // 2]
        with torch.no_grad():
            middle[0, 0, 0, 0, 0] += 1
            written.write(parcel, folder)
            middle[0, 0, 0, 0, 0] -= 1

    def silent(*given: Any, **more: Any) -> Any:
        trained = loaded(*given, **more)
        with torch.no_grad():
            [value for value in trained.networks[0].parameters() if value.ndim == 1][-1][0] += 1000
        return trained

    written, loaded = FORMATS["onnx"], SegmentationRun.load
    monkeypatch.setattr(SegmentationRun, "load", silent)
    monkeypatch.setitem(FORMATS, "onnx", replace(written, write=changed))
    with pytest.raises(RunError, match=r": 0 of \d+ voxels have another label, and the logits differ by"):
        export_model(STUDENT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_in_use_are_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RunError, match="holds no exported model; choose a new folder"):
        export_model(STUDENT, tmp_path)


def test_a_2d_model_with_mirroring_goes_through_slices(tmp_path: Path) -> None:
    """A 2D run, made here, on an anisotropic scan whose axes are transposed by nothing."""
    pytest.importorskip("onnxruntime")
    make_dataset(tmp_path)
    fold = train(
        900,
        "plain_unet",
        0,
        TrainOptions(
            root=tmp_path,
            configuration="2d",
            epochs=1,
            iterations_per_epoch=3,
            workers=0,
            device="cpu",
            validate=False,
        ),
    )
    export_model(fold.parent, tmp_path / "out")
    image = np.random.default_rng(0).normal(5, 1, (1, 5, 21, 18)).astype(np.float32)
    geometry = Geometry.from_spacing((5, 21, 18), (3.0, 1.0, 1.0))
    ours = Predictor.from_run(fold.parent, [0], "cpu").predict_case(image, geometry, "a")
    assert np.array_equal(RuntimePredictor.open(tmp_path / "out").predict_case(image, geometry, "a"), ours)


def test_a_bundle_of_monais_is_exported_though_its_plan_has_no_statistics(tmp_path: Path) -> None:
    """It normalises by a window of its own; a foreign model whose plan is not one that medkd has made."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from tests.models.test_bundle import write

    parity = export_model(write(tmp_path / "spleen"), tmp_path / "onnx", scan=[OLD / "scan_0000.nii.gz"])
    assert parity.foreground and not RuntimePredictor.open(tmp_path / "onnx").plan.intensities
    described = json.loads((tmp_path / "onnx" / "preprocessing.json").read_text())
    described["plan"]["configurations"]["3d_fullres"]["normalization"] = ["ct"]
    write_json(tmp_path / "onnx" / "preprocessing.json", described)
    with pytest.raises(MedkdError, match="'normalization' expects 0 values"):
        RuntimePredictor.open(tmp_path / "onnx")


def test_what_cannot_be_is_said_before_anything_is_exported(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medkd.exporting.export._fill", None)
    (tmp_path / "file").touch()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"model": exported}, "is an exported model already; export the model that it was made from"),
        ({"output": tmp_path / "file" / "out"}, "Cannot write .*; choose a place that can be written to"),
        ({"int8": True, "tolerance": float("nan")}, "--tolerance expects a loss of Dice from 0 to 1, found nan"),
        ({"int8": True, "scans": tmp_path / "nowhere"}, "nowhere does not exist"),
    ]
    for given, text in wrong:
        asked: dict[str, Any] = {"model": STUDENT, "output": tmp_path / "out", **given}
        with pytest.raises(MedkdError, match=text):
            export_model(**asked)
    with pytest.raises(MedkdError, match="choose a place that can be written to"):
        pack_run(STUDENT, tmp_path / "file" / "out.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
