"""Detectors of both families as ONNX: boxes, scores and suppression of the detector itself, by hand and by command."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import medkd
from medkd.cli.export import main
from medkd.cli.predict import main as predict
from medkd.core.checkpoint import save_checkpoint
from medkd.core.errors import MedkdError, RunError
from medkd.core.files import read_json, write_json
from medkd.detection.detecting import Limits
from medkd.exporting import detectors
from medkd.exporting.detectors import DetectorParity, export_detector
from medkd.models.base import open_model
from medkd.runtime.detection import read_detector, write_detector
from medkd.runtime.engines import open_engine
from medkd.runtime.package import RECORD, digest_of
from tests.detection.tv.builders import narrow  # noqa: F401 - a fixture
from tests.optional import needs_ultralytics

NEEDED = ("torchvision", "onnxscript", "onnxruntime")
SMALL = ("retinanet_r18", "fcos_r18", "gfl_r18", "atss_r18", "faster_rcnn_r18")


def save(folder: Path, detector: Any) -> Path:
    """A detector's weights, as from elsewhere."""
    spec = detector.spec
    save_checkpoint(folder / "best.pt", {"network": detector.state_dict()})
    stated = {"network": spec.name, "categories": list(spec.categories), "train": ["case_00"]}
    write_json(folder / "teacher.json", {**stated, "image_size": spec.image_size, "anchor_scale": spec.anchor_scale})
    return folder / "best.pt"


def tv(name: str) -> Any:
    """A detector of torchvision's kind with scores that differ between places."""
    from tests.detection.tv.builders import make

    detector = make(name)
    generator = torch.Generator().manual_seed(1)
    for module in detector.modules():
        heads = isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and len(module.weight) <= 20
        if heads:
            torch.nn.init.normal_(module.weight, std=0.1, generator=generator)
    return detector.eval()


def noise(count: int, size: int, seed: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def radiographs(folder: Path, count: int = 3) -> Path:
    """Radiographs of several shapes, one of them DICOM."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(count):
        pixels = random.integers(0, 255, (70 + 10 * index, 90 - 7 * index), np.uint8)
        Image.fromarray(pixels).save(folder / f"case_{index}.png")
    return folder


def calibrated(family: str) -> Any:
    if family == "yolo":
        needs_ultralytics()
        from tests.detection.yolo.builders import calibrated as yolo

        return yolo()
    if family == "end to end":
        needs_ultralytics()
        from tests.detection.yolo.builders import calibrated as yolo

        return yolo("yolo26n")
    return tv(family)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A detector of a family in ``theirs`` and its export by the command in ``out``, made once; nobody may change
    them.
    """
    for package in NEEDED:
        pytest.importorskip(package)

    @cache
    def made(family: str) -> Path:
        folder = tmp_path_factory.mktemp("exported")
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert main([str(save(folder / "theirs", calibrated(family))), "-o", str(folder / "out")]) == 0
        assert "boxes are the model's, up to" in said.getvalue()
        return folder

    return made


@pytest.mark.slow
@pytest.mark.parametrize("family", ["yolo", "end to end", *SMALL])
def test_the_boxes_of_the_graph_are_those_of_torch(exports: Callable[[str], Path], family: str) -> None:
    """Chosen by the graph's own suppression, read here without medkd's code."""
    folder = exports(family)
    reference = open_model(folder / "theirs" / "best.pt", "detection").load().networks[0]
    size = reference.spec.image_size
    parity = DetectorParity(**read_json(folder / "out" / RECORD)["parity"])
    assert parity.boxes >= 6 and parity.alone <= 1 + parity.boxes // 50
    run = open_engine(folder / "out" / "model.onnx", every=True)
    images = noise(3, size)
    single = read_json(folder / "out" / "detection.json")["single"]
    for index, expected in enumerate(reference.detect(images)):
        batch, place = (images[index : index + 1], 0) if single else (images, index)
        boxes, scores, selected = run(batch.numpy())
        kept = selected[selected[:, 0] == place]
        values = scores[place, kept[:, 1], kept[:, 2]]
        order = np.argsort(-values, kind="stable")[:300]
        inside = boxes[place, kept[order, 2]].clip(0, size)
        found = np.concatenate([inside, 1e4 * kept[order, 1:2], 50 * values[order, None]], 1)
        classes, marks = expected.classes.numpy()[:, None], expected.scores.numpy()[:, None]
        wanted = np.concatenate([expected.boxes.numpy(), 1e4 * classes, 50 * marks], 1)
        distance = np.abs(found[:, None] - wanted[None]).max(-1)
        assert len(wanted) > 1 and abs(len(found) - len(wanted)) <= 1
        assert np.mean(distance.min(1) < 0.05) > 0.97 and np.mean(distance.min(0) < 0.05) > 0.97


@pytest.mark.parametrize("family", ["yolo", "faster_rcnn_r18"])
def test_the_command_predicts_the_same_with_an_exported_detector(
    exports: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    """Radiographs to ``predictions.json``, also with another overlap than the graph's, and by ``medkd.load``."""
    model, exported = exports(family) / "theirs" / "best.pt", exports(family) / "out"
    inputs = radiographs(tmp_path / "in")
    add_dicom(inputs)
    for options in ([], ["--overlap", "0.3", "--score", "0.05", "--most", "20"]):
        found = []
        for name, path in (("torch", model), ("onnx", exported)):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            assert predict(["-i", str(inputs), "-o", str(tmp_path / name), "-m", str(path), *options]) == 0
            found.append(read_json(tmp_path / name / "predictions.json")["images"])
        compare(*found)
    image = np.asarray(Image.open(inputs / "case_0.png"))
    ours, theirs = medkd.load(model).predict(image), medkd.load(exported).predict(inputs / "case_0.png")
    assert np.allclose(ours.scores, theirs.scores, atol=1e-3) and len(ours.scores) > 0


def add_dicom(folder: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from tests.io.dicom_series import plane_dataset

    dataset = plane_dataset(np.random.default_rng(5).integers(0, 4000, (60, 80)))
    dataset.Modality, dataset.SOPClassUID = "DX", pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(folder / "film.dcm", enforce_file_format=True)


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert sorted(ours) == sorted(theirs) and len(ours) == 4
    for case, wanted in ours.items():
        one, other = wanted["boxes"], theirs[case]["boxes"]
        assert len(one) > 3 and abs(len(one) - len(other)) <= 1, case
        distance = np.abs(np.array(one)[:, None] - np.array(other)[None]).max(-1)
        assert np.mean(distance.min(1) < 0.1) > 0.97
        count = min(len(one), len(other)) // 2
        assert np.allclose(wanted["scores"][:count], theirs[case]["scores"][:count], atol=2e-3)


@pytest.fixture
def exported(exports: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exports("retinanet_r18") / "out", tmp_path / "out"))


def test_what_is_wrong_with_an_exported_detector_is_one_sentence(exported: Path, tmp_path: Path) -> None:
    model = open_model(exported)
    assert (model.kind, model.task) == ("exported_detector", "detection")
    with pytest.raises(RunError, match="gives boxes and no outputs to learn from"):
        model.seen("exported", [], tmp_path)
    with pytest.raises(RunError, match="chosen at export"):
        model.load([0])
    for where in ("cuda", "cuda:1", "mps"):
        with pytest.raises(RunError, match=r"device does not apply to .* for the CPU; leave it out"):
            medkd.load(exported, device=where)
        with pytest.raises(RunError, match=r"device does not apply to .* for the CPU; leave it out"):
            medkd.predict(tmp_path, tmp_path / "boxes", exported, device=where)
    assert not (tmp_path / "boxes").exists()
    with pytest.raises(RunError, match="is an exported detector already"):
        export_detector(exported, tmp_path / "again")
    described = read_json(exported / "detection.json")
    network = (exported / "model.onnx").read_bytes()
    changes: dict[str, dict[str, Any]] = {
        "'network' must be model.onnx": {"network": "../model.onnx"},
        "an image_size up to 8192": {"image_size": 10**6},
        "export the detector again": {"categories": []},
        r"\(none background or ignore\)": {"categories": ["Background"]},
        "is not the network that detection.json describes": {"digest": "00" * 32, "checksum": ""},
        "does not say what was exported": {"overlap": 0.9},
        "written by a newer medkd": {"schema": 99},
    }
    for text, change in changes.items():
        write_json(exported / "detection.json", {**described, **change})
        with pytest.raises(MedkdError, match=text) as caught:
            medkd.load(exported)
        assert "\n" not in str(caught.value)
    (exported / "detection.json").write_text(json.dumps(described)[:-30])
    with pytest.raises(MedkdError, match="not valid JSON"):
        medkd.load(exported)
    write_json(exported / "detection.json", described)
    (exported / "model.onnx").write_bytes(network[: len(network) // 2])
    with pytest.raises(RunError, match="changed, truncated or replaced"):
        medkd.load(exported)
    (exported / "model.onnx").unlink()
    with pytest.raises(RunError, match=r"has no model\.onnx"):
        medkd.load(exported)


def test_a_network_of_something_else_is_one_sentence(exported: Path) -> None:
    """The right hash in the description, but a network for segmentation behind it."""
    from medkd.models.onnx import export_onnx

    export_onnx([torch.nn.Conv2d(3, 2, 1)], 3, (64, 64), exported / "model.onnx")
    write_detector(exported, replace(read_detector(exported), digest=digest_of(exported / "model.onnx")))
    with pytest.raises(RunError, match="gives outputs of the shapes"):
        medkd.load(exported, limits=Limits(0.1)).predict(np.zeros((64, 64), np.uint8))
    export_onnx([torch.nn.Conv2d(1, 2, 1)], 1, (32, 32), exported / "model.onnx")
    write_detector(exported, replace(read_detector(exported), digest=digest_of(exported / "model.onnx")))
    with pytest.raises(RunError, match="cannot compute images of 64 pixels"):
        medkd.load(exported, limits=Limits(0.1)).predict(np.zeros((64, 64), np.uint8))


def test_outputs_that_no_detector_gives_are_one_sentence(exported: Path) -> None:
    """Places that there are not, values that are none, and integers in the place of scores."""
    boxes, scores = np.zeros((1, 5, 4), np.float32), np.zeros((1, 2, 5), np.float32)
    selected = np.zeros((1, 3), np.int64)
    detector = open_model(exported, "detection").load().networks[0]
    assert len(detector.detect(noise(1, 64))) == 1
    for outputs, text in (
        ((boxes, scores, selected + [0, 0, 5]), "selects boxes that it does not give"),
        ((boxes, scores, selected - 1), "selects boxes that it does not give"),
        ((boxes, scores + np.nan, selected), "not finite"),
        ((boxes, scores.astype(np.int64), selected), "values of the types"),
        ((boxes[0], scores, selected), "outputs of the shapes"),
        ((boxes, scores), "outputs of the shapes"),
    ):
        detector._run = lambda batch, outputs=outputs: list(outputs)
        with pytest.raises(RunError, match=text) as caught:
            detector.detect(noise(1, 64))
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("narrow")
def test_a_detector_that_finds_other_boxes_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDED:
        pytest.importorskip(package)
    from medkd.detection.tv.dense import DenseDetector

    true = DenseDetector.candidates
    monkeypatch.setattr(
        DenseDetector, "candidates", lambda self, images: (true(self, images)[0] + 1, true(self, images)[1])
    )
    with pytest.raises(RunError, match="nothing was exported"):
        export_detector(save(tmp_path / "theirs", tv("fcos_r18")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


WEIGHTS = {
    "yolo": ("cv3.0.2.weight", "cv2.0.2.weight", "model.12.cv2.conv.weight"),
    "end to end": ("one2one_cv3.0.2.weight", "one2one_cv2.0.2.weight", "model.13.cv2.conv.weight"),
    "retinanet_r18": ("to_class.weight", "to_box.weight", "layer_blocks.0.0.weight"),
    "faster_rcnn_r18": ("cls_score.bias", "box_predictor.bbox_pred.bias", "layer_blocks.0.0.weight"),
}
"""Of the head's classes, of its boxes, and before it."""


def unsure(detector: Any) -> Any:
    """Biases with which no score reaches the threshold."""
    for name, value in detector.named_parameters():
        last = name.endswith(("cv3.0.2.bias", "cv3.1.2.bias", "cv3.2.2.bias", "to_class.bias", "cls_score.bias"))
        if last:
            torch.nn.init.constant_(value, 0.0 if name.startswith("scorer") else -9.0)
        if name.endswith(("to_class.weight", "cls_score.weight")):
            value.data *= 0.02
        if name.startswith("scorer") and last:
            torch.nn.init.constant_(value[:1], 9.0)  # the background's
    return detector


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("family", WEIGHTS)
def test_one_changed_weight_is_found_though_nothing_is_found_in_noise(tmp_path: Path, family: str) -> None:
    """Two empty lists of boxes are alike, whatever the weights."""
    for package in NEEDED:
        pytest.importorskip(package)
    import onnx
    from onnx import numpy_helper

    detector = unsure(calibrated(family))
    folder = tmp_path / "out"
    parity = export_detector(save(tmp_path / "theirs", detector), folder)
    assert parity.boxes == 0 and parity.raw > 200
    reference = open_model(tmp_path / "theirs" / "best.pt", "detection").load().networks[0]
    sound = (folder / "model.onnx").read_bytes()
    for ending in WEIGHTS[family]:
        content = onnx.load_from_string(sound)
        (weight,) = [value for value in content.graph.initializer if value.name.endswith(ending)]
        values = numpy_helper.to_array(weight).copy()
        values.flat[-1] += 64  # as when a bit of its exponent flips
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(content, folder / "model.onnx")
        write_detector(folder, replace(read_detector(folder), digest=digest_of(folder / "model.onnx")))
        with pytest.raises(RunError, match="has other boxes or scores than the model before any box is dropped"):
            detectors._compare(reference, folder)


def test_options_of_segmentation_and_full_folders_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.detection import stub
    from tests.detection.builders import make_dataset

    run = stub.make_run(tmp_path, make_dataset(tmp_path, images=3))
    assert main([str(run), "-o", str(tmp_path / "out"), "--int8"]) == 1
    assert "--int8 is for segmentation" in capsys.readouterr().err
    for format in ("openvino", "nnunet", "bundle", "triton"):
        assert main([str(run), "-o", str(tmp_path / "out"), "--format", format]) == 1
        assert "is a detector; give --format onnx (boxes come out) or folder." in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(RunError, match="is in use and holds no exported model"):
        export_detector(run, tmp_path / "mine")
