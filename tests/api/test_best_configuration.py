"""2D, 3D and both together, compared on cases that their networks have not seen, and predicted with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import medkd
from medkd.api.best_configuration import BestConfiguration
from medkd.cli.best_configuration import main
from medkd.cli.predict import main as predict
from medkd.core.checkpoint import load_checkpoint, weights_digest
from medkd.core.errors import DataError, LeakError, RunError
from medkd.core.files import read_json, read_json_lines, write_json
from medkd.core.labels import LabelSpec
from medkd.core.serial import load
from medkd.evaluation.segmentation.results import Summary
from medkd.inference.predictor import Predictor
from medkd.io.volumes import read_image, read_label
from medkd.models.base import open_model
from tests.training.builders import NAME, make_dataset, write_scans

RUNS = ("plain_unet__2d", "plain_unet__3d_fullres")
PAIR = "+".join(RUNS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of one network in two configurations."""
    place = tmp_path_factory.mktemp("best")
    make_dataset(place)
    write_scans(place)
    options = medkd.TrainOptions(root=place, epochs=2, iterations_per_epoch=4, workers=0, device="cpu")
    for configuration in ("2d", "3d_fullres"):
        for fold in (0, 1):
            medkd.train(900, "plain_unet", fold, options, configuration=configuration)
    return place


@pytest.fixture(scope="module")
def compared(root: Path) -> BestConfiguration:
    assert main(["900", "plain_unet", "--root", str(root), "--device", "cpu"]) == 0
    return load(BestConfiguration, root / "results" / NAME / "best_configuration.json")


def test_candidates_are_ordered_by_the_scores_of_unseen_cases(root: Path, compared: BestConfiguration) -> None:
    results = root / "results" / NAME
    assert {candidate.name for candidate in compared.candidates} == {*RUNS, PAIR}
    assert compared.folds == ("0", "1")
    for candidate in compared.candidates:
        parts = [Summary.load(results / candidate.name / f"fold_{k}" / "validation" / "summary.json") for k in (0, 1)]
        table = np.concatenate([part.table("Dice") for part in parts])
        assert len(table) == compared.cases
        assert candidate.dice == pytest.approx(np.nanmean(table, axis=0).mean())
        assert candidate.behind == pytest.approx((compared.best.dice or 0) - (candidate.dice or 0))
    dice = [candidate.dice or 0 for candidate in compared.candidates]
    assert all(first >= second for first, second in pairwise(dice))
    assert compared.best.behind == 0 and not compared.best.clear


def mean_labels(root: Path, case: str, folds: list[int]) -> np.ndarray:
    """The mean of both runs' probabilities, by each one's own predictor."""
    image, geometry = read_image([root / "raw" / NAME / "imagesTr" / f"{case}_0000.nii.gz"], case)
    found = []
    for run in RUNS:
        predictor = Predictor.from_run(root / "results" / NAME / run, folds, "cpu")
        prepared = predictor.prepare(case, image, geometry)
        found.append(predictor.predict(prepared, probabilities=True).probabilities)
    return np.mean(np.asarray(found, np.float32), axis=0).argmax(0)


def test_two_together_are_the_mean_of_their_probabilities(root: Path, compared: BestConfiguration) -> None:
    folder = root / "results" / NAME / PAIR
    for fold in (0, 1):
        held_out = read_json(root / "results" / NAME / RUNS[0] / f"fold_{fold}" / "split.json")["val"]
        files = sorted((folder / f"fold_{fold}" / "validation").glob("*.nii.gz"))
        assert [file.name.removesuffix(".nii.gz") for file in files] == sorted(held_out)
        for file, case in zip(files, sorted(held_out), strict=True):
            assert np.array_equal(read_label(file).array, mean_labels(root, case, [fold]))


def test_the_printed_command_predicts_with_it(root: Path, compared: BestConfiguration, tmp_path: Path) -> None:
    command = next(candidate.command for candidate in compared.candidates if candidate.name == PAIR).split()
    scan = root / "raw" / NAME / "imagesTr" / "case_03_0000.nii.gz"
    words = [str(scan) if word == "INPUT" else str(tmp_path) if word == "OUTPUT" else word for word in command[1:]]
    assert predict([*words, "--device", "cpu", "--no-postprocessing", "--save-probabilities"]) == 0
    assert np.array_equal(read_label(tmp_path / "case_03.nii.gz").array, mean_labels(root, "case_03", [0, 1]))
    settings = read_json(tmp_path / "predict_settings.json")
    assert settings["folds"] == ["0", "1"] and len(settings["weights"]) == 4
    stored = np.load(tmp_path / "case_03.npz")["probabilities"]
    assert stored.dtype == np.float16 and np.allclose(stored.astype(np.float32).sum(0), 1, atol=2e-3)


def test_its_post_processing_is_its_own_and_is_found_again(root: Path, compared: BestConfiguration) -> None:
    model = open_model(root / "results" / NAME / PAIR)
    digests = [
        digest for run in RUNS for digest in Predictor.from_run(root / "results" / NAME / run, [0, 1], "cpu").digests()
    ]
    found = model.postprocessing(("0", "1"), digests)  # type: ignore[attr-defined]
    assert found is not None and found.cases == compared.cases and len(found.weights) == 4
    assert model.postprocessing(("0",), digests) is None  # type: ignore[attr-defined]


def test_what_is_predicted_is_not_predicted_again_unless_it_was_changed(
    root: Path, compared: BestConfiguration
) -> None:
    """Times of files say nothing: restored ones are as old or as new as their copy was."""
    file = next((root / "results" / NAME / PAIR / "fold_0" / "validation").glob("*.nii.gz"))
    before, made = file.stat().st_mtime_ns, file.read_bytes()
    (root / "results" / NAME / RUNS[0] / "fold_0" / "checkpoint_final.pt").touch()
    again = medkd.best_configuration(900, RUNS, root=root, device="cpu")
    assert file.stat().st_mtime_ns == before and again == compared
    other = next((root / "results" / NAME / PAIR / "fold_1" / "validation").glob("*.nii.gz"))
    file.write_bytes(other.read_bytes())
    os.utime(file, ns=(before, before))
    assert medkd.best_configuration(900, RUNS, root=root, device="cpu") == compared
    assert np.array_equal(read_label(file).array, mean_labels(root, _case(file), [0]))
    file.write_bytes(made)


@contextmanager
def _changed(file: Path, content: bytes) -> Iterator[None]:
    """A file that holds something else for a while, with the time that it had."""
    before, times = file.read_bytes(), file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        yield
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_scores_that_belong_to_other_files_are_refused(root: Path, compared: BestConfiguration) -> None:
    """The weights, a label map or a reference changed, each with its old time; the other fold's scores are mixed in."""
    folds = [root / "results" / NAME / RUNS[0] / f"fold_{fold}" for fold in (0, 1)]
    summary = folds[0] / "validation" / "summary.json"
    case = json.loads(summary.read_text())["metric_per_case"][0]
    maps = [Path(case["prediction_file"]), Path(case["reference_file"])]
    others = [next(path for path in sorted(file.parent.glob("*.nii.gz")) if path != file) for file in maps]
    changes = [
        (folds[0] / "checkpoint_final.pt", (folds[1] / "checkpoint_final.pt").read_bytes(), "of other weights than"),
        (maps[0], others[0].read_bytes(), "has changed since"),
        (maps[1], others[1].read_bytes(), "has changed since"),
        (summary, (folds[1] / "validation" / "summary.json").read_bytes(), "of other weights than"),
    ]
    for file, content, message in changes:
        with _changed(file, content), pytest.raises(RunError, match=message) as caught:
            medkd.best_configuration(900, RUNS, root=root, device="cpu", ensembles=False)
        assert "--continue" in str(caught.value) and "\n" not in str(caught.value)
        with _changed(file, content), pytest.raises(RunError, match=message):
            medkd.cross_validate(900, RUNS[0], root=root)
    assert medkd.best_configuration(900, RUNS, root=root, device="cpu") == compared


def test_scores_of_earlier_versions_are_taken_as_they_are(
    root: Path, compared: BestConfiguration, caplog: pytest.LogCaptureFixture
) -> None:
    summary = root / "results" / NAME / RUNS[0] / "fold_0" / "validation" / "summary.json"
    unsaid = json.loads(summary.read_text())
    del unsaid["medkd"]["scored_from"]
    with _changed(summary, json.dumps(unsaid).encode()):
        found = medkd.best_configuration(900, RUNS, root=root, device="cpu")
    assert [candidate.dice for candidate in found.candidates] == [candidate.dice for candidate in compared.candidates]
    assert caplog.text.count(f"{summary} does not say what it was scored from") == 1 and "--continue" in caplog.text


def test_label_maps_that_are_gone_do_not_hinder_the_scores_of_all_folds(
    root: Path, compared: BestConfiguration
) -> None:
    file = next((root / "results" / NAME / RUNS[0] / "fold_0" / "validation").glob("*.nii.gz"))
    hidden = file.rename(file.with_name(f".{file.name}"))
    try:
        assert len(medkd.cross_validate(900, RUNS[0], root=root).cases) == compared.cases
        with pytest.raises(RunError, match="is not there any more"):
            medkd.best_configuration(900, RUNS, root=root, device="cpu")
    finally:
        hidden.rename(file)


def test_a_retrained_fold_is_predicted_anew_with_the_other_run(
    root: Path, compared: BestConfiguration, tmp_path: Path
) -> None:
    """Scored by its training command, with a checkpoint older than all predictions."""
    place = Path(shutil.copytree(root, tmp_path / "root"))
    fold = place / "results" / NAME / RUNS[0] / "fold_0"
    shutil.copy(fold.parent / "fold_1" / "checkpoint_final.pt", fold / "checkpoint_final.pt")
    os.utime(fold / "checkpoint_final.pt", (0, 0))
    options = medkd.TrainOptions(root=place, epochs=2, iterations_per_epoch=4, workers=0, device="cpu", resume=True)
    medkd.train(900, "plain_unet", 0, options, configuration="2d")
    medkd.best_configuration(900, RUNS, root=place, device="cpu")
    for file in (place / "results" / NAME / PAIR / "fold_0" / "validation").glob("*.nii.gz"):
        assert np.array_equal(read_label(file).array, mean_labels(place, _case(file), [0]))
    made = read_json_lines(place / "results" / NAME / PAIR / "fold_0" / "validation" / "made_with.jsonl")
    assert made[0]["weights"][0] == weights_digest(load_checkpoint(fold / "checkpoint_final.pt")["network"])


def _case(file: Path) -> str:
    return file.name.removesuffix(".nii.gz")


def test_the_pair_teaches_its_own_fold_and_no_other(root: Path, compared: BestConfiguration) -> None:
    options = medkd.TrainOptions(root=root, epochs=1, iterations_per_epoch=1, workers=0, device="cpu", targets="cached")
    folder = medkd.train_distill(900, PAIR, "plain_unet", "kd", 1, options, width_divisor=2, validate=False)
    assert (folder / "checkpoint_final.pt").exists()
    with pytest.raises(LeakError):
        medkd.train_distill(900, PAIR, "plain_unet", "kd", 2, options, width_divisor=2, validate=False)


@pytest.mark.parametrize(
    ("runs", "more", "message"),
    [
        (["plain_unet__2d"], {}, "Expected two runs to compare at least, found plain_unet__2d"),
        (["plain_unett"], {}, "Did you mean 'plain_unet__"),
        (RUNS, {"folds": [0, 3]}, "do not have such scored folds in common"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    root: Path, compared: BestConfiguration, runs: list[str], more: dict, message: str
) -> None:
    with pytest.raises(RunError, match=message) as caught:
        medkd.best_configuration(900, runs, root=root, device="cpu", **more)
    assert "\n" not in str(caught.value)


def test_raw_scans_that_are_gone_are_named(root: Path, compared: BestConfiguration) -> None:
    held_out = read_json(root / "results" / NAME / RUNS[0] / "fold_0" / "split.json")["val"]
    scan = root / "raw" / NAME / "imagesTr" / f"{held_out[0]}_0000.nii.gz"
    hidden = scan.rename(scan.with_name(f".{scan.name}"))
    try:
        with pytest.raises(DataError, match="two configurations together need"):
            medkd.best_configuration(900, RUNS, root=root, device="cpu")
        medkd.best_configuration(900, RUNS, root=root, ensembles=False)
    finally:
        hidden.rename(scan)


def test_models_of_other_labels_do_not_predict_together(
    root: Path, compared: BestConfiguration, tmp_path: Path
) -> None:
    make_dataset(tmp_path, labels=LabelSpec.from_names(["small", "other"]))
    write_scans(tmp_path)
    options = medkd.TrainOptions(root=tmp_path, epochs=1, iterations_per_epoch=1, workers=0, device="cpu")
    other = medkd.train(900, "plain_unet", 0, options, validate=False).parent
    listed = [str(root / "results" / NAME / RUNS[0]), str(other)]
    write_json(tmp_path / "teachers.json", {"teachers": listed})
    scan = next((root / "raw" / NAME / "imagesTr").glob("case_0[1-5]*"))
    with pytest.raises(RunError, match="must have the same labels, found background 0, small 1, large 2 and"):
        medkd.predict(scan, tmp_path / "out", tmp_path / "teachers.json", device="cpu", folds=[0])
    write_json(tmp_path / "teachers.json", {"teachers": [{"model": listed[0], "folds": [1]}]})
    with pytest.raises(RunError, match="says itself which folds"):
        medkd.predict(scan, tmp_path / "out", tmp_path / "teachers.json", device="cpu", folds=[0])
