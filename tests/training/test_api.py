"""The two training commands end to end on small boxes: leak guard, continuation, names, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import medkd.training.segmentation as segmentation
from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import LeakError, MedkdError, RunError
from medkd.core.run import FINAL, RunFolder
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train, train_distill
from tests.training.builders import NAME, make_dataset


def _options(root: Path, **changes: object) -> TrainOptions:
    values: dict = {
        "root": root,
        "epochs": 2,
        "iterations_per_epoch": 3,
        "workers": 0,
        "save_every": 1,
        "device": "cpu",
        **changes,
    }
    return TrainOptions(**values)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a teacher trained on fold 0."""
    root = tmp_path_factory.mktemp("root")
    make_dataset(root)
    train(900, "plain_unet", 0, _options(root, epochs=4))
    return root


def test_a_trained_fold_leaves_everything_that_is_promised(trained: Path) -> None:
    folder = trained / "results" / NAME / "plain_unet__3d_fullres" / "fold_0"
    summary = json.loads((folder / "validation/summary.json").read_text())
    split = json.loads((folder / "split.json").read_text())
    assert {Path(m["prediction_file"]).name[:7] for m in summary["metric_per_case"]} == set(split["val"])
    assert {"Dice", "HD95", "NSD"} <= set(summary["metric_per_case"][0]["metrics"]["1"])
    model = json.loads((folder / "model.json").read_text())
    assert model["parameters"] > 0 and model["macs"] > 0 and model["latency_ms"] > 0
    assert (folder / "progress.png").exists() and RunFolder.load(folder.parent).trained_folds() == ["0"]


def test_a_student_alone_starts_and_ends_as_the_same_network_under_method_none(trained: Path) -> None:
    alone = train(900, "plain_unet", 0, _options(trained, width_divisor=2))
    taught = train_distill(900, "plain_unet", "plain_unet", "none", 0, _options(trained, width_divisor=2))
    assert taught.parent.name == "plain_unet_w2__3d_fullres__none__from_plain_unet"
    a, b = (load_checkpoint(f / FINAL)["network"] for f in (alone, taught))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_teacher_changes_the_student_and_another_teacher_changes_it_otherwise(trained: Path) -> None:
    train(900, "plain_unet", 0, _options(trained, seed=5, epochs=3, tag="other", validate=False))
    folders = [
        train_distill(900, teacher, "plain_unet", "kd", 0, _options(trained, width_divisor=2, validate=False, tag=tag))
        for teacher, tag in (("plain_unet", "a"), ("plain_unet__3d_fullres__other", "b"))
    ]
    a, b = (load_checkpoint(f / FINAL)["network"] for f in folders)
    assert any(not torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("method", ["kd", "acf_bckd"])
def test_a_killed_and_continued_distillation_has_the_unbroken_runs_weights(
    trained: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = _options(trained, epochs=3, validate=False)
    whole = train_distill(900, "plain_unet", "plain_unet", method, 0, TrainOptions(**{**vars(options), "tag": "whole"}))
    original, calls = segmentation.iterate, 0

    def dying(*args: object, **kwargs: object):  # type: ignore[no-untyped-def]
        nonlocal calls
        for batch in original(*args, **kwargs):  # type: ignore[arg-type]
            calls += 1
            if calls == 6:
                raise KeyboardInterrupt
            yield batch

    broken = TrainOptions(**{**vars(options), "tag": "broken"})
    monkeypatch.setattr(segmentation, "iterate", dying)
    with pytest.raises(KeyboardInterrupt):
        train_distill(900, "plain_unet", "plain_unet", method, 0, broken)
    monkeypatch.setattr(segmentation, "iterate", original)
    with pytest.raises(RunError, match="--continue"):
        train_distill(900, "plain_unet", "plain_unet", method, 0, broken)
    part = train_distill(900, "plain_unet", "plain_unet", method, 0, TrainOptions(**{**vars(broken), "resume": True}))
    a, b = (load_checkpoint(f / FINAL)["network"] for f in (whole, part))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_teacher_that_saw_the_validation_cases_is_refused(trained: Path) -> None:
    with pytest.raises(LeakError, match="fold 1"):
        train_distill(900, "plain_unet", "plain_unet", "kd", 1, _options(trained))


def test_a_leak_through_the_teachers_own_teacher_is_refused(trained: Path) -> None:
    folder = train_distill(900, "plain_unet", "plain_unet", "kd", 0, _options(trained, tag="chain", validate=False))
    split = json.loads((folder / "split.json").read_text())
    split["teacher_train"] = split["val"]
    (folder / "split.json").write_text(json.dumps(split))
    with pytest.raises(LeakError):
        train_distill(900, str(folder.parent), "plain_unet", "kd", 0, _options(trained))


def test_an_all_student_may_have_any_teacher_and_is_not_scored(trained: Path) -> None:
    folder = train_distill(900, "plain_unet", "plain_unet", "kd", "all", _options(trained))
    assert (folder / FINAL).exists() and not (folder / "validation").exists()


def test_finished_runs_are_not_overwritten_unasked_and_other_settings_need_another_name(trained: Path) -> None:
    with pytest.raises(RunError, match="--continue"):
        train(900, "plain_unet", 0, _options(trained, epochs=4))
    with pytest.raises(RunError, match="--tag"):
        train(900, "plain_unet", 1, _options(trained, epochs=9))
    before = (trained / "results" / NAME / "plain_unet__3d_fullres/fold_0" / FINAL).read_bytes()
    train(900, "plain_unet", 0, _options(trained, epochs=4, resume=True))
    assert (trained / "results" / NAME / "plain_unet__3d_fullres/fold_0" / FINAL).read_bytes() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("train", "plain_unett", 0, {}), "Did you mean 'plain_unet'"),
        (("train", "plain_unet", 7, {"tag": "x"}), "folds 0 to 4"),
        (("train", "plain_unet", 0, {"configuration": "3d_lowres"}), "Planned: 3d_fullres"),
        (("train", "plain_unet", 0, {"patch_size": (16, 16), "tag": "y"}), "needs 3 values"),
        (("train", "plain_unet", 0, {"device": "cuda:9", "tag": "z"}), "cuda"),
        (("distill", "nobody", 0, {}), "Runs found"),
        (("distill", "plain_unet", 0, {"method_parameters": {"kd.temprature": "1"}, "tag": "t"}), "temperature"),
    ],
)
def test_wrong_calls_are_one_clear_sentence(trained: Path, call: tuple, message: str) -> None:
    kind, name, fold, changes = call
    if "cuda" in message and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(MedkdError, match=message) as caught:
        if kind == "train":
            train(900, name, fold, _options(trained, **changes))
        else:
            train_distill(900, name, "plain_unet", "kd", fold, _options(trained, **changes))
    assert "\n" not in str(caught.value)
    left = trained / "results" / NAME
    assert not [p for p in left.iterdir() if not list(p.glob("fold_*/*.pt"))], "a refused call leaves no run behind"


def test_a_teacher_of_other_preprocessing_is_refused(trained: Path) -> None:
    path = trained / "results" / NAME / "plain_unet__3d_fullres" / "plans.json"
    original = path.read_text()
    path.write_text(original.replace('"zscore"', '"none"'))
    try:
        with pytest.raises(RunError, match="preprocessing"):
            train_distill(900, "plain_unet", "plain_unet", "kd", 0, _options(trained, tag="w"))
    finally:
        path.write_text(original)


@pytest.mark.parametrize(("configuration", "regions"), [("2d", False), ("3d_fullres", True), ("2d", True)])
def test_slices_and_regions_train_and_distil(tmp_path: Path, configuration: str, regions: bool) -> None:
    make_dataset(tmp_path, regions=regions)
    options = _options(tmp_path, configuration=configuration, epochs=1)
    train(900, "plain_unet", 0, options)
    folder = train_distill(900, "plain_unet", "unet_tiny", "kd+cwd", 0, options)
    assert (folder / "validation/summary.json").exists()
