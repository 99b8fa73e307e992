"""Scans compared with what the training cases looked like: what a network has never seen is named, nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.core.dataset import CaseFiles
from medkd.core.geometry import Geometry
from medkd.core.plan import Interval, Plan, StructureRange
from medkd.core.serial import from_data, load, save, to_data
from medkd.io.facts import CaseFacts, describe_case, describe_channel
from medkd.io.orientation import turn_geometry
from medkd.io.volumes import read_image, write_volume
from medkd.preprocessing import ranges
from medkd.preprocessing.ranges import compare_scan, ranges_of

from .builders import make_configuration, plan_of

SHAPE = (20, 24, 28)
CONFIGURATION = make_configuration((2.0, 1.0, 1.0))
FILES = CaseFiles("new", (Path("new_0000.nii.gz"),))


def image_of(kind: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.normal(200, 60, SHAPE).clip(0) if kind == "MR" else rng.normal(40, 60, SHAPE)
    if kind == "CT":
        image[:, :6] = -1000
    return image.astype(np.float32)[None]


def geometry_of(factor: float = 1.0, code: str = "RAS") -> Geometry:
    return turn_geometry(Geometry.from_spacing(SHAPE, (2.0 * factor, factor, factor)), code)


def facts_of(kind: str) -> list[CaseFacts]:
    found = []
    for seed in range(5):
        image = image_of(kind, seed)
        found.append(describe_case(f"c{seed}", geometry_of(1 + seed / 10), [describe_channel(image[0])]))
    return found


def plan_for(kind: str, orientation: str | None = None) -> Plan:
    found = ranges_of(facts_of(kind), [kind], orientation)
    return replace(plan_of(CONFIGURATION), orientation=orientation, ranges=found)


def named(kind: str, image: np.ndarray, geometry: Geometry, orientation: str | None = None) -> list[str]:
    findings = compare_scan(FILES, image, geometry, plan_for(kind, orientation), CONFIGURATION)
    assert all(finding.case == "new" and not finding.error for finding in findings)
    return [finding.text() for finding in findings]


@pytest.mark.parametrize("kind", ["CT", "MR"])
def test_scans_like_the_training_cases_raise_no_warning(kind: str) -> None:
    for factor in (0.5, 1.0, 2.0):
        assert not named(kind, image_of(kind, 9), geometry_of(factor))


def test_another_orientation_is_named_unless_the_plan_turns_scans() -> None:
    image = image_of("MR")
    [text] = named("MR", image, geometry_of(code="LAS"))
    assert "stored in RAS" in text and "found LAS" in text and "--reorient" in text
    assert not named("MR", image, geometry_of(code="LAS"), "RAS")


@pytest.mark.parametrize("factor", [10, 0.001, 1000])
def test_a_spacing_out_of_range_is_named(factor: float) -> None:
    [text] = named("MR", image_of("MR"), geometry_of(factor))
    assert "spacing as in the training cases (2…2.8 × 1…1.4 × 1…1.4 mm)" in text and "which makes the scan" in text
    old = replace(plan_for("MR"), ranges=None)
    findings = compare_scan(FILES, image_of("MR"), geometry_of(factor), old, CONFIGURATION)
    assert ["spacing" in finding.expected for finding in findings] == [True]
    assert not compare_scan(FILES, image_of("MR"), geometry_of(), old, CONFIGURATION)


def test_an_empty_channel_is_named() -> None:
    [text] = named("MR", np.zeros((1, *SHAPE), np.float32), geometry_of())
    assert "the value 0 in all voxels" in text


def test_ct_and_mr_are_told_apart_by_their_values() -> None:
    for trained, given in (("CT", "MR"), ("MR", "CT")):
        [text] = named(trained, image_of(given), geometry_of())
        assert f"({trained})" in text and "a scan of the same kind" in text
    [text] = named("CT", image_of("CT") + 1024, geometry_of())
    assert "rescaled" in text
    assert not named("MR", image_of("MR") * 20, geometry_of())  # arbitrary units


def test_the_modality_of_a_dicom_series_is_held_against_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "modality", lambda paths: "CT")
    [text] = named("MR", image_of("MR"), geometry_of())
    assert "in a series of modality CT" in text
    assert not named("CT", image_of("CT"), geometry_of())


def test_ranges_come_back_from_the_plan_file(tmp_path: Path) -> None:
    plan = plan_for("CT")
    save(tmp_path / "plans.json", plan)
    assert Plan.load(tmp_path / "plans.json") == plan == load(Plan, tmp_path / "plans.json")
    assert plan.ranges is not None and plan.ranges.orientations == {"RAS": 5}
    assert plan.ranges.spacing[0].low == 2.0 and plan.ranges.spacing[0].high == pytest.approx(2.8)


def test_the_plan_says_how_often_and_how_large_structures_are_seen(tmp_path: Path) -> None:
    facts = []
    for seed in range(3):
        counts = {1: 100 * (seed + 1), 2: 50} if seed else {1: 100}
        channel = describe_channel(image_of("MR", seed)[0])
        facts.append(describe_case(f"c{seed}", geometry_of(), [replace(channel, constant=seed == 2)], counts))
    found = ranges_of(facts, ["MR"], None, {1: "liver", 2: "spleen", 3: "aorta"})
    assert found is not None and found.channels[0].empty == 1
    liver, spleen, aorta = found.structures
    assert liver == StructureRange("liver", 3, Interval(200.0, 600.0))  # voxels of 2 mm³
    assert spleen == StructureRange("spleen", 2, Interval(100.0, 100.0))
    assert aorta == StructureRange("aorta", 0, None)
    save(tmp_path / "plans.json", replace(plan_of(CONFIGURATION), ranges=found))
    assert Plan.load(tmp_path / "plans.json").ranges == found


def test_an_older_plan_without_structures_is_read() -> None:
    data = to_data(plan_for("CT"))
    del data["ranges"]["structures"]
    for channel in data["ranges"]["channels"]:
        del channel["empty"]
    assert from_data(Plan, data, "plans.json") == plan_for("CT")


@pytest.mark.parametrize(
    ("channel", "dicom", "warned"),
    [
        ("MR", "CT", True),
        ("T1 Gd", "CT", True),
        ("CTA", "MR", True),
        ("CT", "CT", False),
        ("FLAIR", "MR", False),
        ("image", "CT", False),
        ("MR", "", False),
        ("MR", "PT", False),
    ],
)
def test_the_modality_is_compared_where_the_model_came_without_ranges(
    monkeypatch: pytest.MonkeyPatch, channel: str, dicom: str, warned: bool
) -> None:
    monkeypatch.setattr(ranges, "modality", lambda paths: dicom)
    plan = replace(plan_for("MR"), ranges=None)
    findings = compare_scan(FILES, image_of("MR"), geometry_of(), plan, CONFIGURATION, [channel])
    assert [f"a series of modality {dicom}"] * warned == [finding.found for finding in findings]


def test_a_ct_model_is_known_by_its_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "modality", lambda paths: "MR")
    plan = replace(plan_for("CT"), ranges=None)
    ct = replace(CONFIGURATION, normalization=("ct",))
    [finding] = compare_scan(FILES, image_of("CT"), geometry_of(), plan, ct)
    assert finding.found == "a series of modality MR"


def test_an_array_has_no_orientation_but_a_spacing() -> None:
    array = CaseFiles("array", ())
    assert not compare_scan(array, image_of("MR"), geometry_of(code="LPS"), plan_for("MR"), CONFIGURATION)
    assert compare_scan(array, image_of("MR"), geometry_of(10), plan_for("MR"), CONFIGURATION)


def test_channels_that_lie_apart_are_named(tmp_path: Path) -> None:
    grid, image = geometry_of(), np.concatenate([image_of("MR"), image_of("MR", 1)])
    plan = replace(plan_of(CONFIGURATION), ranges=ranges_of(facts_of("MR"), ["MR"], None))

    def told(voxels: float) -> list[str]:
        matrix = grid.matrix
        matrix[0, 3] += voxels  # of 1 mm
        files = tuple(tmp_path / f"new_000{channel}.nii.gz" for channel in range(2))
        write_volume(files[0], image[0], grid)
        write_volume(files[1], image[1], Geometry.from_affine(SHAPE, matrix))
        read, geometry = read_image(files, "new")
        found = compare_scan(CaseFiles("new", files), read, geometry, plan, CONFIGURATION)
        return [finding.text() for finding in found]

    assert told(0.0) == []
    [text] = told(0.95)
    assert "new_0001.nii.gz: expected the same origin as new_0000.nii.gz" in text and "0.95 mm apart" in text
