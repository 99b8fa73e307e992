"""Prediction follows the post-processing that was found for its folds and weights, and says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkd.cli.evaluate import main as evaluate
from medkd.cli.export import main as export
from medkd.cli.predict import main
from medkd.core.checkpoint import load_checkpoint, weights_digest
from medkd.core.errors import DataError, RunError
from medkd.core.files import read_json
from medkd.core.postprocessing import LargestComponent, Postprocessing, Trial, keep_largest
from medkd.core.run import FINAL
from medkd.core.serial import save
from medkd.evaluation.cross_validation import cross_validate
from medkd.evaluation.segmentation.folds import SegmentationFolds
from medkd.evaluation.segmentation.results import Summary
from medkd.exporting.export import export_model
from medkd.exporting.packing import pack_run
from medkd.inference.folder import predict_folder
from medkd.inference.loaded import load
from medkd.io.volumes import read_label
from tests.inference.conftest import LABELS

STEPS = (LargestComponent("liver", (1,)), LargestComponent("spleen", (2,)))


def found(run: Path, *folds: str, weights: tuple[str, ...] | None = None) -> Postprocessing:
    digests = [weights_digest(load_checkpoint(run / f"fold_{fold}" / FINAL)["network"]) for fold in folds]
    trials = tuple(Trial(step.name, step.values, 0.5, 0.6, True) for step in STEPS)
    return Postprocessing(folds=folds, cases=2, trials=trials, weights=tuple(digests) if weights is None else weights)


def labels_in(folder: Path) -> np.ndarray:
    return read_label(next(folder.glob("*.nii.gz"))).array


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    """Two folds, with what was found over both."""
    folder = make_run()
    save(folder / "crossval" / "postprocessing.json", found(folder, "0", "1"))
    return folder


@pytest.fixture
def scan(scans: Path) -> Path:
    """One of them."""
    return scans / "case_1_0000.nii.gz"


def test_both_folds_follow_what_was_found_over_both(
    run: Path, scan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    predict_folder(scan, tmp_path / "raw", run, device="cpu", mirror=False, postprocessing=False)
    raw = labels_in(tmp_path / "raw")
    assert "no post-processing, as asked for" in caplog.text and "only the largest" not in caplog.text
    report = predict_folder(scan, tmp_path / "out", run, device="cpu", mirror=False)
    assert "post-processing: only the largest component is kept of liver, spleen" in caplog.text
    done = labels_in(tmp_path / "out")
    assert len(report.predicted) == 1 and not np.array_equal(raw, done)
    assert np.array_equal(done, keep_largest(raw, STEPS, LABELS))
    assert read_json(tmp_path / "out" / "predict_settings.json")["postprocessing"] == ["liver", "spleen"]
    with pytest.raises(RunError, match="other settings"):
        predict_folder(scan, tmp_path / "raw", run, device="cpu", mirror=False, resume=True)
    loaded = load(run, device="cpu", mirror=False).predict(scan)
    assert np.array_equal(loaded.labels, done)


def test_other_folds_and_other_weights_are_left_as_they_are(
    run: Path, scan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    predict_folder(scan, tmp_path / "one", run, folds=[1], device="cpu", mirror=False)
    assert "it was found over the folds (0, 1), but fold 1 predicts" in caplog.text
    assert read_json(tmp_path / "one" / "predict_settings.json")["postprocessing"] == []
    save(run / "crossval_1" / "postprocessing.json", found(run, "1"))
    predict_folder(scan, tmp_path / "two", run, folds=[1], device="cpu", mirror=False)
    expected = keep_largest(labels_in(tmp_path / "one"), STEPS, LABELS)
    assert np.array_equal(labels_in(tmp_path / "two"), expected)
    save(run / "crossval" / "postprocessing.json", found(run, "0", "1", weights=("00", "11")))
    predict_folder(scan, tmp_path / "three", run, device="cpu", mirror=False)
    assert "was found with other weights than those that predict now" in caplog.text
    assert read_json(tmp_path / "three" / "predict_settings.json")["postprocessing"] == []


def test_the_commands_take_a_file_or_none_and_say_which_it_is(
    run: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.json"
    common = ["-i", str(scan), "-m", str(run), "-f", "0", "--device", "cpu", "--no-tta"]
    assert main([*common, "-o", str(tmp_path / "raw"), "--no-postprocessing"]) == 0
    one = Trial("spleen", (2,), 0.5, 0.6, True)
    save(file, replace(found(run, "0", "1"), trials=(one,)))
    assert main([*common, "-o", str(tmp_path / "own"), "--postprocessing", str(file)]) == 0
    expected = keep_largest(labels_in(tmp_path / "raw"), STEPS[1:], LABELS)
    assert np.array_equal(labels_in(tmp_path / "own"), expected)
    for folder, said in (("own", "largest component of spleen"), ("raw", "none")):
        where = str(tmp_path / folder)
        assert evaluate([where, str(tmp_path / "raw"), "--labels", "liver,spleen"]) == 0
        assert f"post-processing: {said}" in capsys.readouterr().out.splitlines()
    save(file, replace(found(run, "0"), trials=(replace(one, name="heart"),)))
    assert main([*common, "-o", str(tmp_path / "no"), "--postprocessing", str(file)]) == 1
    assert "is about 'heart' [2], but the model's structures are" in capsys.readouterr().err
    assert main([*common, "-o", str(tmp_path / "no"), "--postprocessing", str(tmp_path / "nothing.json")]) == 1


def test_packed_runs_take_it_along(run: Path, scan: Path, tmp_path: Path) -> None:
    predict_folder(scan, tmp_path / "out", run, device="cpu", mirror=False)
    pack_run(run, tmp_path / "run.zip")
    predict_folder(scan, tmp_path / "packed", tmp_path / "run.zip", device="cpu", mirror=False)
    assert np.array_equal(labels_in(tmp_path / "packed"), labels_in(tmp_path / "out"))
    assert read_json(tmp_path / "packed" / "predict_settings.json")["postprocessing"] == ["liver", "spleen"]


def test_exported_models_do_it_without_torch(run: Path, scan: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    export_model(run, tmp_path / "onnx")
    assert "post-processing: only the largest component" in (tmp_path / "onnx" / "README.md").read_text()
    predict_folder(scan, tmp_path / "raw", tmp_path / "onnx", mirror=False, postprocessing=False)
    predict_folder(scan, tmp_path / "done", tmp_path / "onnx", mirror=False)
    raw, done = labels_in(tmp_path / "raw"), labels_in(tmp_path / "done")
    assert np.array_equal(done, keep_largest(raw, STEPS, LABELS)) and not np.array_equal(raw, done)
    described = tmp_path / "onnx" / "preprocessing.json"
    described.write_text(described.read_text().replace('"name": "spleen"', '"name": "heart"'))
    with pytest.raises(DataError, match="is about 'heart'"):
        predict_folder(scan, tmp_path / "no", tmp_path / "onnx")


@pytest.mark.parametrize("format", ["onnx", "folder", "nnunet"])
def test_exports_take_a_file_or_none_too(run: Path, scan: Path, tmp_path: Path, format: str) -> None:
    """The same choice as at prediction, for the same networks."""
    if format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    one = Trial("spleen", (2,), 0.5, 0.6, True)
    file = tmp_path / "own.json"
    save(file, replace(found(run, "0"), trials=(one,)))
    ending = ".zip" if format == "folder" else ""
    for name, words in (("own", ["--postprocessing", str(file)]), ("none", ["--no-postprocessing"]), ("found", [])):
        out = tmp_path / f"{name}{ending}"
        assert export([str(run), "-o", str(out), "--format", format, "-f", "0", "1", *words]) == 0
        kept = {"own": ["spleen"], "none": [], "found": ["liver", "spleen"]}[name]
        if format == "nnunet":
            beside = out / "postprocessing.json"
            stated = [trial["name"] for trial in read_json(beside)["trials"]] if beside.exists() else []
            assert stated == kept
            continue
        predict_folder(scan, tmp_path / f"{name}_out", out, mirror=False)
        assert read_json(tmp_path / f"{name}_out" / "predict_settings.json")["postprocessing"] == kept
    save(file, replace(found(run, "0"), trials=(replace(one, name="heart"),)))
    words = [str(run), "-o", str(tmp_path / f"no{ending}"), "--format", format, "--postprocessing", str(file)]
    assert export(words) == 1 and not (tmp_path / f"no{ending}").exists()


def test_cross_validation_without_any_removes_what_was_found(run: Path, tmp_path: Path) -> None:
    class Scoring(SegmentationFolds):
        def load(self, run: Path, fold: int) -> Summary:
            return Summary(cases=())

        def check(self, run: Path, fold: int) -> None:
            """There are no scores."""

    for fold in (0, 1):
        (run / f"fold_{fold}" / "validation").mkdir()
        (run / f"fold_{fold}" / "validation" / "summary.json").write_text("{}")
        (run / f"fold_{fold}" / "split.json").write_text('{"val": []}')
    cross_validate(run, Scoring(), expected=2, postprocessing=False)
    assert not (run / "crossval" / "postprocessing.json").exists() and (run / "crossval" / "summary.json").exists()


def test_a_model_for_nnunet_has_the_file_beside_it(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "nnunet", format="nnunet")
    assert read_json(tmp_path / "nnunet" / "postprocessing.json")["folds"] == ["0", "1"]
    assert "nnU-Net does not do that by itself" in (tmp_path / "nnunet" / "README.md").read_text()


def test_an_outdated_file_does_not_hide_a_current_one_nor_a_damaged_one_the_sentence(
    run: Path, scan: Path, tmp_path: Path
) -> None:
    save(run / "crossval" / "postprocessing.json", found(run, "0", "1", weights=("00", "11")))
    save(run / "crossval_0_1" / "postprocessing.json", found(run, "0", "1"))
    predict_folder(scan, tmp_path / "out", run, device="cpu", mirror=False)
    assert read_json(tmp_path / "out" / "predict_settings.json")["postprocessing"] == ["liver", "spleen"]
    (run / "crossval" / "postprocessing.json").write_text('{"folds": 7}')
    with pytest.raises(DataError, match=r"crossval/postprocessing.json: folds: expected a list"):
        predict_folder(scan, tmp_path / "no", run, device="cpu", mirror=False)
    predict_folder(scan, tmp_path / "raw", run, device="cpu", mirror=False, postprocessing=False)


@pytest.mark.parametrize("choice", [True, 0, ["liver"]])
def test_a_choice_that_is_none_is_one_sentence(run: Path, scan: Path, tmp_path: Path, choice: Any) -> None:
    with pytest.raises(RunError, match=r"postprocessing: expected a postprocessing\.json, False for none, or None"):
        predict_folder(scan, tmp_path / "out", run, device="cpu", mirror=False, postprocessing=choice)
