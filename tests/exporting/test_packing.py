"""``medkd_export --format folder``: a run as one file, without teacher or paths, that predicts as the run does."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.cli.export import main
from medkd.core.checkpoint import load_checkpoint, save_checkpoint, save_safetensors
from medkd.core.errors import RunError
from medkd.core.files import read_json, write_json
from medkd.exporting import packing
from medkd.exporting.packing import pack_run
from medkd.inference.folder import predict_folder
from medkd.io.volumes import read_label
from medkd.models.base import open_model

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0"
STUDENT = OLD / "plain_unet_w2__3d_fullres__kd+at__from_plain_unet"


@pytest.mark.parametrize("safetensors", [True, False])
def test_a_packed_run_predicts_as_the_run(
    tmp_path: Path, safetensors: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if safetensors:
        pytest.importorskip("safetensors")
    else:
        monkeypatch.setattr(packing, "find_spec", lambda name: None)
    file = tmp_path / "student.zip"
    assert main([str(STUDENT), "-o", str(file), "--format", "folder"]) == 0
    assert "folds 0" in capsys.readouterr().out
    names = {Path(name).relative_to(STUDENT.name).as_posix() for name in zipfile.ZipFile(file).namelist()}
    weights = "fold_0/checkpoint_final" + (".safetensors" if safetensors else ".pt")
    assert names == {"run.json", "plans.json", "dataset.json", "README.md", weights, "fold_0/split.json"}
    model = open_model(file)
    assert model.kind == "run" and model.name == open_model(STUDENT).name
    assert model.seen("0", [], tmp_path) == open_model(STUDENT).seen("0", [], tmp_path)
    assert model.weights_file("0").is_file()
    predict_folder(OLD / "scan_0000.nii.gz", tmp_path / "out", file, device="cpu")
    found = read_label(tmp_path / "out" / "scan.nii.gz").array
    assert np.array_equal(found, read_label(STUDENT / "expected.nii.gz").array)


def test_neither_teacher_nor_paths_nor_helpers_leave_the_machine(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for path in STUDENT.rglob("*.json"):
        write_json(run / path.relative_to(STUDENT), read_json(path))
    write_json(run / "run.json", {**read_json(run / "run.json"), "teacher": "/home/me/secret/teacher_7"})
    content = load_checkpoint(STUDENT / "fold_0" / "checkpoint_final.pt")
    helpers = {"distiller": {"projection": torch.full((1000,), 77.25)}, "teacher": torch.full((1000,), 77.25)}
    save_checkpoint(run / "fold_0" / "checkpoint_final.pt", {**content, **helpers})
    pack_run(run, tmp_path / "run.zip")
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        everything = b"".join(archive.read(name) for name in archive.namelist())
        assert json.loads(archive.read("run/run.json"))["teacher"] == "teacher_7"
    assert b"secret" not in everything and str(tmp_path).encode() not in everything
    assert np.full(10, 77.25, np.float32).tobytes() not in everything


def test_weights_as_safetensors_take_the_checkpoints_place(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    run = tmp_path / "run"
    for path in STUDENT.rglob("*.json"):
        write_json(run / path.relative_to(STUDENT), read_json(path))
    weights = load_checkpoint(STUDENT / "fold_0" / "checkpoint_final.pt")["network"]
    file = run / "fold_0" / "checkpoint_final.safetensors"
    save_safetensors(file, weights)
    loaded = open_model(run).load(["0"]).networks[0].state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunError, match="is damaged or holds no safetensors"):
        open_model(run).load(["0"])


def test_what_cannot_be_packed_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"name it, as in -o out\.zip"):
        pack_run(STUDENT, tmp_path / "out")
    (tmp_path / "there.zip").touch()
    with pytest.raises(RunError, match="is there already; give --overwrite"):
        pack_run(STUDENT, tmp_path / "there.zip")
    with pytest.raises(RunError, match="fold 3 has no checkpoint_final"):
        pack_run(STUDENT, tmp_path / "new.zip", folds=[3])
    assert not (tmp_path / "new.zip").exists()


def test_equal_runs_make_equal_archives_and_a_wrong_one_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.zip"
    pack_run(STUDENT, file)
    first = file.read_bytes()
    pack_run(STUDENT, tmp_path / "again" / "run.zip")
    assert (tmp_path / "again" / "run.zip").read_bytes() == first
    digests = iter(range(10))
    monkeypatch.setattr(packing, "weights_digest", lambda weights: next(digests))
    with pytest.raises(RunError, match="other weights than fold 0; nothing was exported"):
        pack_run(STUDENT, file, overwrite=True)
    assert file.read_bytes() == first and sorted(path.name for path in tmp_path.iterdir()) == ["again", "run.zip"]
