"""A plan of somebody else leads nowhere outside, and its numbers fit together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medkd.core.errors import PlanError
from medkd.core.plan import Plan
from medkd.core.serial import save
from medkd.preprocessing.prepare import plan_and_preprocess
from tests.preprocessing.builders import make_configuration, make_raw, plan_of


def changed(tmp_path: Path, change: Callable[[Any], object]) -> Path:
    path = tmp_path / "plans.json"
    save(path, plan_of(make_configuration()))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def configured(key: str, value: Any) -> Callable[[Any], object]:
    return lambda plan: plan["configurations"]["3d_fullres"].update({key: value})


def planned(key: str, value: Any) -> Callable[[Any], object]:
    return lambda plan: plan["configurations"]["3d_fullres"]["architectures"]["plain_unet"].update({key: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (configured("spacing", [0, 1, 1]), "'spacing' expects 2 or 3 voxel sizes"),
        (configured("spacing", [-1, 1, 1]), "'spacing'"),
        (configured("spacing", [1e9, 1, 1]), "'spacing'"),
        (configured("spacing", [1]), "'spacing'"),
        (configured("spacing", [1, 1]), "'median_shape' expects 2 numbers"),
        (configured("normalization", []), "'normalization' expects 1 values"),
        (configured("mirror_axes", [3]), "'mirror_axes'"),
        (configured("resampling", {"image_order": 7}), "'resampling.image_order'"),
        (configured("architectures", {}), "'architectures' expects plain_unet"),
        (configured("name", "2d"), "'name' expects '3d_fullres'"),
        (planned("batch_size", 0), "'batch_size'"),
        (planned("patch_size", [8, 8]), "'patch_size' expects 3 numbers"),
        (planned("strides", [[1, 1, 1]]), "'strides' expects 3 numbers of at least 1 for each of 2 stages"),
        (planned("kernel_sizes", [[3, 3, 3], [3, 0, 3]]), "'kernel_sizes'"),
        (lambda plan: plan.update(transpose=[0, 0, 1]), "'transpose'"),
        (lambda plan: plan.update(orientation="RAA"), "'orientation'"),
    ],
)
def test_numbers_that_cannot_be_are_named(tmp_path: Path, change: Callable[[Any], object], named: str) -> None:
    with pytest.raises(PlanError, match=rf"plans\.json.*{named}") as caught:
        Plan.load(changed(tmp_path, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../x", "a/b", "a\\b", "..", ".x", "", "a\nb", "x" * 200])
def test_a_configuration_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    make_raw(tmp_path, cases=2)
    plan_and_preprocess(1, root=tmp_path, configurations=["3d_fullres"])
    path = tmp_path / "preprocessed" / "Dataset001_Test" / "plans.json"
    content = json.loads(path.read_text())
    content["configurations"][name] = {**content["configurations"]["3d_fullres"], "name": name}
    path.write_text(json.dumps(content))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PlanError, match="expects a name that can be that of a folder"):
        plan_and_preprocess(1, root=tmp_path, configurations=[name])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sound_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = plan_of(make_configuration())
    save(tmp_path / "plans.json", plan)
    assert Plan.load(tmp_path / "plans.json") == plan
