"""INT8 exports: smaller, nearly the same label maps, and refused with the figure where they are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import RunError
from medkd.core.files import read_json
from medkd.exporting import quantisers, quantising
from medkd.exporting.export import _scans_for_int8, export_model, seen_cases
from medkd.inference.predictor import Predictor
from medkd.io.volumes import read_image
from medkd.models.base import open_model
from medkd.models.onnx import export_onnx
from medkd.runtime.predictor import RuntimePredictor
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train
from tests.training.builders import NAME, make_dataset, write_scans

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0"
STUDENT = OLD / "plain_unet_w2__3d_fullres__kd+at__from_plain_unet"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    (tmp_path / "scans").mkdir()
    shutil.copy(OLD / "scan_0000.nii.gz", tmp_path / "scans")
    return tmp_path / "scans"


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_quantised_student_predicts_nearly_the_same(scans: Path, tmp_path: Path, format: str) -> None:
    if format == "openvino":
        pytest.importorskip("nncf")
    export_model(STUDENT, tmp_path / "int8", format=format, int8=True, scans=scans, tolerance=0.05)
    stated = read_json(tmp_path / "int8" / "export.json")["int8"]
    image, geometry = read_image([scans / "scan_0000.nii.gz"], "scan")
    found = RuntimePredictor.open(tmp_path / "int8", mirror=False).predict_case(image, geometry, "scan")
    expected = Predictor.from_run(STUDENT, [0], "cpu", mirror=False).predict_case(image, geometry, "scan")
    labels = [label for label in np.unique(expected) if label]
    dice = [2 * ((found == v) & (expected == v)).sum() / ((found == v).sum() + (expected == v).sum()) for v in labels]
    assert 1 - np.mean(dice) == pytest.approx(stated["loss"], abs=1e-3) and stated["loss"] < 0.05
    assert stated["scans"] == ["scan"] and 0 < stated["patches"] <= 32
    assert stated["milliseconds_before"] > 0 and stated["milliseconds_after"] > 0
    assert stated["bytes_before"] > 0 and stated["bytes_after"] > 0
    card = (tmp_path / "int8" / "README.md").read_text()
    assert f"INT8 costs {stated['loss']:.4f} Dice against the float network" in card


def test_the_first_and_the_last_convolution_stay_in_float(scans: Path, tmp_path: Path) -> None:
    import onnx

    export_model(STUDENT, tmp_path / "int8", int8=True, scans=scans, tolerance=0.05)
    nodes = onnx.load(tmp_path / "int8" / "model.onnx").graph.node
    made_by = {output: node.op_type for node in nodes for output in node.output}
    quantised = [made_by.get(node.input[1]) == "DequantizeLinear" for node in nodes if node.op_type == "Conv"]
    assert len(quantised) > 3 and not quantised[0] and not quantised[-1] and all(quantised[1:-1])


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_both_ends_of_every_fold_stay_in_float(tmp_path: Path, format: str) -> None:
    """The mean of two folds has two first convolutions, and two that make logits."""
    import torch
    from torch import nn

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.logits = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 4), (4, 4), (8, 2)))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            fine = torch.relu(self.first(image * 2))
            return self.logits(torch.cat((torch.relu(self.inner(fine)), fine), 1))

    pytest.importorskip("onnxscript")
    folds = [Small().eval(), Small().eval()]
    if format == "openvino":
        pytest.importorskip("nncf")
        from medkd.exporting.openvino import export_openvino

        network = tmp_path / "model.xml"
        export_openvino(folds, 1, (8, 8), network)
    else:
        network = tmp_path / "model.onnx"
        export_onnx(folds, 1, (8, 8), network)
    names = quantisers.convolutions(network)
    kept = quantisers.ends(network)
    assert len(names) == 6 and [name in kept for name in names] == [True, False, True] * 2


def test_what_a_network_reads_of_the_images_shape_is_not_the_image(tmp_path: Path) -> None:
    """As where a norm is written as reshaping to the shape of its input."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    sides = {"image": [1, 1, 8], "logits": [1, 1, 8]}
    image, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sides.items())
    kernel = helper.make_tensor("kernel", TensorProto.FLOAT, [1, 1, 1], [2.0])
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["fine"], name="first"),
        helper.make_node("Shape", ["image"], ["shape"], name="shape"),
        helper.make_node("Reshape", ["fine", "shape"], ["shaped"], name="reshape"),
        helper.make_node("Conv", ["shaped", "kernel"], ["more"], name="inner"),
        helper.make_node("Conv", ["more", "kernel"], ["logits"], name="last"),
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "small", [image], [logits], [kernel])), tmp_path / "a.onnx")
    assert quantisers.ends(tmp_path / "a.onnx") == ["first", "last"]


def test_scans_that_calibrate_and_are_compared_are_said(scans: Path, tmp_path: Path) -> None:
    scan = [OLD / "scan_0000.nii.gz"]
    export_model(STUDENT, tmp_path / "one", int8=True, scans=scans, scan=scan, tolerance=1.0)
    assert "on 1 scans, 1 of which it was calibrated on," in (tmp_path / "one" / "README.md").read_text()


def test_where_training_has_seen_every_case_the_scans_take_turns(tmp_path: Path) -> None:
    """As the folds of an ensemble have together: no scan calibrates and judges."""
    make_dataset(tmp_path)
    write_scans(tmp_path)
    options = TrainOptions(root=tmp_path, epochs=1, iterations_per_epoch=1, workers=0, device="cpu", validate=False)
    for fold in (0, 1):
        train(900, "plain_unet", fold, options)
    run = open_model(tmp_path / "results" / NAME / "plain_unet__3d_fullres", "segmentation")
    trained = run.load()
    seen = seen_cases(run, trained, tmp_path)
    calibration, judged = _scans_for_int8(trained, seen, None, tmp_path)
    assert len(seen or ()) == len(calibration) + len(judged) == 6
    assert not {case.case for case in calibration} & {case.case for case in judged}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_trained_student_keeps_its_label_maps(trained: Path, tmp_path: Path, format: str) -> None:
    """A student of some hundred steps on the phantom, with its own training and validation cases."""
    for package in ("onnxscript", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package)
    root = trained.parents[2]
    export_model(trained, tmp_path / "int8", format=format, int8=True, root=root, tolerance=0.05)
    record = read_json(tmp_path / "int8" / "export.json")
    assert record["int8"]["loss"] <= 0.05
    assert not set(record["int8"]["scans"]) & set(record["seen"])  # judged on cases that it has not seen


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import medkd
    from dataset_conversion.phantom import make_phantom

    root = tmp_path_factory.mktemp("trained")
    make_phantom(root / "raw" / "Dataset004_Phantom", cases=10, test_cases=0, shape=(24, 40, 40))
    medkd.plan_and_preprocess(4, root=root, configurations=["3d_fullres"], orientation="RAS")
    options = medkd.TrainOptions(
        root=root, epochs=3, iterations_per_epoch=50, batch_size=2, patch_size=(16, 32, 32), workers=0, device="cpu"
    )
    return medkd.train(4, "unet_tiny", 0, options, validate=False).parent


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
    with pytest.raises(RunError, match="--int8 quantises --format onnx or openvino, not nnunet"):
        export_model(STUDENT, tmp_path / "out", format="nnunet", int8=True)
    pytest.importorskip("onnxscript")
    with pytest.raises(RunError, match="give a folder of scans with --scans"):
        export_model(STUDENT, tmp_path / "out", int8=True, root=tmp_path)
    assert not (tmp_path / "out").exists()
