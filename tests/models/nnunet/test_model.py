"""Real nnU-Net model folders: equal predictions, and nothing that a hostile folder could run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from medkd.core.errors import PlanError, RunError
from medkd.inference.export import logits_to_labels
from medkd.inference.predictor import Predictor
from medkd.io.volumes import read_image, read_label
from medkd.models.nnunet.checkpoint import ALLOWED, NnunetCheckpoint
from medkd.models.nnunet.folder import NnunetFolder
from medkd.preprocessing.pipeline import preprocess_case

pytestmark = pytest.mark.real_data
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def edited(real_data: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """A copy of the model folder with an edited checkpoint."""

    def make(edit: Edit) -> Path:
        source = real_data / "nnunet_model" / "model"
        shutil.copytree(source, tmp_path / "model", ignore=shutil.ignore_patterns("*.pth", "*.png"))
        with torch.serialization.safe_globals(list(ALLOWED)):
            content = torch.load(source / "fold_0" / "checkpoint_final.pth", weights_only=True)
        content.pop("optimizer_state")
        edit(content)
        torch.save(content, tmp_path / "model" / "fold_0" / "checkpoint_final.pth")
        return tmp_path / "model"

    return make


def half_precision_blending(logits: torch.Tensor, patch: tuple[int, ...]) -> torch.Tensor:
    """What nnU-Net's half-precision accumulator makes of the exact logits ``(K, z, y, x)`` of a single tile."""
    delta = np.zeros(patch)
    delta[tuple(p // 2 for p in patch)] = 1
    weight = gaussian_filter(delta, [p / 8 for p in patch], mode="constant")
    half = torch.from_numpy(weight / weight.max() * 10).half()
    half[half == 0] = half[half > 0].min()
    half = half[tuple(slice((p - s) // 2, (p - s) // 2 + s) for p, s in zip(patch, logits.shape[1:], strict=True))]
    return (logits * half).half() / half


def test_prediction_equals_nnunets_own(real_data: Path) -> None:
    folder, case = real_data / "nnunet_model", "hippocampus_024"
    predictor = Predictor.from_run(folder / "model", mirror=False)
    assert predictor.mirror_axes == (0, 1, 2) and predictor.folds == ("0",)
    image, geometry = read_image([folder / "input" / f"{case}_0000.nii.gz"], case)
    prepared = preprocess_case(case, image, geometry, predictor.plan, predictor.configuration)
    logits = predictor.predict_preprocessed(prepared.image)
    expected = read_label(folder / "reference_predictions_no_tta" / f"{case}.nii.gz").array
    labels = logits_to_labels(logits, prepared.properties, predictor.plan, predictor.configuration, predictor.labels)
    assert (labels == expected).mean() > 0.99999
    reference = torch.from_numpy(np.load(folder / "reference_predictions_no_tta" / f"{case}.npz")["probabilities"])
    rounded = half_precision_blending(logits, predictor.patch_size).float()
    assert (
        torch.softmax(rounded, 0) - reference
    ).abs().max() < 2e-3  # one half-precision step, should a rounding fall the other way
    assert (torch.softmax(rounded, 0) - reference).abs().mean() < 1e-7  # without the rounding it is 2.4e-6


def test_a_folder_is_recognised(real_data: Path, tmp_path: Path) -> None:
    assert NnunetFolder.recognises(real_data / "nnunet_model_strong" / "model")
    assert not NnunetFolder.recognises(real_data / "nnunet_model_description")
    assert not NnunetFolder.recognises(tmp_path)


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hostile",)


def test_a_hostile_checkpoint_runs_nothing(
    edited: Callable[[Edit], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = edited(lambda content: content.update(logging=Hostile()))
    with pytest.raises(RunError, match="could run code"):
        NnunetFolder(folder).load()
    assert not (tmp_path / "hostile").exists()


def test_other_trainers_are_refused_by_name(edited: Callable[[Edit], Path]) -> None:
    with pytest.raises(RunError, match="nnUNetTrainerPrimusM"):
        NnunetFolder(edited(lambda content: content.update(trainer_name="nnUNetTrainerPrimusM"))).load()


@pytest.mark.parametrize("damage", [{"init_args": {}}, {"init_args": None}, {"network_weights": [1]}], ids=str)
def test_other_checkpoints_are_refused_in_one_sentence(edited: Callable[[Edit], Path], damage: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"checkpoint_final\.pth is not an nnU-Net v2 checkpoint"):
        NnunetFolder(edited(lambda content: content.update(damage))).load()


def test_another_reader_in_either_file_is_refused(edited: Callable[[Edit], Path]) -> None:
    folder = edited(lambda content: None)
    plans, dataset = (json.loads((folder / file).read_text()) for file in ("plans.json", "dataset.json"))
    (folder / "dataset.json").write_text(json.dumps({**dataset, "overwrite_image_reader_writer": "OwnReader"}))
    assert NnunetFolder(folder).describe().folds == ("0",)  # the plan, which nnU-Net believes, says SimpleITKIO
    del plans["image_reader_writer"]
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(PlanError, match="OwnReader"):
        NnunetFolder(folder).describe()


def test_other_weights_are_refused(edited: Callable[[Edit], Path]) -> None:
    with pytest.raises(RunError, match="another network than"):
        NnunetFolder(edited(lambda content: content["network_weights"].popitem())).load()


@pytest.mark.parametrize("before", ["module.", "module._orig_mod.", "_orig_mod.module."])
def test_compiled_and_parallel_prefixes_are_taken_off(edited: Callable[[Edit], Path], before: str) -> None:
    def prefix(content: dict[str, Any]) -> None:
        content["network_weights"] = {f"{before}{k}": v for k, v in content["network_weights"].items()}

    assert len(NnunetFolder(edited(prefix)).load().networks) == 1


def test_weights_without_their_second_names_are_complete(edited: Callable[[Edit], Path], real_data: Path) -> None:
    def drop(content: dict[str, Any]) -> None:
        weights, before = content["network_weights"], len(content["network_weights"])
        for key in [k for k in weights if "all_modules" in k or k.startswith("decoder.encoder.")]:
            del weights[key]
        assert len(weights) < before / 2

    found = NnunetFolder(edited(drop)).load().networks[0].state_dict()
    expected = NnunetFolder(real_data / "nnunet_model" / "model").load().networks[0].state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_weights_in_the_folder_of_another_fold_are_refused(edited: Callable[[Edit], Path]) -> None:
    folder = edited(lambda content: None)
    assert NnunetCheckpoint.read(folder / "fold_0" / "checkpoint_final.pth").fold == "0"
    (folder / "fold_0").rename(folder / "fold_1")
    model = NnunetFolder(folder)
    for act in (model.load, model.describe, lambda: model.seen("1", (), folder)):
        with pytest.raises(RunError, match="was trained as fold 0, but lies in fold_1"):
            act()


def test_weights_that_name_no_fold_predict_but_are_not_vouched_for(edited: Callable[[Edit], Path]) -> None:
    folder = edited(lambda content: content["init_args"].pop("fold"))
    assert NnunetFolder(folder).load().folds == ("0",)
    with pytest.raises(RunError, match="does not say as which fold it was trained"):
        NnunetFolder(folder).seen("0", (), folder)


def test_numbered_folds_are_averaged_without_backups_and_the_fold_of_all(edited: Callable[[Edit], Path]) -> None:
    folder = edited(lambda content: content["init_args"].pop("fold"))
    shutil.copytree(folder / "fold_0", folder / "fold_all")
    shutil.copytree(folder / "fold_0", folder / "fold_0_backup")
    assert NnunetFolder(folder).describe().folds == ("0", "all") and NnunetFolder(folder).load().folds == ("0",)
    shutil.rmtree(folder / "fold_0")
    assert NnunetFolder(folder).load().folds == ("all",)


def test_the_flag_for_the_other_checkpoint_is_named(edited: Callable[[Edit], Path]) -> None:
    folder = edited(lambda content: None)
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    for folds in (None, [0]):
        with pytest.raises(
            RunError, match=r"there are: none; give --checkpoint best for checkpoint_best\.pth of fold 0\.$"
        ):
            NnunetFolder(folder).load(folds)
    assert NnunetFolder(folder).load(checkpoint="best").folds == ("0",)


def test_batch_norm_trainers_are_rebuilt_with_batch_norm(edited: Callable[[Edit], Path]) -> None:
    def batch_norm(content: dict[str, Any]) -> None:
        content["trainer_name"] = "nnUNetTrainerBN"
        weights = content["network_weights"]
        for key in [k for k in weights if k.endswith((".norm.weight", ".all_modules.1.weight"))]:
            stem = key.removesuffix("weight")
            weights |= {
                f"{stem}running_mean": torch.zeros_like(weights[key]),
                f"{stem}running_var": torch.ones_like(weights[key]),
            }
            weights[f"{stem}num_batches_tracked"] = torch.tensor(1)

    network = NnunetFolder(edited(batch_norm)).load().networks[0]
    kinds = [type(m) for m in network.modules()]
    assert nn.BatchNorm3d in kinds and nn.InstanceNorm3d not in kinds


def test_missing_folds_are_named(real_data: Path) -> None:
    with pytest.raises(RunError, match=r"fold 3 has no checkpoint_final\.pth; there are: 0"):
        NnunetFolder(real_data / "nnunet_model" / "model").load([3])
