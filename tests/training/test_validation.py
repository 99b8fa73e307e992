"""The end of a fold: its validation cases are scored wherever the raw data set keeps the references, and whatever their
format.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.cli.evaluate import main as evaluate
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import MedkdError
from medkd.core.geometry import Geometry
from medkd.core.plan import Plan
from medkd.core.protocol import PreprocessingRule, Protocol
from medkd.core.run import RunFolder
from medkd.core.serial import save
from medkd.evaluation.cross_validation import cross_validate
from medkd.evaluation.report.data import gather, read_report
from medkd.evaluation.report.segmentation_pictures import pictures, prediction_of
from medkd.evaluation.segmentation import legacy
from medkd.evaluation.segmentation.results import Summary
from medkd.io.volumes import read_volume, write_volume
from medkd.preprocessing.store import CaseStore
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train
from medkd.training.validation import finish_fold
from tests.training.builders import NAME, boxes_case, make_dataset

RUN = "plain_unet__3d_fullres"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a fold that was trained and not validated."""
    root = tmp_path_factory.mktemp("trained")
    make_dataset(root)
    train(
        900,
        "plain_unet",
        0,
        TrainOptions(root=root, epochs=1, iterations_per_epoch=1, workers=0, device="cpu", validate=False),
    )
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "root"))


def finish(root: Path) -> tuple[Path, Summary]:
    """Validate the fold; its folder and the scores."""
    folder = root / "results" / NAME / RUN / "fold_0"
    cases = json.loads((folder / "split.json").read_text())["val"]
    store = CaseStore(root / "preprocessed" / NAME / "3d_fullres")
    summary = finish_fold(RunFolder.load(folder.parent), folder, store, root / "raw" / NAME, cases, torch.device("cpu"))
    assert summary is not None and len(summary.cases) == len(cases) == 2
    return folder, summary


def describe(root: Path, change: Callable[[DatasetDescription], DatasetDescription]) -> None:
    """Change every ``dataset.json``."""
    for path in root.rglob("dataset.json"):
        change(DatasetDescription.load(path)).save(path)


def scores(summary: Summary) -> list[tuple[object, ...]]:
    return [case.scores for case in summary.cases]


def test_label_maps_with_slightly_other_headers_are_scored(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = scores(finish(root)[1])
    for path in (root / "raw" / NAME / "labelsTr").iterdir():
        label = read_volume(path, None)
        matrix = label.geometry.matrix
        matrix[:2, 3] += 0.4
        write_volume(path, label.array, Geometry.from_affine(label.array.shape, matrix))
    assert "differ in origin" not in caplog.text
    assert scores(finish(root)[1]) == expected
    assert "2 of 2 cases: prediction and reference differ in origin" in caplog.text


def test_references_in_a_format_that_cannot_be_written(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import nibabel

    expected = scores(finish(root)[1])
    shutil.rmtree(root / "results" / NAME / RUN / "fold_0" / "validation")
    labels = root / "raw" / NAME / "labelsTr"
    for path in list(labels.iterdir()):
        image = nibabel.load(path)
        nibabel.save(
            nibabel.MGHImage(np.asarray(image.dataobj, np.float32), image.affine),
            labels / path.name.replace(".nii.gz", ".mgz"),
        )
        path.unlink()
    describe(root, lambda described: replace(described, file_ending=".mgz"))
    folder, summary = finish(root)
    assert scores(summary) == expected and {Path(case.reference_file).suffix for case in summary.cases} == {".mgz"}
    assert len(list((folder / "validation").glob("*.nii.gz"))) == 2
    (entry,) = gather(root / "results" / NAME)
    assert {prediction_of(entry, case.name) for case in summary.cases} == set((folder / "validation").glob("*.nii.gz"))
    assert scores(cross_validate(folder.parent, expected=1)) == expected
    assert evaluate([str(folder / "validation"), str(labels), "-o", str(root / "s.json"), "--allow-missing"]) == 0
    found = Summary.load(root / "s.json")
    assert len(found.missing) == 4 and [c for c in scores(found) if c in expected] == expected


def test_references_that_dataset_json_lists(root: Path) -> None:
    expected = scores(finish(root)[1])
    raw = root / "raw" / NAME
    (raw / "labelsTr").rename(raw / "drawn")
    listed = {}
    for index, path in enumerate(sorted((raw / "drawn").iterdir())):
        image = boxes_case(index)[0][0]
        write_volume(raw / "scans" / f"{index}.nii.gz", image, Geometry.from_spacing(image.shape, (1.0, 1.0, 1.0)))
        listed[path.name.removesuffix(".nii.gz")] = {"images": [f"scans/{index}.nii.gz"], "label": f"drawn/{path.name}"}
    with pytest.raises(MedkdError, match=r"Fold 0 cannot be scored; restore the raw data set .* found no label files"):
        finish(root)
    described = DatasetDescription.load(raw / "dataset.json")
    replace(described, extra={**described.extra, "dataset": listed}).save(raw / "dataset.json")
    folder, summary = finish(root)
    assert scores(summary) == expected and {Path(case.reference_file).parent for case in summary.cases} == {
        raw / "drawn"
    }
    assert scores(cross_validate(folder.parent, expected=1)) == expected
    shown, _ = pictures(read_report(root / "results" / NAME, raw=raw))
    assert {picture.case for picture in shown} == {case.name.removesuffix(".nii.gz") for case in summary.cases}
    Path(summary.cases[1].reference_file).unlink()
    with pytest.raises(MedkdError, match=r"label maps of 1 of its 2 validation cases are not there"):
        finish(root)


def test_the_legacy_metric_needs_references_beside_each_other(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = root / "results" / NAME / RUN
    plan = Plan.load(run / "plans.json")
    protocol = Protocol(
        preprocessing=PreprocessingRule(configuration="3d_fullres", spacing=(2.0, 1.0, 1.0)), legacy_metric=True
    )
    save(run / "plans.json", replace(plan, protocol=protocol))
    raw = root / "raw" / NAME
    (raw / "labelsTr").rename(raw / "drawn")
    names = sorted(path.name for path in (raw / "drawn").iterdir())
    listed = {name.removesuffix(".nii.gz"): {"images": ["scan.nii.gz"], "label": f"drawn/{name}"} for name in names}
    describe(root, lambda described: replace(described, extra={**described.extra, "dataset": listed}))
    assert legacy.KEY in finish(root)[1].extra
    for case, files in listed.items():
        files["label"] = f"{case}/{case}.nii.gz"
        (raw / case).mkdir()
        (raw / "drawn" / f"{case}.nii.gz").rename(raw / files["label"])
    describe(root, lambda described: replace(described, extra={**described.extra, "dataset": listed}))
    assert "legacy metric is left out" not in caplog.text
    assert legacy.KEY not in finish(root)[1].extra and "legacy metric is left out" in caplog.text
