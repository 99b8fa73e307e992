"""nnU-Net's models and described networks as teachers: takeover of the preprocessing, leak guard, two training steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from medkd.core.errors import LeakError, PlanError, RunError
from medkd.core.plan import Plan
from medkd.core.run import FINAL, RunFolder
from medkd.training.api import train_distill
from medkd.training.imported import nnunet_splits, plan_like, prepare_if_new
from medkd.training.options import TrainOptions
from medkd.training.splits import load_splits
from tests.training.builders import make_dataset

CASES = ("001", "003", "004", "007", "008", "011")
NAME = "Dataset004_Hippocampus"
SETTINGS = {"epochs": 1, "iterations_per_epoch": 2, "workers": 0, "device": "cpu", "validate": False}


@pytest.fixture(scope="module")
def place(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A root with six raw hippocampus cases, and nnU-Net's model as if it had been trained on four of them."""
    base = tmp_path_factory.mktemp("imported")
    raw, source = base / "root" / "raw" / NAME, real_data / "hippocampus"
    names = [f"hippocampus_{number}" for number in CASES]
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
    prepare_if_new(4, str(model), root, 1)  # what medkd_train_distill does first
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
    with pytest.raises(LeakError, match="fold all"):
        train_distill(4, str(tmp_path / "model"), "unet_tiny", "kd", 0, TrainOptions(root=root, **SETTINGS))


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
    assert nnunet_splits(real_data / "nnunet_model" / "model", everything, raw) == load_splits(shipped / "splits_final.json")
    with pytest.raises(RunError, match="200 cases, the data set has 3"):
        nnunet_splits(real_data / "nnunet_model" / "model", ["a", "b", "c"], raw)
    with pytest.raises(RunError, match="no case in common"):
        nnunet_splits(model, ["a", "b", "c"], raw)
    with pytest.raises(RunError, match="scored fold 0 on other cases"):
        nnunet_splits(real_data / "nnunet_model" / "model", [f"case_{i}" for i in range(200)], raw)


def test_a_described_network_teaches_and_is_guarded(tmp_path: Path) -> None:
    from monai.networks.nets import SegResNet

    make_dataset(tmp_path)
    folder = tmp_path / "bundle"
    folder.mkdir()
    torch.save(SegResNet(3, 16, 1, 3, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1)).state_dict(), folder / "weights.pt")
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
    (folder / "teacher.json").write_text(json.dumps(description))
    options = TrainOptions(root=tmp_path, **SETTINGS)
    trained = train_distill(900, str(folder), "plain_unet", "kd", 0, options)
    assert trained.parent.name == "plain_unet__3d_fullres__kd__from_bundle"
    held_out = json.loads((trained / "split.json").read_text())["val"]
    (folder / "teacher.json").write_text(json.dumps({**description, "train": held_out}))
    with pytest.raises(LeakError):
        train_distill(900, str(folder), "plain_unet", "kd", 0, options)
    (folder / "teacher.json").write_text(json.dumps({**description, "labels": {"background": 0, "large": 1, "small": 2}}))
    with pytest.raises(RunError, match="labels"):
        train_distill(900, str(folder), "plain_unet", "kd", 0, options)
