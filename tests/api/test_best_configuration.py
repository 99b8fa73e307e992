"""2D, 3D and both together, compared on cases that their networks have not seen, and predicted with."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import medkd
from medkd.api.best_configuration import BestConfiguration
from medkd.cli.best_configuration import main
from medkd.cli.predict import main as predict
from medkd.core.errors import DataError, LeakError, RunError
from medkd.core.files import read_json, write_json
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


def test_what_is_predicted_is_not_predicted_again_unless_a_network_is_newer(
    root: Path, compared: BestConfiguration
) -> None:
    file = next((root / "results" / NAME / PAIR / "fold_0" / "validation").glob("*.nii.gz"))
    before = file.stat().st_mtime_ns
    again = medkd.best_configuration(900, RUNS, root=root, device="cpu")
    assert file.stat().st_mtime_ns == before and again == compared
    checkpoint = root / "results" / NAME / RUNS[0] / "fold_0" / "checkpoint_final.pt"
    checkpoint.touch()
    medkd.best_configuration(900, RUNS, root=root, device="cpu")
    assert file.stat().st_mtime_ns > before


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
