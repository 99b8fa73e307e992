from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.preprocessing.pipeline import Preprocessed
from medkd.preprocessing.properties import CaseProperties
from medkd.preprocessing.store import ANNOTATED, CaseStore, describe_source, recipe_of, sample_locations

from .builders import make_configuration, plan_of

LABELS = LabelSpec.from_names(["a", "b", "absent"])


def content() -> Preprocessed:
    shape = (6, 7, 8)
    label = np.zeros(shape, np.int16)
    label[1:3, 2:5, 2:6], label[4, 4, 4] = 1, 2
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    return Preprocessed(
        image, label, CaseProperties("c", Geometry.from_spacing(shape, (3, 1, 1)), ((0, 6), (0, 7), (0, 8)), shape)
    )


def test_a_case_comes_back_memory_mapped_and_equal(tmp_path: Path) -> None:
    store, case = CaseStore(tmp_path), content()
    store.write("c.1", case, LABELS, [], "r")
    found = store.open("c.1")
    assert store.cases() == ["c.1"]
    assert isinstance(found.image, np.memmap) and isinstance(found.label, np.memmap)
    np.testing.assert_array_equal(found.image, case.image)
    np.testing.assert_array_equal(found.label, case.label)
    assert found.properties == case.properties
    assert sorted(found.locations) == [1, 2, 3] and found.locations[3].shape == (0, 3)
    for entry in (1, 2):
        voxels = found.locations[entry]
        assert (found.label[tuple(voxels.T)] == entry).all() and len(voxels) == (case.label == entry).sum()  # type: ignore[union-attr]


def test_a_case_without_its_record_does_not_exist(tmp_path: Path) -> None:
    store = CaseStore(tmp_path)
    store.write("c", content(), LABELS, [], "r")
    (tmp_path / "c.json").unlink()
    assert store.cases() == []
    with pytest.raises(DataError, match="Case c was not preprocessed"):
        store.open("c")


def test_a_damaged_case_is_named(tmp_path: Path) -> None:
    store = CaseStore(tmp_path)
    store.write("c", content(), LABELS, [], "r")
    (tmp_path / "c.image.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"Case c in .* is damaged"):
        store.open("c")


def test_a_failing_write_leaves_no_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CaseStore(tmp_path)
    store.write("c", content(), LABELS, [], "r")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DataError, match="No space left"):
        store.write("c", content(), LABELS, [], "r")
    assert store.cases() == [] and not list(tmp_path.glob(".tmp-*"))


def test_a_case_is_current_until_a_file_or_the_recipe_changes(tmp_path: Path) -> None:
    store, raw = CaseStore(tmp_path / "store"), tmp_path / "a.nii.gz"
    raw.write_bytes(b"voxels")
    store.write("c", content(), LABELS, [describe_source(raw)], "r")
    assert store.is_current("c", [raw], "r")
    assert not store.is_current("c", [raw], "other")
    assert not store.is_current("c", [raw, raw], "r")
    assert not store.is_current("d", [raw], "r")
    os.utime(raw, ns=(1, 1))
    assert store.is_current("c", [raw], "r"), "another time but equal content"
    renamed = raw.rename(tmp_path / "b.nii.gz")  # as in the folder of a search
    assert store.is_current("c", [renamed], "r") and not store.is_current("c", [raw], "r")
    renamed.rename(raw)
    raw.write_bytes(b"VOXELS")
    assert not store.is_current("c", [raw], "r")
    raw.write_bytes(b"voxels")
    (tmp_path / "store/c.label.npy").unlink()
    assert not store.is_current("c", [raw], "r")


def test_the_recipe_depends_on_what_changes_voxels_only() -> None:
    configuration = make_configuration()
    plan = plan_of(configuration)
    recipe = recipe_of(plan, configuration, LABELS)
    larger = replace(configuration.architectures["plain_unet"], patch_size=(32, 32, 32), batch_size=9)
    assert recipe_of(plan, replace(configuration, architectures={"plain_unet": larger}), LABELS) == recipe
    assert recipe_of(plan, replace(configuration, spacing=(1.0, 1.0, 1.1)), LABELS) != recipe
    assert recipe_of(replace(plan, transpose=(1, 0, 2)), configuration, LABELS) != recipe
    assert recipe_of(plan, configuration, LabelSpec.from_names(["a"])) != recipe


def test_locations_are_capped_but_cover_one_percent() -> None:
    label = np.zeros((60, 150, 150), np.int16)
    label[:50] = 1
    label[55, :100, :110] = 2
    found = sample_locations(label, LabelSpec.from_names(["a", "b"]))
    assert len(found[1]) == 11_250 and len(found[2]) == 10_000
    assert len(np.unique(found[1], axis=0)) == 11_250
    again = sample_locations(label, LabelSpec.from_names(["a", "b"]))
    np.testing.assert_array_equal(found[2], again[2])
    assert found[1].dtype == np.int32


def test_locations_of_regions_and_of_annotated_voxels() -> None:
    label = np.array([[[-1, 0, 1, 2, 3, 3]]], np.int16)
    spec = LabelSpec((("background", (0,)), ("whole", (1, 2)), ("core", (2,))), True, (1, 2), ignore=3)
    found = sample_locations(label, spec)
    assert found[1][:, 2].tolist() == [2, 3] and found[2][:, 2].tolist() == [3]
    assert found[ANNOTATED][:, 2].tolist() == [1, 2, 3]
