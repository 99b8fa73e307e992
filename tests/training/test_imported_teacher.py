"""nnU-Net's models and described networks as teachers: takeover of the preprocessing, leak guard, two training
steps.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from medkd.core.errors import LeakError, PlanError, RunError
from medkd.core.plan import Plan
from medkd.core.run import FINAL, RunFolder
from medkd.core.splits import Split, load_splits, make_splits, save_splits
from medkd.models.base import open_model
from medkd.models.like import plan_like, prepare_if_new
from medkd.models.nnunet.checkpoint import ALLOWED
from medkd.models.nnunet.splits import nnunet_splits
from medkd.training.options import TrainOptions
from medkd.training.run import rehearse
from medkd.training.segmentation_task import SegmentationTask, train_distill
from tests.training.builders import make_dataset

NAMES = tuple(f"hippocampus_{number}" for number in ("001", "003", "004", "007", "008", "011"))
NAME = "Dataset004_Hippocampus"
SETTINGS = {"epochs": 1, "iterations_per_epoch": 2, "workers": 0, "device": "cpu", "validate": False}


@pytest.fixture(scope="module")
def place(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A root with six raw hippocampus cases, and nnU-Net's model as if it had been trained on four of them."""
    base = tmp_path_factory.mktemp("imported")
    raw, source = base / "root" / "raw" / NAME, real_data / "hippocampus"
    names = list(NAMES)
    for kind in ("imagesTr", "labelsTr"):
        (raw / kind).mkdir(parents=True)
    for name in names:
        image = next((source / "imagesTr").glob(f"{name}*.nii.gz"))
        shutil.copy(image, raw / "imagesTr" / f"{name}_0000.nii.gz")
        shutil.copy(source / "labelsTr" / f"{name}.nii.gz", raw / "labelsTr")
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    described = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": len(names), "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(described))
    model = base / "model"
    shutil.copytree(real_data / "nnunet_model" / "model", model, ignore=shutil.ignore_patterns("validation", "*.png"))
    halves = [{"train": names[2:], "val": names[:2]}, {"train": names[:-2], "val": names[-2:]}]
    (model / "splits_final.json").write_text(json.dumps(halves))
    return base / "root", model


@pytest.fixture(scope="module")
def prepared(place: tuple[Path, Path]) -> tuple[Path, Path]:
    """The same, prepared like the teacher."""
    root, model = place
    prepare_if_new(4, open_model(model), root, 1)  # what medkd_train_distill does first
    return place


@pytest.mark.real_data
def test_the_students_plan_is_the_teachers(prepared: tuple[Path, Path]) -> None:
    root, model = prepared
    theirs = json.loads((model / "plans.json").read_text())
    configured = theirs["configurations"]["3d_fullres"]
    plan = Plan.load(root / "preprocessed" / NAME / "plans.json")
    configuration = plan.configuration("3d_fullres")
    assert plan.origin == "nnunet:nnUNetPlans" and list(plan.configurations) == ["3d_fullres"]
    assert list(configuration.spacing) == configured["spacing"] and list(plan.transpose) == theirs["transpose_forward"]
    assert configuration.normalization == ("zscore",) and configuration.use_mask_for_norm == (False,)
    statistics = theirs["foreground_intensity_properties_per_channel"]["0"]
    assert vars(plan.intensities[0]) == statistics
    shape = configuration.architecture("plain_unet")
    assert list(shape.patch_size) == configured["patch_size"] and shape.batch_size == configured["batch_size"]
    assert load_splits(root / "preprocessed" / NAME / "splits_final.json") == load_splits(model / "splits_final.json")


@pytest.mark.real_data
@pytest.mark.parametrize("method", ["kd", "acf_bckd"])
def test_a_student_learns_from_nnunets_model(prepared: tuple[Path, Path], method: str) -> None:
    root, model = prepared
    options = TrainOptions(root=root, patch_size=(16, 24, 16), width_divisor=8, **SETTINGS)
    folder = train_distill(4, str(model), "plain_unet", method, 0, options)
    run = RunFolder.load(folder.parent)
    assert run.path.name == f"plain_unet_w8__3d_fullres__{method}__from_nnunet" and run.run.teacher == str(model)
    assert (folder / FINAL).exists()
    taught = json.loads((folder / "split.json").read_text())
    assert taught["teacher_train"] == sorted(load_splits(model / "splits_final.json")[0].train)
    terms = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["terms"]
    assert len(terms) > 2 and all(torch.isfinite(torch.tensor(value)) for value in terms.values())


@pytest.mark.real_data
def test_a_fold_that_the_model_has_seen_is_refused(prepared: tuple[Path, Path]) -> None:
    root, model = prepared
    with pytest.raises(LeakError, match=r"fold 0\) on 2 of the 2 cases on which fold 1"):
        train_distill(4, str(model), "unet_tiny", "kd", 1, TrainOptions(root=root, **SETTINGS))


@pytest.mark.real_data
def test_a_model_of_all_cases_has_seen_everything(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    root, model = prepared
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "fold_0").rename(tmp_path / "model" / "fold_all")
    trained_as(tmp_path / "model" / "fold_all", "all")
    with pytest.raises(LeakError, match="fold all"):
        train_distill(4, str(tmp_path / "model"), "unet_tiny", "kd", 0, TrainOptions(root=root, **SETTINGS))


@pytest.mark.real_data
@pytest.mark.parametrize(("trained", "lies"), [(0, "1"), ("all", "0")])
def test_the_guard_believes_the_checkpoint_not_the_folder(
    place: tuple[Path, Path], tmp_path: Path, trained: int | str, lies: str
) -> None:
    root, model = place
    shutil.copytree(model, tmp_path / "model")
    teacher = open_model(tmp_path / "model")
    (tmp_path / "model" / "fold_0").rename(tmp_path / "model" / f"fold_{lies}")
    trained_as(tmp_path / "model" / f"fold_{lies}", trained)
    with pytest.raises(RunError, match=f"was trained as fold {trained}, but lies in fold_{lies}"):
        teacher.seen(lies, NAMES, root / "raw" / NAME)


def trained_as(folder: Path, fold: int | str) -> None:
    """Write into the checkpoint of a folder that it was trained as this fold."""
    with torch.serialization.safe_globals(list(ALLOWED)):
        content = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    content["init_args"]["fold"] = fold
    torch.save(content, folder / "checkpoint_final.pth")


@pytest.mark.real_data
@pytest.mark.parametrize(("known", "expected"), [(None, ()), ((0, 1), (0, 1)), ((0, 1, 2), (0, 1, 2))])
def test_a_student_is_mirrored_where_its_teacher_was(
    prepared: tuple[Path, Path], tmp_path: Path, known: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    root, model = prepared
    shutil.copytree(model, tmp_path / "model")
    file = tmp_path / "model" / "fold_0" / "checkpoint_final.pth"
    with torch.serialization.safe_globals(list(ALLOWED)):
        content = torch.load(file, weights_only=True)
    content["inference_allowed_mirroring_axes"] = known
    torch.save(content, file)
    for method in ("none", "kd"):
        options = TrainOptions(root=root, **SETTINGS)
        job, _ = rehearse(SegmentationTask(), 4, "unet_tiny", 0, options, str(tmp_path / "model"), method)
        assert job.run.mirror_axes == expected


@pytest.mark.real_data
def test_another_plan_is_refused_with_the_command_that_mends_it(prepared: tuple[Path, Path]) -> None:
    root, model = prepared
    path = root / "preprocessed" / NAME / "plans.json"
    original = path.read_text()
    path.write_text(original.replace('"zscore"', '"rescale_0_1"'))
    try:
        with pytest.raises(RunError, match=rf"normalization.*--like {model} --overwrite-plan"):
            train_distill(4, str(model), "unet_tiny", "kd", 0, TrainOptions(root=root, **SETTINGS))
        with pytest.raises(PlanError, match=r"another plans\.json"):
            plan_like(4, model, root=root)
    finally:
        path.write_text(original)


@pytest.mark.real_data
def test_folds_that_nobody_can_know_are_refused(place: tuple[Path, Path], real_data: Path, tmp_path: Path) -> None:
    root, model = place
    raw = root / "raw" / NAME
    shipped = real_data / "nnunet_model_strong" / "model"
    everything = sorted({case for split in load_splits(shipped / "splits_final.json") for case in split.train})
    assert nnunet_splits(real_data / "nnunet_model" / "model", everything, raw) == load_splits(
        shipped / "splits_final.json"
    )
    with pytest.raises(RunError, match="200 cases, the data set has 3"):
        nnunet_splits(real_data / "nnunet_model" / "model", ["a", "b", "c"], raw)
    with pytest.raises(RunError, match="no case in common"):
        nnunet_splits(model, ["a", "b", "c"], raw)
    with pytest.raises(RunError, match="scored fold 0 on other cases"):
        nnunet_splits(real_data / "nnunet_model" / "model", [f"case_{i}" for i in range(200)], raw)


@pytest.mark.real_data
def test_folds_in_the_raw_data_set_must_be_borne_out(place: tuple[Path, Path], tmp_path: Path) -> None:
    model, rule = tmp_path / "model", make_splits(NAMES)
    shutil.copytree(place[1], model, ignore=shutil.ignore_patterns("*.pth", "splits_final.json"))
    description = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps({**description, "numTraining": len(NAMES)}))
    own = [Split(NAMES[1:], NAMES[:1]), Split(NAMES[:-1], NAMES[-1:])]
    raw = tmp_path / "raw"
    save_splits(raw / "splits_final.json", own)
    with pytest.raises(RunError, match=r"raw/splits_final\.json need not hold the folds .*put the splits_final\.json"):
        nnunet_splits(model, NAMES, raw)
    save_splits(raw / "splits_final.json", rule)
    assert nnunet_splits(model, NAMES, raw) == rule
    save_splits(raw / "splits_final.json", own)
    summary = model / "fold_1" / "validation" / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"metric_per_case": [{"prediction_file": f"/there/{NAMES[-1]}.nii.gz"}]}))
    assert nnunet_splits(model, NAMES, raw) == own
    summary.write_text(json.dumps({"metric_per_case": [{"prediction_file": f"/there/{NAMES[0]}.nii.gz"}]}))
    with pytest.raises(RunError, match="need not hold the folds"):
        nnunet_splits(model, NAMES, raw)


@pytest.mark.parametrize(
    "name", ["case_1.nii.gz", "imagesTr/case_1_0000.nii.gz", "imagesTr\\case_1", "case_1_0000", "case_9"]
)
def test_described_cases_must_be_named_as_in_the_data_set(tmp_path: Path, name: str) -> None:
    cases = ["case_1", "case_2", "odd_0000"]
    model = open_model(describe(tmp_path, train=["case_1", "other_7", "odd_0000"]))
    assert model.seen("given", cases, tmp_path) == {"case_1", "other_7", "odd_0000"}  # other_7 is of another data set
    describe(tmp_path, train=[])
    assert model.seen("given", cases, tmp_path) == frozenset()
    for more in ([], ["case_2"]) if name != "case_9" else ([],):
        describe(tmp_path, train=[*more, name])
        with pytest.raises(
            RunError, match=rf"'train' names {re.escape(name)}, which is no case of the data set; .* without folder"
        ):
            model.seen("given", cases, tmp_path)


def describe(folder: Path, **more: object) -> Path:
    """Put the description of a SegResNet into a folder."""
    description = {
        "network": "segresnet",
        "channels": ["MR"],
        "labels": {"background": 0, "Small": 1, "Large": 2},
        "spacing": [1, 1, 1],
        "normalization": ["zscore"],
        "patch_size": [16, 16, 16],
        "interpolation": "spline",
        "weights": "weights.pt",
        "train": [],
    }
    (folder / "teacher.json").write_text(json.dumps({**description, **more}))
    return folder


def test_a_described_network_teaches_and_is_guarded(tmp_path: Path) -> None:
    from monai.networks.nets import SegResNet

    make_dataset(tmp_path)
    folder = tmp_path / "bundle"
    folder.mkdir()
    torch.save(
        SegResNet(3, 16, 1, 3, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1)).state_dict(), folder / "weights.pt"
    )
    describe(folder)
    options = TrainOptions(root=tmp_path, **SETTINGS)
    trained = train_distill(900, str(folder), "plain_unet", "kd", 0, options)
    assert trained.parent.name == "plain_unet__3d_fullres__kd__from_bundle"
    assert RunFolder.load(trained.parent).run.mirror_axes == (0, 1, 2)  # the description says nothing about it
    held_out = json.loads((trained / "split.json").read_text())["val"]
    describe(folder, train=held_out)
    with pytest.raises(LeakError):
        train_distill(900, str(folder), "plain_unet", "kd", 0, options)
    describe(folder, labels={"background": 0, "large": 1, "small": 2})
    with pytest.raises(RunError, match="labels"):
        train_distill(900, str(folder), "plain_unet", "kd", 0, options)
