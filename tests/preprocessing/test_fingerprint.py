from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from medkd.core.dataset import DatasetDescription, training_cases
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.serial import load, save
from medkd.io.volumes import read_label, read_volume, write_volume
from medkd.preprocessing import fingerprint as module
from medkd.preprocessing.fingerprint import Fingerprint, make_fingerprint, source_of

from .builders import make_raw


def described(raw: Path) -> tuple[Path, DatasetDescription]:
    return raw, DatasetDescription.load(raw / "dataset.json")


def test_statistics_are_those_of_all_foreground_voxels(tmp_path: Path) -> None:
    """Cases with equally many foreground voxels: weighting by case is then plain pooling."""
    raw, description = described(make_raw(tmp_path))
    found = make_fingerprint(raw, description)
    parts = [
        read_volume(f.images[0]).array[read_label(f.label).array > 0]
        for f in training_cases(raw, description)
        if f.label
    ]
    voxels = np.concatenate(parts).astype(np.float64)
    statistics = found.intensities[0]
    assert statistics.mean == pytest.approx(voxels.mean(), rel=1e-9)
    assert statistics.std == pytest.approx(voxels.std(), rel=1e-9)
    assert (statistics.min, statistics.max) == (voxels.min(), voxels.max())
    for level, value in (
        (0.5, statistics.percentile_00_5),
        (50, statistics.median),
        (99.5, statistics.percentile_99_5),
    ):
        assert value == pytest.approx(np.percentile(voxels, level, method="hazen"), rel=1e-9)
    assert found.cases == ("c0", "c1", "c2", "c3")
    assert found.spacings == ((2.0, 1.0, 1.0),) * 4 and found.shapes_after_crop == ((10, 14, 12),) * 4


def test_every_case_weighs_the_same(tmp_path: Path) -> None:
    raw, description = described(make_raw(tmp_path, cases=2))
    for case, value, size in (("c0", 1.0, 5), ("c1", 3.0, 500)):
        image, label = np.full((10, 14, 12), value, np.float32), np.zeros((10, 14, 12), np.uint8)
        label.reshape(-1)[:size] = 1
        geometry = Geometry.from_spacing(image.shape, (2.0, 1.0, 1.0))
        write_volume(raw / f"imagesTr/{case}_0000.nii.gz", image, geometry)
        write_volume(raw / f"labelsTr/{case}.nii.gz", label, geometry)
    statistics = make_fingerprint(raw, description).intensities[0]
    assert statistics.mean == pytest.approx(2.0) and statistics.std == pytest.approx(1.0)


def test_the_crop_is_measured(tmp_path: Path) -> None:
    raw, description = described(make_raw(tmp_path, cases=1))
    image = read_volume(raw / "imagesTr/c0_0000.nii.gz")
    image.array[:, :, 9:] = 0
    write_volume(raw / "imagesTr/c0_0000.nii.gz", image.array, image.geometry)
    found = make_fingerprint(raw, description)
    assert found.shapes_after_crop == ((10, 14, 9),) and found.median_relative_size_after_crop == pytest.approx(0.75)


def test_large_cases_are_thinned_out_reproducibly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, description = described(make_raw(tmp_path))
    exact = make_fingerprint(raw, description).intensities[0]
    monkeypatch.setattr(module, "_BUDGET", 200)
    thin = make_fingerprint(raw, description, workers=3)
    assert thin == make_fingerprint(raw, description, workers=1)
    assert thin.intensities[0].mean != exact.mean
    assert thin.intensities[0].mean == pytest.approx(exact.mean, rel=0.1)


def test_ignored_voxels_are_no_foreground(tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    data = json.loads((raw / "dataset.json").read_text())
    plain = make_fingerprint(*described(raw)).intensities[0]
    (raw / "dataset.json").write_text(json.dumps({**data, "labels": {"background": 0, "a": 1, "ignore": 2}}))
    assert make_fingerprint(*described(raw)).intensities[0].max < plain.max - 5


def test_a_data_set_without_foreground_is_refused(tmp_path: Path) -> None:
    raw, description = described(make_raw(tmp_path, cases=1))
    label = read_label(raw / "labelsTr/c0.nii.gz")
    write_volume(raw / "labelsTr/c0.nii.gz", label.array * 0, label.geometry)
    with pytest.raises(DataError, match="no label map has any foreground"):
        make_fingerprint(raw, description)


def test_the_source_follows_the_files(tmp_path: Path) -> None:
    raw, description = described(make_raw(tmp_path))
    before = source_of(training_cases(raw, description))
    assert before == source_of(training_cases(raw, description))
    os.utime(raw / "labelsTr/c1.nii.gz", ns=(1, 1))
    assert source_of(training_cases(raw, description)) != before


def test_a_fingerprint_survives_its_file(tmp_path: Path) -> None:
    found = make_fingerprint(*described(make_raw(tmp_path)))
    save(tmp_path / "fingerprint.json", found)
    assert load(Fingerprint, tmp_path / "fingerprint.json") == found
