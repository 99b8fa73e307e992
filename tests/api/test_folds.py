"""``folds`` in the place of a fold: every fold once, and their scores together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import medkd
from dataset_conversion.phantom import make_phantom
from medkd.api.folds import listed_folds, train_folds
from medkd.core.errors import DataError, RunError, SomeFailedError
from medkd.core.files import write_json


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_phantom(tmp_path / "raw" / "Dataset004_Phantom", cases=3, shape=(24, 40, 40))
    medkd.plan_and_preprocess(4, root=tmp_path, configurations=["3d_fullres"], orientation="RAS")
    return tmp_path


@pytest.mark.parametrize("folds", [0, "01", [], (), [True], [0.0], {"0": 1}])
def test_folds_are_a_list(folds: Any, tmp_path: Path) -> None:
    for call in (
        lambda: medkd.load("4/run", root=tmp_path, folds=folds),
        lambda: medkd.predict(tmp_path, tmp_path, "4/run", root=tmp_path, folds=folds),
        lambda: medkd.cross_validate(4, "run", root=tmp_path / "raw", folds=folds),
        lambda: medkd.best_configuration(4, ["run"], root=tmp_path, folds=folds),
    ):
        with pytest.raises(RunError, match="folds: expected a list of folds, for example"):
            call()
    assert listed_folds(range(2)) == (0, 1) and listed_folds(None) is None


@pytest.mark.slow
def test_all_folds_are_trained_scored_and_put_together(root: Path) -> None:
    options = medkd.TrainOptions(
        root=root, epochs=1, iterations_per_epoch=1, batch_size=2, patch_size=(16, 32, 32), workers=0, device="cpu"
    )
    medkd.train(4, "unet_tiny", 1, options)
    with pytest.raises(RunError, match=r"fold_1 was trained before; give"):
        medkd.train(4, "unet_tiny", "folds", options)
    log = root / "results" / "Dataset004_Phantom" / "unet_tiny__3d_fullres" / "fold_1" / "log.jsonl"
    before = log.stat().st_mtime_ns
    found = medkd.train(4, "unet_tiny", "folds", options, resume=True)
    assert log.stat().st_mtime_ns == before
    summary = json.loads((found / "summary.json").read_text())
    extra = json.dumps(summary)
    assert '"folds": [0, 1, 2]' in extra and '"missing_folds": []' in extra
    assert len(summary["metric_per_case"]) == 3
    assert json.loads((found / "postprocessing.json").read_text())["folds"] == ["0", "1", "2"]
    student = medkd.train_distill(4, "unet_tiny", "unet_tiny", "kd", "folds", options, validate=False)
    assert sorted(folder.name for folder in student.glob("fold_*")) == ["fold_0", "fold_1", "fold_2"]
    both = medkd.train_side_by_side(
        4, "unet_tiny", "unet_tiny", ["none", "dml"], "folds", options, validate=False, tag="beside"
    )
    assert [run.name.split("__")[2] for run in both] == ["none", "dml"]
    assert all(len(list(run.glob("fold_*/checkpoint_final.pt"))) == 3 for run in both)
    told = medkd.dry_run(4, "unet_tiny", "folds", options, tag="other")
    assert any("fold_0" in line for line in told)


def test_a_run_that_fails_in_one_fold_stops_neither_its_other_folds_nor_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path
    splits = [{"train": ["a", "b"], "val": ["c"]}] * 3
    write_json(root / "preprocessed" / "Dataset004_Phantom" / "splits_final.json", splits)
    asked, together = [], []

    def train_fold(fold: str) -> list[Path]:
        asked.append(fold)
        both = [root / "results" / run / f"fold_{fold}" for run in ("kd", "cwd")]
        if fold == "1":
            return both
        broken = "kd" if fold == "0" else "cwd"
        others = [folder for folder in both if folder.parent.name != broken]
        raise SomeFailedError(f"{broken} failed", {broken: "memory ran out"}, others)

    monkeypatch.setattr("medkd.evaluation.cross_validation.cross_validate", lambda run, **_: together.append(run.name))
    with pytest.raises(SomeFailedError) as caught:
        train_folds(train_fold, 4, root, True)
    assert asked == ["0", "1", "2"] and together == []
    assert str(caught.value).startswith("2 of 2 runs have folds that failed")
    assert "kd: fold 0: memory ran out; cwd: fold 2: memory ran out" in str(caught.value)
    assert "fold 0: kd failed" in caplog.text and "\n" not in str(caught.value)

    def first_fails(fold: str) -> list[Path]:
        if fold == "2":
            raise SomeFailedError("kd failed", {"kd": "the loss became NaN"}, [root / "results" / "cwd" / "fold_2"])
        return [root / "results" / run / f"fold_{fold}" for run in ("kd", "cwd")]

    with pytest.raises(SomeFailedError, match=r"1 of 2 runs .*\(kd: fold 2: the loss became NaN\)") as caught:
        train_folds(first_fails, 4, root, True)
    assert together == ["cwd"] and caught.value.folders == [root / "results" / "cwd" / "crossval"]


def test_failures_are_told_whatever_ends_the_folds_or_keeps_a_run_from_being_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(
        tmp_path / "preprocessed" / "Dataset004_Phantom" / "splits_final.json", [{"train": ["a"], "val": []}] * 3
    )
    tried = []

    def ends(fold: str) -> list[Path]:
        if fold == "2":
            raise RunError("The fold is being trained by the process 7; wait for it.")
        if fold == "0":
            raise SomeFailedError("kd failed", {"kd": "memory ran out"}, [tmp_path / "cwd" / "fold_0"])
        return [tmp_path / run / f"fold_{fold}" for run in ("kd", "cwd")]

    with pytest.raises(
        SomeFailedError, match=r"by the process 7; wait for it; .*\(kd: fold 0: memory ran out\)"
    ) as caught:
        train_folds(ends, 4, tmp_path, True)
    assert caught.value.failed == {"kd": "fold 0: memory ran out"} and "\n" not in str(caught.value)

    def broken(run: Path, **_: Any) -> None:
        tried.append(run.name)
        if run.name != "cwd":
            raise DataError(f"{run.name}: use disjoint splits.")

    def fine(fold: str) -> list[Path]:
        return [tmp_path / run / f"fold_{fold}" for run in ("kd", "at", "cwd")]

    monkeypatch.setattr("medkd.evaluation.cross_validation.cross_validate", broken)
    with pytest.raises(SomeFailedError, match=r"2 of 3 runs .*kd: .*disjoint splits; at: its folds") as caught:
        train_folds(fine, 4, tmp_path, True)
    assert tried == ["kd", "at", "cwd"] and caught.value.folders == [tmp_path / "cwd" / "crossval"]
    with pytest.raises(DataError, match=r"^kd: use disjoint splits\.$"):
        train_folds(lambda fold: [tmp_path / "kd" / f"fold_{fold}"], 4, tmp_path, True)
