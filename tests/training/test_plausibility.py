"""What is said before a training that cannot come to anything, and when it is stopped from outside."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medkd.core import arithmetic
from medkd.core.errors import DataError, RunError
from medkd.core.labels import LabelSpec
from medkd.core.plan import Plan
from medkd.core.run import RunFolder
from medkd.core.serial import save
from medkd.training.loading import explained
from medkd.training.options import TrainOptions
from medkd.training.segmentation_lesson import SegmentationLesson
from medkd.training.segmentation_task import dry_run, train, train_distill
from tests.training.builders import NAME, make_dataset


def _options(root: Path, **changes: Any) -> TrainOptions:
    values: dict[str, Any] = {
        "root": root,
        "epochs": 1,
        "iterations_per_epoch": 1,
        "workers": 0,
        "device": "cpu",
        "validate": False,
    }
    return TrainOptions(**{**values, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a teacher trained on fold 0."""
    made = tmp_path_factory.mktemp("root")
    make_dataset(made)
    train(900, "plain_unet", 0, _options(made))
    return made


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(("dice", "warned"), [(0.0, True), (0.004, True), (0.5, False), (None, False)])
def test_a_teacher_that_finds_nothing_is_warned_of(
    root: Path, caplog: pytest.LogCaptureFixture, dice: float | None, warned: bool
) -> None:
    path = root / "results" / NAME / "plain_unet__3d_fullres/fold_0/validation/summary.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"foreground_mean": {"Dice": dice}}))
    dry_run(900, "plain_unet", 0, _options(root, tag="w"), "plain_unet", "kd")
    said = [text for text in _said(caplog) if "no better than finding nothing" in text]
    assert len(said) == warned
    if warned:
        assert said[0].startswith(f"the teacher plain_unet (fold 0) has Dice {dice:.4f} on its own validation")
        with pytest.raises(RunError, match=r"--strict: the teacher plain_unet .* has Dice 0.00") as caught:
            train_distill(900, "plain_unet", "plain_unet", "kd", 0, _options(root, tag="strict", strict=True))
        assert "\n" not in str(caught.value) and not list((root / "results" / NAME).glob("*__strict"))
    else:
        dry_run(900, "plain_unet", 0, _options(root, tag="w", strict=True), "plain_unet", "kd")


def test_a_damaged_summary_does_not_stop_a_student(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = root / "results" / NAME / "plain_unet__3d_fullres/fold_0/validation/summary.json"
    path.parent.mkdir(exist_ok=True)
    for content in ("{", "[]", '{"foreground_mean": 3}'):
        path.write_text(content)
        dry_run(900, "plain_unet", 0, _options(root, tag="w"), "plain_unet", "kd")
    assert not [text for text in _said(caplog) if "finding nothing" in text]
    path.unlink()


def test_a_structure_that_is_absent_from_the_training_cases_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_dataset(tmp_path, labels=LabelSpec.from_names(["small", "large", "absent"]))
    dry_run(900, "plain_unet", 0, _options(tmp_path))
    said = _said(caplog)
    for verb in ("trained", "judged"):
        assert f"fold 0 is {verb} without any voxel of absent; make other splits, or add cases" in said
    with pytest.raises(
        RunError, match=r"--strict: fold 0 is trained without any voxel of absent; .* leave out --strict"
    ):
        dry_run(900, "plain_unet", 0, _options(tmp_path, strict=True))


def test_wrong_arithmetic_is_told_before_a_training_and_refused_when_strict(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "_wrong_maps", lambda training: ((2, 3, 4),))
    monkeypatch.setattr(arithmetic, "half_cost", lambda precision: 9.0)
    dry_run(900, "plain_unet", 0, _options(root, tag="w", precision="bf16"))
    assert len([text for text in _said(caplog) if "slow in bf16" in text]) == 1
    lines = dry_run(900, "plain_unet", 0, _options(root, tag="w", precision="auto"))
    assert any(", fp32, learning rate" in line for line in lines)
    assert len([text for text in _said(caplog) if "feature maps of 2 x 3 x 4 voxels wrong in bf16" in text]) == 1
    dry_run(900, "plain_unet", 0, _options(root, tag="w", strict=True))
    with pytest.raises(RunError, match=r"--strict: torch .* wrong in bf16 .* leave out --strict"):
        dry_run(900, "plain_unet", 0, _options(root, tag="w", precision="bf16", strict=True))


@pytest.mark.parametrize("start", [train, dry_run])
def test_an_empty_training_list_is_one_sentence(tmp_path: Path, start: Any) -> None:
    folder = make_dataset(tmp_path)
    (folder / "splits_final.json").write_text(json.dumps([{"train": [], "val": ["case_00"]}]))
    with pytest.raises(DataError, match="with cases in 'train', but entry 0 is not") as caught:
        start(900, "plain_unet", 0, _options(tmp_path))
    assert "\n" not in str(caught.value) and not (tmp_path / "results").exists()


def _structure(dice: float, hits: int, missed: int, wrong: int, rest: int) -> dict[str, float]:
    return {"Dice": dice, "TP": hits, "FN": missed, "FP": wrong, "TN": rest}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0.02, 10, 80, 550, 5100), (0.01, 5, 40, 500, 5200), "has Dice 0.0150 on its own validation"),  # a random one
        ((0.8, 70, 20, 15, 5600), (0.0, 0, 45, 0, 5700), "finds nothing of large on its own validation"),
        ((0.8, 70, 20, 15, 5600), (0.5, 30, 15, 45, 5600), ""),
        ((0.8, 70, 20, 15, 5600), (0.0, 0, 0, 3, 5700), ""),  # no validation case shows it
        ((0.4, 1600, 1400, 3400, 3600), (0.8, 70, 20, 15, 9000), "finds nothing of small"),  # Dice of calling all that
    ],
)
def test_a_teacher_is_held_against_calling_every_voxel_the_structure(
    root: Path, caplog: pytest.LogCaptureFixture, first: Any, second: Any, expected: str
) -> None:
    path = root / "results" / NAME / "plain_unet__3d_fullres/fold_0/validation/summary.json"
    path.parent.mkdir(exist_ok=True)
    content = {
        "foreground_mean": {"Dice": (first[0] + second[0]) / 2},
        "mean": {"1": _structure(*first), "2": _structure(*second)},
        "medkd": {"structures": {"1": {"name": "small"}, "2": {"name": "large"}}},
    }
    path.write_text(json.dumps(content))
    dry_run(900, "plain_unet", 0, _options(root, tag="w"), "plain_unet", "kd")
    path.unlink()
    said = [text for text in _said(caplog) if text.startswith("the teacher")]
    assert [expected in text for text in said] == ([True] if expected else [])


def test_a_teacher_that_was_mirrored_where_the_plan_forbids_it_is_named_and_not_averaged_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_dataset(tmp_path) / "plans.json"
    train(900, "plain_unet", 0, _options(tmp_path))
    dry_run(900, "plain_unet", 0, _options(tmp_path, tag="s"), "plain_unet", "kd")
    assert not [text for text in _said(caplog) if "mirroring" in text]
    plan = Plan.load(path)
    limited = replace(plan.configuration("3d_fullres"), mirror_axes=(0, 1))
    save(path, replace(plan, configurations={**plan.configurations, "3d_fullres": limited}))
    student = train_distill(
        900, "plain_unet", "plain_unet", "kd", 0, _options(tmp_path, targets="cached", targets_tta=True)
    )
    [said] = [text for text in _said(caplog) if "mirroring" in text]
    assert "was trained with mirroring along axis 2, which the plan leaves out" in said
    assert RunFolder.load(student.parent).run.mirror_axes == (0, 1)
    [targets] = path.parent.glob("3d_fullres_targets/*/targets.json")
    assert json.loads(targets.read_text())["mirror_axes"] == [0, 1]
    asked = {"mirror_axes": (0,), "tag": "asked"}
    caplog.clear()
    dry_run(900, "plain_unet", 0, _options(tmp_path, **asked), "plain_unet", "kd")
    [said] = [text for text in _said(caplog) if "mirroring" in text]
    assert "along axis 1 and 2, which mirror_axes leaves out" in said
    with pytest.raises(RunError, match="--strict: the teacher plain_unet was trained with mirroring along axis 1 and"):
        dry_run(900, "plain_unet", 0, _options(tmp_path, strict=True, **asked), "plain_unet", "kd")


def test_preprocessed_cases_that_vanish_while_a_fold_is_trained_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path)
    monkeypatch.setattr(SegmentationLesson, "fit", lambda self: shutil.rmtree(self.job.store.folder))
    with pytest.raises(DataError, match=r"lost 2 of the 2 preprocessed cases .* --continue") as caught:
        train(900, "plain_unet", 0, _options(tmp_path, validate=True))
    assert "\n" not in str(caught.value)


class _Dies(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


class _Fails(_Dies):
    def __getitem__(self, index: int) -> int:
        raise DataError("The case case_07 is damaged; preprocess again.")


def _load(data: torch.utils.data.Dataset[int]) -> Iterator[Any]:
    return iter(torch.utils.data.DataLoader(data, num_workers=1))


def test_a_loader_process_that_is_killed_is_one_sentence_that_names_continue(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"was stopped .*--continue") as caught, explained(tmp_path / "fold_0"):
        list(_load(_Dies()))
    assert "\n" not in str(caught.value) and str(tmp_path / "fold_0") in str(caught.value)


def test_an_error_in_a_loader_process_stays_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught, explained(tmp_path):
        list(_load(_Fails()))
    assert str(caught.value) == "The case case_07 is damaged; preprocess again."


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), explained(tmp_path):
        raise RuntimeError("shape")


def test_options_of_another_task_are_refused(root: Path) -> None:
    from medkd.detection.options import DetectorOptions

    with pytest.raises(RunError, match="takes TrainOptions, found DetectorOptions"):
        train(900, "plain_unet", 0, DetectorOptions(root=root))


@pytest.mark.parametrize(("axes", "expected"), [(None, (0, 1, 2)), ((), ()), ((1,), (1,)), ((0, 2), (0, 2))])
def test_the_axes_that_may_be_mirrored_are_recorded_and_bind_students(
    root: Path, axes: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    tag = "plan" if axes is None else "axes" + "".join(map(str, axes))
    teacher = train(900, "plain_unet", 0, _options(root, mirror_axes=axes, tag=tag)).parent
    assert RunFolder.load(teacher).run.mirror_axes == expected
    student = train_distill(900, teacher.name, "plain_unet", "kd", 0, _options(root, tag=f"{tag}s")).parent
    assert RunFolder.load(student).run.mirror_axes == expected
    for axis in set(range(3)) - set(expected):
        with pytest.raises(RunError, match=f"names axis {axis}, but the teacher .* was not mirrored along it"):
            train_distill(900, teacher.name, "plain_unet", "kd", 0, _options(root, tag="n", mirror_axes=(axis,)))


@pytest.mark.parametrize("axes", [(3,), (0, 3)])
def test_an_axis_that_the_patch_does_not_have_is_refused(root: Path, axes: tuple[int, ...]) -> None:
    with pytest.raises(RunError, match="names axis 3, but 3d_fullres has the axes 0 to 2"):
        train(900, "plain_unet", 0, _options(root, mirror_axes=axes, tag="x"))
    for wrong in ((1, 0), (0, 0), (-1,), (0.5,), 1):
        with pytest.raises(RunError, match="expects none, or numbers of axes in rising order"):
            _options(root, mirror_axes=wrong)
