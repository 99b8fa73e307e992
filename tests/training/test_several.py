"""Several teachers through the commands: ensembles of configurations and networks, own preprocessing, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import medkd
from medkd.cli.plan_and_preprocess import main as prepare_main
from medkd.cli.train_distill import main as distill_main
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import MedkdError, RunError
from medkd.core.features import Progress
from medkd.core.files import read_json, write_json
from medkd.core.geometry import Geometry
from medkd.core.plan import Plan
from medkd.distillation import METHODS
from medkd.evaluation.cross_validation import cross_validate
from medkd.inference.export import logits_to_probabilities
from medkd.inference.predictor import Predictor
from medkd.io.volumes import read_image, write_volume
from medkd.models.base import open_model
from medkd.preprocessing.pipeline import preprocess_case
from medkd.preprocessing.store import CaseStore
from medkd.training.merged import StudentGrid, to_student
from medkd.training.options import TrainOptions
from medkd.training.run import find_teacher, make_job, read_fold
from medkd.training.segmentation_lesson import SegmentationLesson
from medkd.training.segmentation_task import SegmentationTask, train_distill
from medkd.training.targets import TargetStore
from medkd.training.teacher_scores import score_teacher
from tests.models.nnunet.builders import configured, dataset_of, plans_of, write_model
from tests.training.builders import NAME, boxes_case

CASES = [f"case_{index:02d}" for index in range(6)]
SCAN_SPACING = (1.0, 1.0, 1.0)


def _model(
    place: Path,
    name: str,
    *,
    spacing: tuple[float, ...] = (1.5,) * 3,
    patch: tuple[int, ...] = (16,) * 3,
    labels: dict | None = None,
    seed: int = 0,
    folds: tuple[int, ...] = (0,),
    channels: tuple[str, ...] = ("MR",),
    scheme: str = "ZScoreNormalization",
) -> Path:
    configuration = "2d" if len(patch) == 2 else "3d_fullres"
    planned = configured(spacing, patch, len(channels), normalization_schemes=[scheme] * len(channels))
    folder = write_model(
        place / name,
        plans_of({configuration: planned}, channels=len(channels)),
        dataset_of(labels, channels),
        configuration,
        seed=seed,
        folds=folds,
        axes=range(len(patch)),
    )
    splits = [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[3:], "val": CASES[:3]}]
    write_json(folder / "splits_final.json", splits)
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with raw data alone: six labelled cases and two without labels."""
    root = tmp_path_factory.mktemp("several")
    folder = root / "raw" / NAME
    for index in range(8):
        image, label = boxes_case(index)
        grid = Geometry.from_spacing(label.shape, SCAN_SPACING)
        if index < 6:
            write_volume(folder / "labelsTr" / f"{CASES[index]}.nii.gz", label, grid)
        name, part = (CASES[index], "imagesTr") if index < 6 else (f"scan_{index}", "imagesUn")
        write_volume(folder / part / f"{name}_0000.nii.gz", image[0], grid)
    write_json(folder / "dataset.json", dataset_of())
    write_json(folder / "splits_final.json", [{"train": CASES[2:], "val": CASES[:2]}])
    return root


@pytest.fixture()
def root(raw: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(raw, tmp_path / "root")
    return tmp_path / "root"


SMALL = {"background": 0, "small": 1}
LARGE = {"background": 0, "other": 1, "Large": 2}


def _alone(model: Path, root: Path, case: str, folds: tuple[str, ...] = ("0",)) -> np.ndarray:
    """A teacher's probabilities of a case on the student's grid, by its own preprocessing of the raw scan."""
    (file,) = (root / "raw" / NAME).glob(f"images*/{case}_0000.nii.gz")
    image, geometry = read_image([file], case)
    summed: Tensor | None = None
    for fold in folds:
        predictor = Predictor.from_run(model, [fold], torch.device("cpu"), mirror=False)
        prepared = preprocess_case(case, image, geometry, predictor.plan, predictor.configuration)
        logits = predictor.predict_preprocessed(prepared.image)
        summed = logits if summed is None else summed + logits
    assert summed is not None
    arguments = (prepared.properties, predictor.plan, predictor.configuration, predictor.labels)
    native = logits_to_probabilities(summed / len(folds), *arguments)
    plan = Plan.load(root / "preprocessed" / NAME / "plans.json")
    record = CaseStore(root / "preprocessed" / NAME / "3d_fullres").record(case)
    return to_student(native, record.properties, plan).numpy()


def _stored(root: Path, case: str) -> np.ndarray:
    (folder,) = (root / "preprocessed" / NAME / "3d_fullres_targets").iterdir()
    target = TargetStore(folder).open(case)
    return target.coding.decode(torch.from_numpy(np.array(target.codes))).softmax(0).numpy()


def _distill(root: Path, teacher: Path, *more: str, method: str = "kd") -> int:
    """The real command, for two steps."""
    short = ["--epochs", "1", "--iterations-per-epoch", "2", "--workers", "0", "--device", "cpu", "--no-validate"]
    patch = ["--patch-size", "16", "16", "16", "--batch-size", "2", "--root", str(root)]
    return distill_main(["900", str(teacher), "unet_tiny", method, "0", "--targets", "cached", *patch, *short, *more])


def test_an_ensemble_of_2d_3d_other_networks_and_several_folds_is_their_mean(root: Path, tmp_path: Path) -> None:
    flat = _model(tmp_path, "flat", spacing=(1.0, 1.0), patch=(16, 16), seed=1)
    full = _model(tmp_path, "full", spacing=(1.0,) * 3, seed=2, folds=(0, 1))
    coarse = _model(tmp_path, "coarse", spacing=(2.0,) * 3, seed=4, scheme="RescaleTo01Normalization")
    assert prepare_main(["-d", "900", "--like", str(full), "--root", str(root)]) == 0
    listed = [str(flat), {"model": str(full), "folds": [0, 1]}, str(coarse)]
    write_json(tmp_path / "teachers.json", {"teachers": listed})
    assert _distill(root, tmp_path / "teachers.json") == 0
    for case in (CASES[2], "scan_6"):
        alone = [_alone(flat, root, case), _alone(full, root, case, ("0", "1")), _alone(coarse, root, case)]
        assert np.abs(_stored(root, case) - np.mean(alone, 0)).max() < 0.012
        assert np.abs(_stored(root, case) - alone[0]).max() > 0.05


def test_teachers_are_mirrored_where_their_student_may_be(root: Path, tmp_path: Path) -> None:
    """Left and right of a student that is not mirrored must not be mixed by its teachers."""
    first, second = _model(tmp_path, "first", seed=1), _model(tmp_path, "second", spacing=(2.0,) * 3, seed=2)
    assert prepare_main(["-d", "900", "--like", str(first), "--root", str(root)]) == 0
    write_json(tmp_path / "teachers.json", {"teachers": [str(first), str(second)]})
    assert _distill(root, tmp_path / "teachers.json", "--targets-tta", "--mirror-axes", "none") == 0
    alone = [_alone(model, root, CASES[2]) for model in (first, second)]
    assert np.abs(_stored(root, CASES[2]) - np.mean(alone, 0)).max() < 0.012
    (folder,) = (root / "preprocessed" / NAME / "3d_fullres_targets").iterdir()
    assert read_json(folder / "targets.json")["mirror_axes"] == [[], []]
    assert _distill(root, tmp_path / "teachers.json", "--targets-tta", "--mirror-axes", "1", "--tag", "one") == 0
    described = [read_json(file) for file in folder.parent.glob("*/targets.json")]
    assert sorted(entry["mirror_axes"] for entry in described) == [[[], []], [[1], [1]]]


@pytest.mark.parametrize(
    ("ours", "mirrored", "theirs", "rank", "shared"),
    [
        (((0, 1, 2), None), (0, 1), ((0, 1, 2), None), 3, (0, 1)),
        (((0, 1, 2), None), (0, 1), ((2, 0, 1), None), 3, (1, 2)),  # its axes 1 and 2 are the scan's 0 and 1
        (((0, 1, 2), None), (1,), ((0, 1, 2), None), 2, (0,)),  # a 2D teacher's first axis is the scan's second
        (((0, 1, 2), "RAS"), (0, 1), ((0, 1, 2), "SLP"), 3, (0, 2)),  # head-foot and front-back, wherever they lie
        (((0, 1, 2), "RAS"), (0, 1), ((0, 1, 2), None), 3, ()),  # nobody knows which axis is which
        (((0, 1, 2), "RAS"), (0, 1, 2), ((0, 1, 2), None), 3, (0, 1, 2)),
        (((0, 1, 2), None), (), ((0, 1, 2), None), 3, ()),
    ],
)
def test_axes_are_the_same_where_they_run_along_the_same_axis_of_the_scan(
    ours: tuple, mirrored: tuple[int, ...], theirs: tuple, rank: int, shared: tuple[int, ...]
) -> None:
    own, other = (SimpleNamespace(transpose=order, orientation=code) for order, code in (ours, theirs))
    grid = StudentGrid(own, 3, mirrored)  # type: ignore[arg-type]
    assert grid.shared_axes(other, rank, tuple(range(rank))) == shared  # type: ignore[arg-type]


@pytest.mark.parametrize("planned", ["like the first", "anew"])
def test_a_coarse_student_of_finer_teachers_of_different_structures(root: Path, tmp_path: Path, planned: str) -> None:
    first = _model(tmp_path, "first", labels=SMALL, seed=1)
    second = _model(tmp_path, "second", labels=LARGE, seed=2, scheme="RescaleTo01Normalization")
    if planned == "anew":
        assert prepare_main(["-d", "900", "--root", str(root)]) == 0
        path = root / "preprocessed" / NAME / "plans.json"
        content = read_json(path)
        content["configurations"]["3d_fullres"]["spacing"] = [3.0, 3.0, 3.0]
        write_json(path, content)
        assert prepare_main(["-d", "900", "-c", "3d_fullres", "--root", str(root)]) == 0
    else:
        both = _model(tmp_path, "both", spacing=(1.5,) * 3)
        assert prepare_main(["-d", "900", "--like", str(both), "--root", str(root)]) == 0
    assert _distill(root, first, "--teacher", str(second), "--labels", "none") == 0
    store = CaseStore(root / "preprocessed" / NAME / "3d_fullres")
    for case in (CASES[3], "scan_7"):
        small, large = _alone(first, root, case), _alone(second, root, case)
        merged = np.stack([(1 - small[1]) * (1 - large[2]), small[1], large[2]])
        found = _stored(root, case)
        assert found.shape[1:] == store.open(case).image.shape[1:]
        assert np.abs(found - merged / merged.sum(0)).max() < 0.012
    (run,) = (root / "results" / NAME).iterdir()
    assert read_json(run / "run.json")["teacher"] == f"{first} + {second}"


def _term(root: Path, teachers: list[Path], method: str) -> tuple[float, bool]:
    """The method's sum of terms for the first batch, and whether it reaches the student."""
    options = TrainOptions(
        root=root,
        epochs=1,
        iterations_per_epoch=1,
        batch_size=2,
        patch_size=(16, 16, 16),
        workers=0,
        device="cpu",
        targets="cached",
        teachers=tuple(str(path) for path in teachers[1:]),
        tag=f"try_{method}_{teachers[0].name}",
    )
    task = SegmentationTask()
    data = read_fold(task, 900, 0, options)
    job = make_job(task, data, "unet_tiny", find_teacher(task, 900, str(teachers[0]), options), method)
    lesson = SegmentationLesson(job)
    lesson.prepare()
    trainer = lesson.trainer()
    trainer.network.train()
    torch.manual_seed(0)
    batch = next(iter(trainer.batches(0)))
    terms = trainer.training_terms(batch, Progress(0, 1, 0))
    own = torch.stack([value for name, value in terms.items() if name not in ("dice", "ce")]).sum()
    weights = [p for p in trainer.network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(own, weights, allow_unused=True)
    return float(own.detach()), any(g is not None and bool(g.any()) for g in gradients)


BY_OUTPUTS = sorted(name for name in METHODS if METHODS[name].outputs_only and METHODS[name].needs_teacher)


@pytest.mark.slow
def test_every_method_by_outputs_follows_the_merged_target(root: Path, tmp_path: Path) -> None:
    """Swapping one of two teachers changes every method's terms, and all reach the student."""
    first = _model(tmp_path, "first", labels=SMALL, seed=1)
    second, other = (_model(tmp_path, name, labels=LARGE, seed=seed) for name, seed in (("second", 2), ("other", 7)))
    both = _model(tmp_path, "both")
    assert prepare_main(["-d", "900", "--like", str(both), "--root", str(root)]) == 0
    assert len(BY_OUTPUTS) >= 9
    dead = []
    for method in BY_OUTPUTS:
        if METHODS[method].averages:
            continue  # needs mirrorings, which merged targets have by --targets-tta
        one, reaches = _term(root, [first, second], method)
        two, _ = _term(root, [first, other], method)
        if not reaches or abs(one - two) <= 1e-7 * max(abs(one), 1):
            dead.append(method)
    assert dead == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"channels": ("CT", "PET")}, "the data set has MR; order and name the data set's channels"),
        ({"channels": ("CT",)}, "takes the channels CT, the data set has MR"),
        (
            {"labels": {"background": 0, "small": 1, "core": 2}},
            "both know 'small' but differ in their other structures",
        ),
        ({"labels": {"background": 0, "kidney": 1}}, "none of the data set's structures"),
        (
            {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "order": [1, 2]},
            "one has labels, the other regions",
        ),
    ],
)
def test_teachers_that_do_not_belong_together_are_refused_in_a_sentence(
    root: Path, tmp_path: Path, changes: dict, match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    both = _model(tmp_path, "both")
    assert prepare_main(["-d", "900", "--like", str(both), "--root", str(root)]) == 0
    order = changes.pop("order", None)
    odd = _model(tmp_path, "odd", **({} if order else changes))
    if order:
        described = {**dataset_of(changes["labels"]), "regions_class_order": order}
        (odd / "dataset.json").write_text(json.dumps(described))
    before = sorted(root.rglob("*"))
    assert _distill(root, both, "--teacher", str(odd)) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert match in said and said.startswith("error: ") and said.endswith(".")
    assert sorted(root.rglob("*")) == before


def test_a_data_set_of_labels_and_one_without_are_told_apart(root: Path, tmp_path: Path) -> None:
    """A label-free data set in the place of a labelled one, and the reverse: a sentence, and nothing is lost."""
    model = _model(tmp_path, "both")
    folder = root / "raw" / NAME
    shutil.move(folder / "imagesTr", tmp_path / "kept")
    shutil.move(folder / "labelsTr", tmp_path / "labels")
    write_json(folder / "dataset.json", dataset_of(numTraining=0))
    (folder / "splits_final.json").unlink()
    with pytest.raises(MedkdError, match="has scans without labels only"):
        medkd.plan_and_preprocess(900, root=root)
    assert prepare_main(["-d", "900", "--like", str(model), "--root", str(root)]) == 0
    options = TrainOptions(root=root, epochs=1, iterations_per_epoch=1, workers=0, device="cpu")
    with pytest.raises(RunError, match="has no labelled case for fold 0, and the method none learns from labels only"):
        train_distill(900, str(model), "unet_tiny", "none", 0, options)
    assert not DatasetDescription.load(folder / "dataset.json").num_training
    with pytest.raises(RunError, match="has scans without labels only, so that nothing can be scored"):
        score_teacher(900, model, 0, root=root, device="cpu")
    assert _distill(root, model) == 0
    (run,) = (root / "results" / NAME).iterdir()
    write_json(run / "fold_0" / "agreement" / "agreement.json", {"agreement": 0.5})
    with pytest.raises(RunError, match="was trained without any label, so that its folds have an agreement"):
        cross_validate(run)
    assert open_model(model).folds() == ("0",)


def test_a_data_set_with_some_of_the_teachers_cases_has_its_folds_over_these(root: Path, tmp_path: Path) -> None:
    model = _model(tmp_path, "both")
    elsewhere = [f"elsewhere_{index}" for index in range(4)]
    splits = [{"train": [*CASES[2:], *elsewhere[:2]], "val": [*CASES[:2], *elsewhere[2:]]}]
    write_json(model / "splits_final.json", [*splits, {"train": [CASES[0], elsewhere[0]], "val": elsewhere[1:]}])
    (root / "raw" / NAME / "splits_final.json").unlink()
    assert prepare_main(["-d", "900", "--like", str(model), "--root", str(root)]) == 0
    path = root / "preprocessed" / NAME / "splits_final.json"
    assert read_json(path) == [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[:1], "val": []}]
    assert _distill(root, model) == 0
    write_json(model / "splits_final.json", [*splits, {"train": elsewhere, "val": CASES}])
    assert prepare_main(["-d", "900", "--like", str(model), "--root", str(root), "--overwrite-plan"]) == 0
    assert len(read_json(path)) == 2  # a fold would have no training cases: the folds that are there stay
