"""What a run folder refuses: folds of other cases, other preprocessing or other settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from medkd.core.checkpoint import load_checkpoint, save_checkpoint
from medkd.core.errors import OutdatedError, RunError
from medkd.core.made_from import outdated
from medkd.core.plan import Plan
from medkd.core.run import FINAL
from medkd.core.serial import save
from medkd.core.splits import Split
from medkd.training.options import TrainOptions
from medkd.training.run_folder import check_cases
from medkd.training.segmentation_task import dry_run, train, train_distill
from tests.training.builders import NAME, make_dataset, note_as_prepared

RUN = Path("results") / NAME / "plain_unet__3d_fullres"
DATA = Path("preprocessed") / NAME


def _options(root: Path, **changes: object) -> TrainOptions:
    values: dict = {
        "root": root,
        "epochs": 1,
        "iterations_per_epoch": 1,
        "workers": 0,
        "save_every": 1,
        "device": "cpu",
        "validate": False,
    }
    return TrainOptions(**{**values, **changes})


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("once")
    make_dataset(root)
    train(900, "plain_unet", 0, _options(root))
    return root


@pytest.fixture
def trained(once: Path, tmp_path: Path) -> Path:
    """A root of its own with fold 0 trained."""
    return Path(shutil.copytree(once, tmp_path / "root"))


def _swap(root: Path) -> dict[str, list[str]]:
    """Exchange a training and a validation case of fold 0; returns the fold's own split."""
    path = root / DATA / "splits_final.json"
    splits = json.loads(path.read_text())
    train, val = splits[0]["train"], splits[0]["val"]
    train[0], val[0] = val[0], train[0]
    path.write_text(json.dumps(splits))
    return json.loads((root / RUN / "fold_0/split.json").read_text())


def _edit_plan(root: Path, change: Callable[[Plan], Plan]) -> None:
    path = root / DATA / "plans.json"
    save(path, change(Plan.load(path)))


def _respaced(plan: Plan) -> Plan:
    configuration = replace(plan.configuration("3d_fullres"), spacing=(2.0, 2.0, 2.0))
    return replace(plan, configurations={**plan.configurations, "3d_fullres": configuration})


def _replanned(plan: Plan) -> Plan:
    """As after new cases: other statistics, which z-scoring does not use, and another median shape."""
    configuration = replace(plan.configuration("3d_fullres"), median_shape=(21, 18, 22))
    configurations = {**plan.configurations, "3d_fullres": configuration}
    return replace(plan, configurations=configurations, intensities=(replace(plan.intensities[0], mean=9.0),))


@pytest.mark.parametrize("start", [train, dry_run])
def test_an_interrupted_fold_goes_on_with_its_own_cases_only(trained: Path, start: Callable[..., object]) -> None:
    own, folder = _swap(trained), trained / RUN / "fold_0"
    (folder / FINAL).unlink()
    with pytest.raises(
        RunError,
        match=r"trained with other splits: 2 of its training cases differ, for example case_0\d; restore splits_",
    ):
        start(900, "plain_unet", 0, _options(trained, resume=True))
    assert json.loads((folder / "split.json").read_text()) == own


def test_a_finished_fold_is_judged_on_the_cases_that_it_held_out(trained: Path) -> None:
    own = _swap(trained)
    folder = train(900, "plain_unet", 0, _options(trained, resume=True, validate=True))
    assert sorted(p.name[:7] for p in (folder / "validation").glob("*.nii.gz")) == own["val"]
    assert json.loads((folder / "split.json").read_text()) == own


def test_an_interrupted_student_goes_on_with_a_teacher_of_the_same_cases_only(trained: Path) -> None:
    folder = train_distill(900, "plain_unet", "plain_unet", "kd", 0, _options(trained))
    (folder / FINAL).unlink()
    path = trained / RUN / "fold_0/split.json"
    split = json.loads(path.read_text())
    path.write_text(json.dumps({**split, "train": split["train"][1:]}))
    with pytest.raises(RunError, match="1 of its teacher's training cases differ"):
        train_distill(900, "plain_unet", "plain_unet", "kd", 0, _options(trained, resume=True))


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda root: _weigh(root, 0.5),
            r"plain_unet__3d_fullres/fold_0/checkpoint_final\.pt holds other weights than",
        ),
        (
            lambda root: _relabel(root, train=True),
            "1 of the [0-9] cases from which .* was made were preprocessed anew",
        ),
    ],
)
def test_a_student_is_done_and_goes_on_only_as_long_as_teacher_and_cases_are_the_same(
    trained: Path, change: Callable[[Path], None], sentence: str, finished: bool
) -> None:
    """The teacher was trained anew in its folder, or a label map was mended: the student is of what was before."""
    settings = _options(trained, resume=True, init="teacher")
    folder = train_distill(900, "plain_unet", "plain_unet", "none", 0, settings)
    if not finished:
        (folder / FINAL).unlink()
    _weigh(trained, 1.0)  # the same weights, written anew
    _relabel(trained, train=False)
    _edit_plan(trained, _replanned)
    before = (folder / "checkpoint_latest.pt").stat().st_mtime_ns
    assert train_distill(900, "plain_unet", "plain_unet", "none", 0, settings) == folder
    assert (folder / "checkpoint_latest.pt").stat().st_mtime_ns == before or not finished
    assert outdated(folder, "3d_fullres") is None
    if not finished:
        (folder / FINAL).unlink()
    change(trained)
    said = f"{sentence}.*; restore them, or give --overwrite to start anew"
    with pytest.raises(OutdatedError, match=said):
        dry_run(900, "plain_unet", 0, settings, teacher="plain_unet", method="none")
    with pytest.raises(OutdatedError, match=said):
        train_distill(900, "plain_unet", "plain_unet", "none", 0, settings)
    train_distill(900, "plain_unet", "plain_unet", "none", 0, replace(settings, resume=False, overwrite=True))
    assert outdated(folder, "3d_fullres") is None


def _weigh(root: Path, factor: float) -> None:
    path = root / RUN / "fold_0" / FINAL
    content = load_checkpoint(path)
    content["network"] = {name: value * factor for name, value in content["network"].items()}
    save_checkpoint(path, {**content, "again": factor})


def _relabel(root: Path, *, train: bool) -> None:
    """Another label map for a case, as after mending it and preprocessing again."""
    own = json.loads((root / RUN / "fold_0/split.json").read_text())
    path = root / DATA / "3d_fullres" / f"{own['train' if train else 'val'][0]}.json"
    record = json.loads(path.read_text())
    record["files"][-1]["content"] = "another"
    path.write_text(json.dumps(record))


def test_the_order_of_cases_means_nothing_and_a_fold_without_weights_may_begin_with_any(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text('{"train": ["a", "b"], "val": ["c"], "teacher_train": []}')
    check_cases(tmp_path, Split(("x",), ("y",)), frozenset())
    (tmp_path / "checkpoint_latest.pt").touch()
    check_cases(tmp_path, Split(("b", "a"), ("c",)), frozenset())
    with pytest.raises(RunError, match="1 of its validation cases differ"):
        check_cases(tmp_path, Split(("b", "a"), ("c", "d")), frozenset())


@pytest.mark.parametrize("changes", [{"fold": 1}, {"fold": 0, "resume": True}])
def test_a_run_holds_folds_of_one_preprocessing(trained: Path, changes: dict) -> None:
    before = (trained / RUN / "plans.json").read_text()
    fold, options = changes["fold"], _options(trained, **{k: v for k, v in changes.items() if k != "fold"})
    _edit_plan(trained, _respaced)
    note_as_prepared(trained / DATA, "3d_fullres")
    with pytest.raises(
        RunError, match=r"other settings \(spacing: \(1\.0, 1\.0, 1\.0\) there, \(2\.0, 2\.0, 2\.0\) now\)"
    ):
        train(900, "plain_unet", fold, options)
    assert (trained / RUN / "plans.json").read_text() == before
    dry_run(900, "plain_unet", 0, _options(trained, overwrite=True))  # nothing of the former is left then


def test_a_run_holds_folds_of_the_same_labels(trained: Path) -> None:
    for path in (trained / DATA / "dataset.json", trained / "raw" / NAME / "dataset.json"):
        path.write_text(path.read_text().replace('"large"', '"huge"'))
    note_as_prepared(trained / DATA, "3d_fullres")
    with pytest.raises(RunError, match=r"other settings \(labels"):
        train(900, "plain_unet", 1, _options(trained))


def test_what_does_not_reach_the_network_may_change_between_folds(trained: Path) -> None:
    _edit_plan(trained, _replanned)
    assert "fold_1 (new)" in dry_run(900, "plain_unet", 1, _options(trained))[0]


@pytest.mark.parametrize("overwrite", [False, True])
def test_settings_of_other_folds_are_not_to_be_overwritten(trained: Path, overwrite: bool) -> None:
    shutil.copytree(trained / RUN / "fold_0", trained / RUN / "fold_1")
    with pytest.raises(
        RunError, match=r"holds fold_1 of a run with other settings \(budget\.epochs: 1 there, 9 now\)"
    ) as caught:
        train(900, "plain_unet", 0, _options(trained, epochs=9, overwrite=overwrite))
    assert str(caught.value).endswith(
        f"give --tag TEXT to keep both, or delete {trained / RUN}."
    ) and "--overwrite" not in str(caught.value)


def test_a_single_case_trains_fold_all(tmp_path: Path) -> None:
    make_dataset(tmp_path, cases=1)
    folder = train(900, "plain_unet", "all", _options(tmp_path))
    assert (folder / FINAL).exists() and not (tmp_path / DATA / "splits_final.json").exists()
