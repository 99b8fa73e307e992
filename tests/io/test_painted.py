"""Which images look like label maps: no scan does, whatever its range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medkd.core.dataset import CaseFiles
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.io import verify_case
from medkd.io.painted import painted_values
from medkd.io.volumes import write_volume
from tests.evaluation.folders import reference

MANY = LabelSpec.from_names([f"structure_{number}" for number in range(1, 118)])
SHAPE = (12, 48, 40)


def _scan(high: int, smooth: float) -> np.ndarray:
    """A body in air, with the noise of a scan."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), smooth)
    noise = (noise - noise.min()) / np.ptp(noise)
    return np.round(high * noise * (reference(1, SHAPE) > 0)).astype(np.float32)


@pytest.mark.parametrize("high", [5, 20, 100, 117])
def test_a_scan_whose_range_lies_within_the_labels_is_no_label_map(tmp_path: Path, high: int) -> None:
    """An ultrasound of 0 to 100 beside a model of 117 structures, and dark pictures of 8 bits."""
    assert not painted_values(_scan(high, 0.5), MANY.values)
    path = tmp_path / "scan_0000.nii.gz"
    write_volume(path, _scan(high, 0.5), Geometry.from_spacing(SHAPE, (1.0,) * 3))
    assert verify_case.check_case(CaseFiles("scan", (path,), None), MANY).good


@pytest.mark.parametrize(("many", "good"), [(False, False), (True, True)])
def test_a_label_map_is_an_error_where_it_is_sure_and_else_a_warning(tmp_path: Path, many: bool, good: bool) -> None:
    labels = reference(1, SHAPE)
    if many:
        labels = labels + 3 * (np.arange(SHAPE[1])[None, :, None] // 2) * (labels > 0)
    found = painted_values(labels, MANY.values)
    assert found == frozenset(map(int, np.unique(labels))) and (len(found) > 16) == many
    path = tmp_path / "scan_0000.nii.gz"
    write_volume(path, labels.astype(np.float32), Geometry.from_spacing(SHAPE, (1.0,) * 3))
    check = verify_case.check_case(CaseFiles("scan", (path,), None), MANY)
    assert check.good == good and "a label map" in check.findings[0].found


@pytest.mark.parametrize("value", [-1.0, 0.5, 118.0, np.nan])
def test_one_other_value_is_enough(value: float) -> None:
    labels = reference(1, SHAPE).astype(np.float32)
    labels[-1, -1, -1] = value
    assert not painted_values(labels, MANY.values) and not painted_values(np.zeros(SHAPE), MANY.values)


def test_labelled_cases_are_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_case, "painted_values", lambda *_: pytest.fail("searched"))
    labels, path = reference(1, SHAPE), tmp_path / "scan.nii.gz"
    write_volume(path, labels, Geometry.from_spacing(SHAPE, (1.0,) * 3))
    assert verify_case.check_case(CaseFiles("scan", (path,), path), LabelSpec.from_names(["a", "b"])).good
