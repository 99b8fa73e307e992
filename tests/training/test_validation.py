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
from medkd.core.errors import MedkdError, RunError
from medkd.core.files import read_json, write_json
from medkd.core.geometry import Geometry
from medkd.core.made_with import KnownPredictions
from medkd.core.plan import Plan
from medkd.core.protocol import InferenceRule, PreprocessingRule, Protocol
from medkd.core.run import RunFolder
from medkd.core.serial import save
from medkd.evaluation.cross_validation import cross_validate
from medkd.evaluation.report.read import gather, read_report
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


def _written(folder: Path) -> set[int]:
    """When the predictions of a fold were written."""
    return {path.stat().st_mtime_ns for path in (folder / "validation").glob("*.nii.gz")}


def _other_step(run: Path) -> None:
    plan = Plan.load(run / "plans.json")
    rule = PreprocessingRule(configuration="3d_fullres", spacing=(1.0, 1.0, 1.0))
    save(run / "plans.json", replace(plan, protocol=Protocol(preprocessing=rule, inference=InferenceRule(step_size=1))))


def _other_way_back(run: Path) -> None:
    plan = Plan.load(run / "plans.json")
    changed = replace(
        plan.configurations["3d_fullres"],
        resampling=replace(plan.configurations["3d_fullres"].resampling, logits_order=0),
    )
    save(run / "plans.json", replace(plan, configurations={**plan.configurations, "3d_fullres": changed}))


def _no_mirroring(run: Path) -> None:
    write_json(run / "run.json", {**read_json(run / "run.json"), "mirror_axes": [0]})


def _other_patch(run: Path) -> None:
    content = read_json(run / "run.json")
    content["network"]["patch_size"] = [16, 16, 20]
    write_json(run / "run.json", content)


@pytest.mark.parametrize("change", [_other_step, _other_way_back, _no_mirroring, _other_patch])
def test_predictions_with_other_settings_are_not_taken_for_those_of_now(
    root: Path, change: Callable[[Path], None]
) -> None:
    folder, _ = finish(root)
    written = _written(folder)
    finish(root)
    assert _written(folder) == written
    cross_validate(folder.parent, expected=1)
    change(folder.parent)
    for read in (lambda: cross_validate(folder.parent, expected=1), lambda: read_report(root / "results" / NAME)):
        with pytest.raises(RunError, match=r"holds scores with another \w+ than .*--continue"):
            read()
    finish(root)
    assert not _written(folder) & written
    cross_validate(folder.parent, expected=1)


def test_predictions_of_another_stored_case_are_made_anew(root: Path) -> None:
    folder, _ = finish(root)
    written = _written(folder)
    case = json.loads((folder / "split.json").read_text())["val"][0]
    record = root / "preprocessed" / NAME / "3d_fullres" / f"{case}.json"
    write_json(record, {**read_json(record), "recipe": "another"})
    finish(root)
    assert len(_written(folder) & written) == 1


def test_noting_a_prediction_costs_the_same_however_many_there_are(tmp_path: Path) -> None:
    """A line each; one that a kill cut off proves nothing, and neither do those after it."""
    known = KnownPredictions(tmp_path, ["a"], {"step": "1"})
    files = [tmp_path / f"case_{index}" for index in range(4)]
    for file in files:
        file.write_text(file.name)
        known.add(file, "scan")
    note = tmp_path / "made_with.jsonl"
    assert len(note.read_text().splitlines()) == 1 + len(files)
    again = KnownPredictions(tmp_path, ["a"], {"step": "1"})
    assert all(again.has(file, "scan") for file in files) and not again.has(files[0], "another scan")
    note.write_text(note.read_text()[:-20])
    cut = KnownPredictions(tmp_path, ["a"], {"step": "1"})
    assert [cut.has(file, "scan") for file in files] == [True, True, True, False]
    cut.add(files[3], "scan")
    assert all(KnownPredictions(tmp_path, ["a"], {"step": "1"}).has(file, "scan") for file in files)
    for others in (KnownPredictions(tmp_path, ["b"], {"step": "1"}), KnownPredictions(tmp_path, ["a"], {"step": "2"})):
        assert not any(others.has(file, "scan") for file in files)
    note.write_bytes(b"\xff\xfe nothing")
    assert not KnownPredictions(tmp_path, ["a"]).has(files[0])
