"""Models whose reader turns scans first: nnU-Net's own predictions, voxel by voxel, on each scan's own grid."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import RunError
from medkd.inference.folder import predict_folder
from medkd.inference.predictor import Predictor
from medkd.io.volumes import read_geometry, read_label
from medkd.models.base import open_model
from medkd.models.like import plan_like
from medkd.preprocessing.store import CaseStore
from tests.models.test_contract import wanted

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def model(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reorient") / "model"
    shutil.copytree(real_data / "nnunet_model_reorient" / "model", folder)
    source = real_data / "nnunet_model" / "model" / "fold_0"
    shutil.copytree(source, folder / "fold_0", ignore=shutil.ignore_patterns("validation", "*.png"))
    return folder


@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_predictions_equal_nnunets_on_the_scans_own_grid(
    model: Path, real_data: Path, tmp_path: Path, reader: str
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    plans = json.loads((copy / "plans.json").read_text())
    (copy / "plans.json").write_text(json.dumps({**plans, "image_reader_writer": reader}))
    inputs = real_data / "nnunet_model_reorient" / "input"
    report = predict_folder(inputs, tmp_path / "out", copy, device="cpu")
    assert len(report.predicted) == 5 and not report.failed
    for case in report.predicted:
        expected = read_label(real_data / "nnunet_model_reorient" / "reference_predictions" / f"{case}.nii.gz")
        found = read_label(tmp_path / "out" / f"{case}.nii.gz")
        assert np.array_equal(found.array, expected.array), case
        assert found.geometry.differences(read_geometry(inputs / f"{case}_0000.nii.gz"), tolerance=1e-5) == []


def test_the_students_plan_turns_scans_too(model: Path) -> None:
    opened = open_model(model)
    plan, configuration, dataset = wanted(opened)
    assert plan.orientation == "RAS"
    opened.check_fits(plan, configuration, dataset)
    unturned = type(plan)(**{**vars(plan), "orientation": None})
    with pytest.raises(RunError, match="orientation RAS differs from the student's None"):
        opened.check_fits(unturned, configuration, dataset)


def test_a_data_set_of_mixed_orientations_is_prepared_like_the_model(
    model: Path, real_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = tmp_path / "raw" / "Dataset004_Hippocampus"
    folder = real_data / "nnunet_model_reorient"
    cases = sorted(path.name.removesuffix("_0000.nii.gz") for path in (folder / "input").glob("*.nii.gz"))
    for kind, name in (("imagesTr", "input"), ("labelsTr", "reference_predictions")):
        shutil.copytree(folder / name, raw / kind)
    described = json.loads((folder / "model" / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**described, "numTraining": len(cases)}))
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    (copy / "splits_final.json").write_text(json.dumps([{"train": cases[1:], "val": cases[:1]}]))
    plan = plan_like(4, copy, root=tmp_path, workers=1)
    assert plan.orientation == "RAS"
    assert "of dataset.json means" not in caplog.text  # which names no reader, and leaves the turning to the model
    store = CaseStore(tmp_path / "preprocessed" / raw.name / "3d_fullres")
    # the model's labels on the turned scans: what it predicts from them, voxel by voxel
    predictor = Predictor.from_run(copy, device="cpu")
    for case in cases[:2]:
        logits = predictor.predict_preprocessed(store.open(case).image)
        found = predictor.labels.decode(logits).numpy()
        assert (found == np.asarray(store.open(case).label)).mean() > 0.999, case
