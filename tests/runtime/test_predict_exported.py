"""``medkd_predict -m EXPORTED`` predicts like any other model: same scans in, same label maps out, no torch."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import medkd
from medkd.core.errors import LeakError, RunError
from medkd.core.files import read_json, write_json
from medkd.core.geometry import Geometry
from medkd.core.made_with import MADE_WITH_FILE
from medkd.core.splits import Split
from medkd.exporting.export import export_model
from medkd.inference.folder import predict_folder
from medkd.inference.inputs import SETTINGS_FILE
from medkd.io.volumes import read_geometry, read_label, write_volume
from medkd.models.base import open_model
from medkd.models.guard import choose_teacher
from medkd.runtime.package import RECORD
from tests.inference.conftest import make_run, scans

__all__ = ["make_run", "scans"]

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0"
STUDENT = OLD / "plain_unet_w2__3d_fullres__kd+at__from_plain_unet"
WITHOUT_TORCH = """
import sys
for name in ("torch", "monai", "torchvision"):
    sys.modules[name] = None
from medkd.cli.predict import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("exported") / "student"
    export_model(STUDENT, folder, scan=[OLD / "scan_0000.nii.gz"])
    return folder


def dice(found: np.ndarray, reference: np.ndarray, label: int) -> float:
    one, other = found == label, reference == label
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def predict(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_files_to_files_without_torch(exported: Path, tmp_path: Path) -> None:
    """Two scans, one of them stored flipped: label maps, geometry, settings; ``--continue`` finishes what is left."""
    (tmp_path / "in").mkdir()
    scan, out = OLD / "scan_0000.nii.gz", tmp_path / "out"
    shutil.copy(scan, tmp_path / "in" / "a_0000.nii.gz")
    shutil.copy(scan, tmp_path / "in" / "b_0000.nii.gz")
    done = predict("-i", tmp_path / "in", "-o", out, "-m", exported, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 scans predicted")
    assert sorted(path.name for path in out.iterdir()) == ["a.nii.gz", "b.nii.gz", MADE_WITH_FILE, SETTINGS_FILE]
    expected = read_label(STUDENT / "expected.nii.gz").array
    for case in "ab":
        assert np.array_equal(read_label(out / f"{case}.nii.gz").array, expected)
        assert read_geometry(out / f"{case}.nii.gz").differences(read_geometry(scan), tolerance=1e-5) == []
    assert read_json(out / SETTINGS_FILE)["engine"] == "onnxruntime"
    (out / "a.nii.gz").unlink()
    again = predict("-i", tmp_path / "in", "-o", out, "-m", exported, "--continue")
    assert again.stdout.startswith("1 scans predicted") and "1 were there already" in again.stdout


def test_one_scan_into_a_named_file_without_torch(exported: Path, tmp_path: Path) -> None:
    seg = tmp_path / "seg.nrrd"
    done = predict("-i", OLD / "scan_0000.nii.gz", "-o", seg, "-m", exported, "--no-tta", "--step-size", 1)
    assert done.returncode == 0, done.stderr
    assert read_label(seg).array.any()


@pytest.mark.parametrize("model", [STUDENT, OLD, OLD / "nowhere"], ids=["run", "no model", "nothing"])
def test_without_torch_other_models_are_one_sentence(model: Path, tmp_path: Path) -> None:
    done = predict("-i", OLD / "scan_0000.nii.gz", "-o", tmp_path / "out", "-m", model)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{model} is no exported model, and this installation can open no other" in done.stderr


def test_without_torch_an_exported_detector_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "detector").mkdir()
    (tmp_path / "detector" / "detection.json").write_text("{}")
    done = predict("-i", OLD / "scan_0000.nii.gz", "-o", tmp_path / "out", "-m", tmp_path / "detector")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "is an exported detector, which needs torch around its network" in done.stderr


@pytest.mark.parametrize("axes", ["RAS", "LPI"])
def test_scans_of_any_orientation_are_turned_and_turned_back(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path, axes: str
) -> None:
    """A plan with an axis code, on oblique scans of three shapes: the runtime's way back is torch's."""
    pytest.importorskip("onnxscript")
    run = make_run(folds=2)
    plans = read_json(run / "plans.json")
    write_json(run / "plans.json", {**plans, "orientation": axes})
    export_model(run, tmp_path / "exported")
    predict_folder(scans, tmp_path / "torch", run, device="cpu", save_probabilities=True)
    report = predict_folder(scans, tmp_path / "onnx", tmp_path / "exported", save_probabilities=True)
    assert report.predicted == ["case_0", "case_1", "case_2"]
    for case in report.predicted:
        ours, theirs = (read_label(tmp_path / name / f"{case}.nii.gz") for name in ("torch", "onnx"))
        assert np.mean(ours.array != theirs.array) < 1e-3
        assert ours.geometry.differences(theirs.geometry, tolerance=1e-6) == []
        first, second = (np.load(tmp_path / name / f"{case}.npz")["probabilities"] for name in ("torch", "onnx"))
        assert np.abs(first.astype(float) - second.astype(float)).max() < 1e-2


def test_strict_compares_with_the_training_cases(make_run: Callable[..., Path], scans: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    run = make_run(folds=1)
    export_model(run, tmp_path / "exported")
    empty = np.zeros((16, 16, 16), np.float32)
    write_volume(scans / "empty_0000.nii.gz", empty, Geometry.from_spacing(empty.shape, (1, 1, 1)))
    ours = predict_folder(scans, tmp_path / "torch", run, device="cpu", strict=True)
    theirs = predict_folder(scans, tmp_path / "onnx", tmp_path / "exported", strict=True)
    assert theirs.failed == ours.failed and "empty" in theirs.failed
    assert theirs.predicted == ours.predicted


@pytest.mark.parametrize(
    ("option", "value"), [("folds", [0]), ("checkpoint", "best"), ("precision", "bf16"), ("device", "cuda")]
)
def test_options_that_were_settled_at_export_are_refused(
    exported: Path, tmp_path: Path, option: str, value: object
) -> None:
    with pytest.raises(RunError, match=f"^{option} does not apply to .*leave it out"):
        predict_folder(OLD / "scan_0000.nii.gz", tmp_path / "out", exported, **{option: value})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_exported_model_has_no_torch_and_auto_is_what_is_installed(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"--engine torch does not apply to .*; give --engine onnxruntime or openvino"):
        predict_folder(OLD / "scan_0000.nii.gz", tmp_path / "out", exported, engine="torch")
    assert not (tmp_path / "out").exists()
    assert medkd.load(exported, engine="auto").predictor.engine_name == "onnxruntime"


def test_load_takes_arrays_and_files(exported: Path) -> None:
    model = medkd.load(exported, threads=1)
    found = model.predict(OLD / "scan_0000.nii.gz")
    assert np.array_equal(found.labels, read_label(STUDENT / "expected.nii.gz").array)
    noise = np.random.default_rng(0).normal(5, 2, (20, 20, 20))
    ours = medkd.load(STUDENT, device="cpu").predict(noise, spacing=(1, 1, 1))
    assert np.mean(model.predict(noise, spacing=(1, 1, 1)) != ours) < 1e-3
    with pytest.raises(RunError, match="--engine expects onnxruntime or openvino, found 'tensorrt'"):
        medkd.load(exported, engine="tensorrt")


def test_an_exported_model_describes_itself_and_gives_its_outputs(exported: Path) -> None:
    model, run = open_model(exported), open_model(STUDENT)
    assert (model.kind, model.task, model.folds(), model.folds("best")) == (
        "exported",
        "segmentation",
        ("exported",),
        (),
    )
    assert model.describe().labels == run.describe().labels and model.describe().channels == run.describe().channels
    image = torch.randn(2, 1, *model.describe().patch_size)
    network, own = model.network("exported"), run.network("0")
    assert torch.allclose(network(image), own(image), atol=1e-3)
    assert torch.equal(copy.deepcopy(network)(image), network(image))
    with pytest.raises(RunError, match="chosen at export"):
        model.load([0])


def test_the_leak_guard_knows_what_an_exported_model_has_seen(exported: Path, tmp_path: Path) -> None:
    seen = open_model(STUDENT).seen("0", [], tmp_path)
    held_out = Split(train=("other",), val=("never_seen",))
    assert choose_teacher(open_model(exported), 0, held_out, ["other", "never_seen"], tmp_path).seen == seen
    with pytest.raises(LeakError, match=sorted(seen)[0]):
        choose_teacher(open_model(exported), 0, Split(("other",), (sorted(seen)[0],)), sorted(seen), tmp_path)


@pytest.mark.parametrize("stated", [None, 3, {"a": 1}, [1]])
def test_an_exported_model_that_does_not_say_what_it_has_seen_may_not_teach(
    exported: Path, tmp_path: Path, stated: object
) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    record = json.loads((exported / RECORD).read_text())
    write_json(tmp_path / "copy" / RECORD, {**record, "seen": stated})
    with pytest.raises(RunError, match="does not say on which cases"):
        choose_teacher(open_model(tmp_path / "copy"), 0, Split(("a",), ("b",)), ["a", "b"], tmp_path)


@pytest.mark.real_data
def test_nnunets_own_model_predicts_its_reference_without_torch(real_data: Path, tmp_path: Path) -> None:
    """A published nnU-Net model, exported: the label maps that nnU-Net itself made of the same scans."""
    pytest.importorskip("onnxscript")
    source = real_data / "nnunet_model"
    (tmp_path / "in").mkdir()
    cases = ("hippocampus_056",)
    for case in cases:
        shutil.copy(source / "input" / f"{case}_0000.nii.gz", tmp_path / "in")
    export_model(source / "model", tmp_path / "exported")
    done = predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", tmp_path / "exported")
    assert done.returncode == 0, done.stderr
    predict_folder(tmp_path / "in", tmp_path / "torch", source / "model", device="cpu")
    for case in cases:
        found = read_label(tmp_path / "out" / f"{case}.nii.gz").array
        for folder in (source / "reference_predictions", tmp_path / "torch"):
            reference = read_label(folder / f"{case}.nii.gz").array
            assert min(dice(found, reference, label) for label in (1, 2)) >= 0.9999
