"""Preprocessed cases that are not those of today's plan and labels are refused wherever they would be used."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import medkd
from medkd.api.compress import compress_plan
from medkd.cli.train import main as train_command
from medkd.core.errors import DataError, MedkdError, PlanError
from medkd.core.files import read_json, write_json
from medkd.preprocessing import prepare
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.preprocessing.store import CaseStore
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import dry_run, train, train_distill
from medkd.training.several_methods import dry_run_side_by_side
from medkd.training.teacher_scores import score_teacher
from tests.models.nnunet.builders import configured, dataset_of, plans_of, write_model
from tests.training.builders import NAME
from tests.training.unlabelled_builders import make_mixed, without_labels

COMMAND = rf"run medkd_plan_and_preprocess -d {NAME}( -c 3d_fullres)?\.$"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of nnU-Net's, and a root whose data set was prepared like it: five cases, one scan without labels."""
    place = tmp_path_factory.mktemp("made")
    folder = make_mixed(place / "root", labelled=5, unlabelled=1)
    plans = plans_of({"3d_fullres": configured((1.0,) * 3, (16,) * 3)})
    model = write_model(place / "model", plans, dataset_of(), "3d_fullres", axes=range(3))
    cases = [f"case_{index:02d}" for index in range(5)]
    write_json(model / "splits_final.json", [{"train": cases[1:], "val": cases[:1]}])
    shutil.rmtree(folder)
    medkd.plan_and_preprocess(900, root=place / "root", like=str(model), workers=1)
    return place


@pytest.fixture()
def place(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "place"))


def _options(place: Path, **more: Any) -> TrainOptions:
    return TrainOptions(root=place / "root", workers=0, device="cpu", batch_size=2, epochs=1, **more)


def _prepared(place: Path) -> Path:
    return place / "root" / "preprocessed" / NAME


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    content = read_json(path)
    change(content)
    write_json(path, content)


def _spacing(place: Path) -> None:
    _edit(
        _prepared(place) / "plans.json", lambda plan: plan["configurations"]["3d_fullres"].update(spacing=[2.0, 2, 2])
    )


def _renamed(place: Path) -> None:
    _edit(
        place / "root" / "raw" / NAME / "dataset.json",
        lambda data: data.update(labels={"background": 0, "large": 1, "small": 2}),
    )


def _renamed_half(place: Path) -> None:
    _renamed(place)
    shutil.copy(place / "root" / "raw" / NAME / "dataset.json", _prepared(place))


def _one_scan_without_labels(place: Path) -> None:
    _edit(
        _prepared(place) / "3d_fullres" / "unlabelled" / "scan_00.json", lambda record: record.update(recipe="another")
    )


def _entries(place: Path) -> dict[str, Callable[[], object]]:
    """All that reads the cases."""
    model, cached = str(place / "model"), _options(place, targets="cached")
    root = place / "root"
    return {
        "train": lambda: train(900, "unet_tiny", 0, _options(place)),
        "train --dry-run": lambda: dry_run(900, "unet_tiny", 0, _options(place)),
        "live": lambda: dry_run(900, "unet_tiny", 0, _options(place), model, "kd"),
        "cached": lambda: train_distill(900, model, "unet_tiny", "dml", 0, cached),
        "several": lambda: dry_run_side_by_side(_task(), 900, model, "unet_tiny", ["kd", "dml"], 0, _options(place)),
        "score_teacher": lambda: score_teacher(900, place / "model", 0, root=root, device="cpu"),
    }


def _task() -> Any:
    return dry_run.args[0]


@pytest.mark.parametrize("change", [_spacing, _renamed, _renamed_half, _one_scan_without_labels])
def test_cases_of_another_plan_or_of_other_labels_are_refused_by_all_that_read_them(
    place: Path, change: Callable[[Path], None]
) -> None:
    change(place)
    for name, entry in _entries(place).items():
        with pytest.raises(MedkdError) as caught:
            entry()
        text = str(caught.value)
        fits = "does not fit" in text and name not in ("train", "train --dry-run")  # the teacher is compared first
        assert "\n" not in text and (fits or (isinstance(caught.value, DataError) and re.search(COMMAND, text)))
    assert not (place / "root" / "results").exists() and not list(_prepared(place).glob("*_targets"))


def test_the_named_command_makes_a_store_whole_again(place: Path) -> None:
    _spacing(place)
    with pytest.raises(DataError, match=rf"6 preprocessed cases, for example case_00, .* {COMMAND}"):
        dry_run(900, "unet_tiny", 0, _options(place))
    plan_and_preprocess(NAME, root=place / "root", configurations=["3d_fullres"], workers=1)
    assert dry_run(900, "unet_tiny", 0, _options(place))
    assert CaseStore(_prepared(place) / "3d_fullres").open("case_00").image.shape == (1, 10, 9, 11)


def test_the_command_line_says_one_sentence(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _spacing(place)
    assert train_command(["900", "unet_tiny", "0", "--root", str(place / "root"), "--device", "cpu"]) != 0
    assert "medkd_plan_and_preprocess" in capsys.readouterr().err


def test_a_preparation_that_was_killed_is_finished_before_anything_is_trained(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = prepare.preprocess_case

    def killed(case: str, *rest: Any, **more: Any) -> Any:
        if case == "case_02":
            raise KeyboardInterrupt
        return genuine(case, *rest, **more)

    anew = {"root": place / "root", "configurations": ["3d_fullres"], "workers": 1}
    monkeypatch.setattr(prepare, "preprocess_case", killed)
    with pytest.raises(KeyboardInterrupt):
        plan_and_preprocess(900, overwrite_plan=True, orientation="PIR", **anew)
    monkeypatch.undo()
    store = CaseStore(_prepared(place) / "3d_fullres")
    shapes = {store.open(case).image.shape for case in store.cases()}
    assert len(shapes) == 2  # of two preparations
    with pytest.raises(DataError, match=COMMAND):
        dry_run(900, "unet_tiny", 0, _options(place))
    plan_and_preprocess(900, **anew)
    assert dry_run(900, "unet_tiny", 0, _options(place))
    assert len({store.open(case).image.shape for case in store.cases()}) == 1


@pytest.mark.parametrize("refused", ["scan", "configuration"])
def test_a_refused_preparation_leaves_plan_and_folds_in_place(place: Path, refused: str) -> None:
    root, folder = place / "root", _prepared(place)
    plan_and_preprocess(900, root=root, overwrite_plan=True, orientation="SPL", configurations=["3d_fullres"])
    write_json(folder / "splits_final.json", [{"train": ["case_00", "case_01"], "val": ["case_04"]}])
    before = {name: (folder / name).read_bytes() for name in ("plans.json", "splits_final.json", "dataset.json")}
    if refused == "scan":
        (root / "raw" / NAME / "imagesTr" / "case_03_0000.nii.gz").write_bytes(b"no gzip")
        with pytest.raises(DataError, match="case_03"):
            medkd.plan_and_preprocess(900, root=root, like=str(place / "model"), overwrite_plan=True)
    else:
        with pytest.raises(PlanError, match="3d_lowres"):
            plan_and_preprocess(900, root=root, overwrite_plan=True, configurations=["3d_lowres"])
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert dry_run(900, "unet_tiny", 0, _options(place))


def test_every_configuration_is_looked_at_by_itself(place: Path) -> None:
    root = place / "root"
    plan_and_preprocess(900, root=root, overwrite_plan=True, workers=1)
    plan_and_preprocess(900, root=root, overwrite_plan=True, orientation="PIR", configurations=["3d_fullres"])
    assert dry_run(900, "unet_tiny", 0, _options(place))
    with pytest.raises(DataError, match=r"/2d: 6 preprocessed cases.* -c 2d\.$"):
        dry_run(900, "unet_tiny", 0, _options(place, configuration="2d"))


def test_scans_without_labels_alone_are_looked_at_too(place: Path, tmp_path: Path) -> None:
    without_labels(tmp_path / "alone" / "root", scans=2)
    _spacing(tmp_path / "alone")
    cached = _options(tmp_path / "alone", targets="cached")
    with pytest.raises(MedkdError, match="medkd_plan_and_preprocess"):
        dry_run(900, "unet_tiny", 0, cached, str(place / "model"), "dml")


def test_cases_that_do_not_say_how_they_were_made_are_believed_with_one_warning(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CaseStore(_prepared(place) / "3d_fullres")
    for case in store.cases():
        _edit(store.folder / f"{case}.json", lambda record: record.pop("recipe"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert dry_run(900, "unet_tiny", 0, _options(place))
    assert caplog.text.count("5 cases do not say how they were preprocessed") == 1


def test_a_compression_prepares_a_stale_store_anew(place: Path) -> None:
    _edit(_prepared(place) / "3d_fullres" / "case_00.json", lambda record: record.update(recipe="another"))
    lines = compress_plan(str(place / "model"), 900, sizes=[2], root=place / "root")
    assert lines[0].endswith("to do")


def test_a_damaged_record_is_named(place: Path) -> None:
    store = CaseStore(_prepared(place) / "3d_fullres")
    write_json(store.folder / "case_00.json", ["no record"])
    with pytest.raises(DataError, match=r"case_00\.json"):
        dry_run(900, "unet_tiny", 0, _options(place))


def test_raw_data_that_are_gone_stop_nothing(place: Path) -> None:
    shutil.rmtree(place / "root" / "raw")
    assert dry_run(900, "unet_tiny", 0, _options(place))


def test_targets_of_several_teachers_are_of_the_scans_that_were_preprocessed(place: Path) -> None:
    write_json(place / "teachers.json", {"teachers": ["model"]})
    scan = place / "root" / "raw" / NAME / "imagesTr" / "case_03_0000.nii.gz"
    kept = scan.read_bytes()
    shutil.copy(scan.with_name("case_01_0000.nii.gz"), scan)

    def taught() -> Path:
        options = _options(place, targets="cached", iterations_per_epoch=1, validate=False)
        return train_distill(900, str(place / "teachers.json"), "unet_tiny", "dml", 0, options)

    with pytest.raises(
        DataError, match=rf"^[^\n]*the scan of case_03 is not the one any more .* medkd_plan_and_preprocess -d {NAME}, "
    ):
        taught()
    assert not list(_prepared(place).glob("*_targets/*"))
    scan.write_bytes(kept)  # of another time, but the same scan
    taught()
    assert list(_prepared(place).glob("*_targets/*/case_03.npy"))


def test_a_first_preparation_that_was_killed_makes_no_folds_of_what_is_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, genuine = _prepared(place), prepare.preprocess_case
    shutil.rmtree(folder / "3d_fullres")
    (folder / "splits_final.json").unlink()

    def killed(case: str, *rest: Any, **more: Any) -> Any:
        if case == "case_03":
            raise KeyboardInterrupt
        return genuine(case, *rest, **more)

    monkeypatch.setattr(prepare, "preprocess_case", killed)
    with pytest.raises(KeyboardInterrupt):
        plan_and_preprocess(900, root=place / "root", configurations=["3d_fullres"], workers=1)
    monkeypatch.undo()
    for name, entry in _entries(place).items():
        with pytest.raises(DataError, match=rf"cases may be missing; {COMMAND}"):
            entry()
        assert not (folder / "splits_final.json").exists(), name
    assert compress_plan(str(place / "model"), 900, sizes=[2], root=place / "root")[0].endswith("to do")
    plan_and_preprocess(900, root=place / "root", configurations=["3d_fullres"], workers=1)
    assert dry_run(900, "unet_tiny", 0, _options(place))
