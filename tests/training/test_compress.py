"""``medkd_compress``: a family of students by one call, killed and continued, and what it refuses."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import medkd
import medkd.api.compress_work as compressing
import medkd.training.segmentation as loop
from medkd.api.compression import CompressedRow, Compression
from medkd.cli.compress import main
from medkd.core.checkpoint import load_checkpoint, save_checkpoint
from medkd.core.errors import DataError, RunError, SomeFailedError
from medkd.core.files import read_json
from medkd.models import like
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import SegmentationTask, train
from tests.detection.builders import make_dataset as make_radiographs
from tests.training.builders import NAME, make_dataset, write_scans

SHORT: dict[str, Any] = {
    **{"epochs": 2, "iterations_per_epoch": 2, "batch_size": 2, "workers": 0, "device": "cpu", "save_every": 1},
    "learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a trained U-Net of 8 and 16 channels, and one that is no U-Net."""
    root = tmp_path_factory.mktemp("start")
    folder = make_dataset(root)
    write_scans(root)
    plan = json.loads((folder / "plans.json").read_text())
    for configuration in plan["configurations"].values():
        configuration["architectures"]["plain_unet"]["features_per_stage"] = [8, 16]
    (folder / "plans.json").write_text(json.dumps(plan))
    options = TrainOptions(root=root, **{**SHORT, "epochs": 1, "iterations_per_epoch": 20, "learning_rate": 0.05})
    train(900, "plain_unet", 0, options)
    train(900, "unet_tiny", 0, TrainOptions(root=root, **{**SHORT, "epochs": 1, "validate": False}))
    return root


@pytest.fixture(scope="module")
def whole(start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compression, list[str]]:
    """A compression that nobody disturbed, and what it said."""
    root = tmp_path_factory.mktemp("whole") / "root"
    shutil.copytree(start, root)
    said: list[str] = []
    return root, medkd.compress("plain_unet", 900, sizes=[2], root=root, say=said.append, **SHORT), said


def _scores(found: Compression) -> list[CompressedRow]:
    """Everything but times."""
    return [replace(row, seconds=None) for row in found.rows]


def test_teacher_students_and_the_one_alone_are_in_the_table(whole: tuple[Path, Compression, list[str]]) -> None:
    root, found, said = whole
    assert [(row.role, row.width_divisor) for row in found.rows] == [("teacher", 1), ("student", 2), ("alone", 2)]
    teacher, student, alone = found.rows
    assert read_json(root / "results" / NAME / student.run / "run.json")["init"] == "teacher"
    assert read_json(root / "results" / NAME / alone.run / "run.json")["init"] == "random"
    summary = read_json(root / "results" / NAME / student.run / "fold_0" / "validation" / "summary.json")
    assert student.dice.mean == pytest.approx(summary["foreground_mean"]["Dice"])
    cost = read_json(root / "results" / NAME / student.run / "fold_0" / "model.json")
    assert student.parameters == cost["parameters"] < (teacher.parameters or 0)
    assert student.difference is not None and teacher.difference is None
    assert student.difference.mean == pytest.approx((student.dice.mean or 0) - (teacher.dice.mean or 0))
    assert all(row.seconds and row.gflops for row in found.rows)
    assert Path(found.report).read_text().startswith("<!")
    stored = read_json(root / "results" / NAME / "compress_plain_unet.json")
    assert stored["rows"][1]["run"] == student.run and stored["tolerance"] == 0.01
    assert said[0].endswith("plan and preprocess like the teacher: done before")
    assert sum("trainings left" in line for line in said) == 1  # the first one has nothing to go by
    assert found.recommended is None and "recommended: none" in found.lines()[-1]


def test_a_second_call_computes_nothing_and_finds_the_same(
    whole: tuple[Path, Compression, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, found, _ = whole
    for name in ("train_distill", "rehearse"):
        monkeypatch.setattr(compressing.training_run, name, lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(compressing, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert medkd.compress("plain_unet", 900, sizes=[2], root=root, **SHORT) == found
    with pytest.raises(RunError, match=r"other settings \(budget.epochs: 2 there, 3 now\)"):
        medkd.compress("plain_unet", 900, sizes=[2], root=root, **{**SHORT, "epochs": 3})


def test_students_of_cases_that_were_mended_are_begun_anew_and_scores_of_other_weights_refused(
    whole: tuple[Path, Compression, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, found, _ = whole
    root = Path(shutil.copytree(root, tmp_path / "root"))
    fold = root / "results" / NAME / found.rows[1].run / "fold_0"
    stored = root / "preprocessed" / NAME / "3d_fullres" / f"{read_json(fold / 'split.json')['train'][0]}.json"
    record = json.loads(stored.read_text())
    record["files"][0]["content"] = "mended"
    stored.write_text(json.dumps(record))
    asked: list[tuple[str, bool, bool]] = []
    refused = compressing.training_run.train_distill

    def stopped(*words: Any) -> Any:
        asked.append((words[-1].init, words[-1].resume, words[-1].overwrite))
        if words[-1].resume:
            return refused(*words)  # says that it is of other cases
        raise RunError("begun anew")

    monkeypatch.setattr(compressing.training_run, "train_distill", stopped)
    with pytest.raises(RunError, match="begun anew"):
        medkd.compress("plain_unet", 900, sizes=[2], root=root, **SHORT)
    anew = [(True, False), (False, True)]
    assert asked == [(init, *flags) for init in ("teacher", "random") for flags in anew]
    weights = root / "results" / NAME / "plain_unet__3d_fullres" / "fold_0" / "checkpoint_final.pt"
    content = load_checkpoint(weights)
    save_checkpoint(weights, {**content, "network": {name: 2 * value for name, value in content["network"].items()}})
    with pytest.raises(RunError, match=r"holds the scores of other weights than those in .*; score this fold"):
        medkd.compress("plain_unet", 900, sizes=[2], root=root, **SHORT)


def _work(root: Path, sizes: list[int], **changes: Any) -> compressing.Work:
    return compressing.Work.of("plain_unet", 900, sizes, 0.01, 0, "none", root, {**SHORT, **changes})


def test_a_call_with_other_sizes_keeps_the_students_of_the_first(
    whole: tuple[Path, Compression, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is trained here: what the first call left is found by the settings of the second."""
    root, found, _ = whole
    work = _work(root, [4])
    assert [name for name, _ in work.runs()] == [row.run for row in found.rows]
    assert _scores(work.result()) == _scores(found) and "earlier call" not in caplog.text
    other = _work(root, [4], epochs=3)
    assert [role for _, role in other.runs()] == ["teacher"]
    assert "of an earlier call is not in the table" in caplog.text and "budget.epochs: 2 there, 3 now" in caplog.text
    places = {_work(root, [4], tag=tag).summary for tag in (None, "a")}
    places |= {replace(work, method="dml").summary, replace(work, fold="1").summary, work.summary}
    assert len(places) == 4
    assert replace(work, method="dml").runs() == work.runs()[:1] + [run for run in work.runs() if run[1] == "alone"]


def test_the_table_of_another_teacher_of_the_same_name_is_kept(
    whole: tuple[Path, Compression, list[str]], tmp_path: Path
) -> None:
    root, found, _ = whole
    shutil.copytree(root, tmp_path / "root")
    work = _work(tmp_path / "root", [2])
    rows = (replace(found.rows[0], run="plain_unet__3d_fullres__other"), *found.rows[1:])
    replace(found, rows=rows).save(work.summary)
    with pytest.raises(RunError, match="the table of another teacher of this name, plain_unet__3d_fullres__other"):
        work.check_students()
    work.summary.write_text("{}")
    work.check_students()


@pytest.mark.slow
@pytest.mark.parametrize("batches", [7, 11])  # in the first student's second epoch, in the one alone
def test_a_killed_call_goes_on_to_the_same_result(
    start: Path,
    whole: tuple[Path, Compression, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batches: int,
) -> None:
    root = tmp_path / "root"
    shutil.copytree(start, root)
    original: Callable[..., Any] = loop.iterate
    drawn = 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal drawn
        for batch in original(*args, **kwargs):
            drawn += 1
            if drawn > batches:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(loop, "iterate", dying)
    with pytest.raises(KeyboardInterrupt):
        medkd.compress("plain_unet", 900, sizes=[2], root=root, **SHORT)
    monkeypatch.setattr(loop, "iterate", original)
    assert _scores(medkd.compress("plain_unet", 900, sizes=[2], root=root, **SHORT)) == _scores(whole[1])


def test_a_student_that_fails_does_not_end_the_others(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(start, tmp_path / "root"))
    original: Callable[..., Any] = compressing.training_run.train_distill
    tried: list[str] = []

    def failing(*given: Any) -> Any:
        tried.append(given[-1].init)
        if given[-1].init == "teacher" and len(tried) < 3:
            raise RunError("the loss is not finite.")
        return original(*given)

    monkeypatch.setattr(compressing.training_run, "train_distill", failing)
    said: list[str] = []
    with pytest.raises(
        SomeFailedError, match=r"1 training failed, .* without what failed \(student .*: the loss is not finite\)"
    ) as told:
        medkd.compress("plain_unet", 900, sizes=[2], root=root, say=said.append, **SHORT)
    assert [(folder / "checkpoint_final.pt").exists() for folder in told.value.folders] == [True]
    assert read_json(told.value.folders[0].parent / "run.json")["init"] == "random"
    assert tried == ["teacher", "random"] and any("failed, the others go on: the loss" in line for line in said)
    stored = read_json(root / "results" / NAME / "compress_plain_unet.json")
    assert [row["role"] for row in stored["rows"]] == ["teacher", "alone"] and stored["recommended"] is None
    found = medkd.compress("plain_unet", 900, sizes=[2], root=root, **SHORT)
    assert [row.role for row in found.rows] == ["teacher", "student", "alone"] and tried[2:] == ["teacher"]


@pytest.mark.parametrize(
    ("prepares", "method", "settings", "done"),
    [
        (True, "none", {}, True),
        (True, "kd", {}, False),
        (True, "kd", {"unlabelled_share": 0.0}, True),
        (False, "kd", {}, True),  # a run cannot prepare it; the trainings warn, as those of medkd_train_distill
    ],
)
def test_scans_without_labels_must_be_prepared_where_they_teach_and_can_be(
    start: Path, tmp_path: Path, prepares: bool, method: str, settings: dict[str, Any], done: bool
) -> None:
    root = Path(shutil.copytree(start, tmp_path / "root"))
    raw = root / "raw" / NAME
    scan = next((raw / "imagesTr").iterdir())
    (raw / "imagesUn").mkdir()
    shutil.copy(scan, raw / "imagesUn" / f"new_0000{''.join(scan.suffixes)}")
    work = compressing.Work.of("plain_unet", 900, [2], 0.01, 0, method, root, settings)
    teacher = SimpleNamespace(prepares=prepares, describe=work.found.describe, name="teacher")
    assert replace(work, found=cast(Any, teacher)).is_prepared() is done


@pytest.mark.parametrize("strict", [True, False])
def test_strict_reaches_the_preparation(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    asked: list[bool] = []
    for module in (compressing, like):
        monkeypatch.setattr(module, "plan_like", lambda *_, strict=False, **__: asked.append(strict))
    work = compressing.Work.of("plain_unet", 900, [2], 0.01, 0, "none", start, {"strict": strict})
    teacher = cast(Any, SimpleNamespace(prepares=True, path=start))
    replace(work, found=teacher).prepare()
    (tmp_path / "raw" / "Dataset910_New").mkdir(parents=True)
    SegmentationTask().prepare_like("Dataset910_New", teacher, TrainOptions(root=tmp_path, strict=strict))
    assert asked == [strict, strict]


class _Network:
    """Memory that a training holds."""


@pytest.mark.parametrize("chained", [False, True])
def test_what_a_failed_training_held_is_there_for_the_next(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chained: bool
) -> None:
    root = Path(shutil.copytree(start, tmp_path / "root"))
    held: list[weakref.ref[_Network]] = []

    def failing(*_: Any) -> Any:
        assert not any(network() for network in held)
        network = _Network()
        held.append(weakref.ref(network))
        try:
            raise MemoryError("out of memory")
        except MemoryError as error:
            if chained:
                raise RunError("memory ran out.") from error
            raise

    monkeypatch.setattr(compressing.training_run, "train_distill", failing)
    with pytest.raises((RunError, MemoryError), match="memory"):
        medkd.compress("plain_unet", 900, sizes=[2, 4], root=root, **SHORT)
    assert len(held) == 3


def test_a_mistake_in_any_student_is_told_before_the_first_is_trained(
    start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressing.training_run, "train_distill", lambda *_: pytest.fail("trained"))
    with pytest.raises(RunError, match="confidence is about what a teacher teaches"):
        medkd.compress("plain_unet", 900, sizes=[2], root=start, confidence=0.5, **SHORT)


def test_the_command_prints_the_table_and_a_rehearsal_starts_nothing(
    start: Path, whole: tuple[Path, Compression, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((start / "results" / NAME).rglob("*"))
    short = ["--epochs", "2", "--iterations-per-epoch", "2", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    command = ["plain_unet", "-d", "900", "--sizes", "2", *short, "--learning-rate", "0.01"]
    assert main([*command, "--dry-run", "--root", str(start)]) == 0
    shown = capsys.readouterr().out
    assert "[3/6] student with 1/2 of the channels, that starts from the teacher: to do" in shown
    assert "starts from its teacher" in shown and sorted((start / "results" / NAME).rglob("*")) == before
    assert main([*command, "--root", str(whole[0])]) == 0
    shown = capsys.readouterr().out
    assert "1/2 from the teacher" in shown and "recommended: none" in shown and "compress_plain_unet.html" in shown


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sizes": [1]}, "--sizes expects different whole numbers from 2 on, .* found 1;"),
        ({"sizes": [2, 2]}, "found 2, 2;"),
        ({"sizes": []}, "found none;"),
        ({"tolerance": 0.0}, "--tolerance expects a number between 0 and 1"),
        ({"tolerance": float("nan")}, "--tolerance expects a number between 0 and 1"),
        ({"fold": "all"}, "--fold expects 0 to 4"),
        ({"epoch": 3}, "no setting 'epoch'. Did you mean 'epochs'"),
        ({"width_divisor": 2}, "no setting 'width_divisor'"),
        ({"model": "unet_tiny"}, "expected a plain_unet or resenc_unet_.*, found unet_tiny"),
        ({"model": "nothing"}, "Teacher 'nothing' is neither a model folder"),
        ({"dataset": 901}, "Data set '901' was not found"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(start: Path, changes: dict[str, Any], text: str) -> None:
    before = sorted((start / "results" / NAME).iterdir())
    values = {"model": "plain_unet", "dataset": 900, "sizes": [2], "root": start, **SHORT, **changes}
    with pytest.raises((RunError, DataError), match=text):
        medkd.compress(values.pop("model"), values.pop("dataset"), **values)
    assert sorted((start / "results" / NAME).iterdir()) == before


def test_detectors_are_started_otherwise(tmp_path: Path) -> None:
    make_radiographs(tmp_path, images=4)
    with pytest.raises(RunError, match=r"medkd_train_distill Dataset502_Tiny TEACHER STUDENT none 0 --init teacher\.$"):
        medkd.compress("yolov8l", 502, root=tmp_path)
