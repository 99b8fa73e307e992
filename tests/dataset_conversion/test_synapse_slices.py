"""Synapse's slices are put back together; gaps, damage and foreign values are named."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.io.volumes import read_label, read_volume
from tests.dataset_conversion.trees import blocks, convert, make_synapse, own


def test_slices_become_the_volumes_they_were_cut_from(tmp_path: Path) -> None:
    result = convert("synapse_slices", make_synapse(tmp_path / "Synapse"), tmp_path / "root")
    assert result.ok and DatasetDescription.load(result.folder / "dataset.json").num_training == 4
    for number, part in ((5, "Tr"), (9, "Tr"), (1, "Ts")):
        image, label = blocks(number, list(range(1, 9)), (6, 32, 32))
        stored = read_volume(result.folder / f"images{part}/case{number:04d}_0000.nii.gz")
        np.testing.assert_array_equal(stored.array, np.clip((image + 125) / 400, 0, 1).astype(np.float32))
        np.testing.assert_array_equal(read_label(result.folder / f"labels{part}/case{number:04d}.nii.gz").array, label)
        assert stored.geometry.spacing == (1.0, 1.0, 1.0)
    assert any("1 mm is written" in note for note in result.conversion.notes)
    assert own(result.folder) == {"format": "synapse_slices"}


def test_slices_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "S/train_npz"
    folder.mkdir(parents=True)
    for z in range(12):
        np.savez(folder / f"case0005_slice{z}.npz", image=np.full((8, 8), z, np.float32), label=np.ones((8, 8)))
    result = convert("synapse_slices", tmp_path / "S", tmp_path / "root")
    assert read_volume(result.folder / "imagesTr/case0005_0000.nii.gz").array[:, 0, 0].tolist() == list(range(12))


def test_a_gap_a_damaged_file_a_foreign_label_and_a_missing_array_leave_the_case_out(tmp_path: Path) -> None:
    source = make_synapse(tmp_path / "Synapse", train=(5, 6, 7, 8, 9))
    (source / "train_npz/case0005_slice003.npz").unlink()
    path = source / "train_npz/case0006_slice002.npz"
    path.write_bytes(path.read_bytes()[:200])
    np.savez(
        source / "train_npz/case0007_slice000.npz", image=np.zeros((32, 32), np.float32), label=np.full((32, 32), 12.0)
    )
    np.savez(source / "train_npz/case0008_slice000.npz", data=np.zeros((32, 32), np.float32))
    result = convert("synapse_slices", source, tmp_path / "root")
    assert result.conversion.left_out == ("case0005", "case0006", "case0007", "case0008")
    gap, damage, foreign, missing = (f.text() for f in result.conversion.problems)
    assert "no slice 3" in gap and "case0006_slice002.npz is truncated" in damage and "also 12" in foreign
    assert "'image' and 'label', found data" in missing


def test_h5py_is_asked_for_by_name_only_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_volumes, without = make_synapse(tmp_path / "a"), make_synapse(tmp_path / "b", test=())
    original = builtins.__import__

    def fail(name: str, *arguments: object, **keywords: object) -> object:
        if name == "h5py":
            raise ImportError(name)
        return original(name, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(DataError, match=r"medkd\[h5\]"):
        convert("synapse_slices", with_volumes, tmp_path / "root")
    assert convert("synapse_slices", without, tmp_path / "root").ok


def test_running_again_changes_nothing(tmp_path: Path) -> None:
    source = make_synapse(tmp_path / "Synapse")
    convert("synapse_slices", source, tmp_path / "root")
    again = convert("synapse_slices", source, tmp_path / "root")
    assert not again.conversion.converted and len(again.conversion.unchanged) == 5
