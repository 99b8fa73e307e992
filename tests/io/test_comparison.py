"""Cases compared with each other: each fault is named with its case, and what is mixed on purpose is left alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.core.dataset import DatasetDescription
from medkd.core.geometry import Geometry
from medkd.core.serial import save
from medkd.io.checks import Finding
from medkd.io.comparison import outliers
from medkd.io.facts import describe_channel
from medkd.io.orientation import CODES, axis_code, turn, turn_geometry
from medkd.io.symmetry import mirror_pairs
from medkd.io.verify import verify_dataset
from medkd.io.volumes import Volume, read_volume, write_volume
from medkd.preprocessing.fingerprint import known_contents, make_fingerprint

SHAPE = (12, 14, 16)
Change = Callable[[Volume], Volume]


def make_dataset(folder: Path, cases: int = 6, channel: str = "MR", **changes: Change) -> Path:
    """Cases ``c0``, ``c1``, … with two structures of different shape; ``changes`` are made to image and label map."""
    geometry = Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.0))
    for index in range(cases):
        rng = np.random.default_rng(index)
        label = np.zeros(SHAPE, np.uint8)
        label[2:9, 3:8, 2:7] = 1
        label[4:6, 9:12, 9:15] = 2
        image = (rng.normal(100, 10, SHAPE) + 50 * label).astype(np.float32)
        for name, array in ((f"imagesTr/c{index}_0000", image), (f"labelsTr/c{index}", label)):
            change = changes.get(f"c{index}", lambda volume: volume)
            volume = change(Volume(array, geometry))
            write_volume(folder / f"{name}.nii.gz", volume.array, volume.geometry)
    description = {
        "channel_names": {"0": channel},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def warned(folder: Path, **options: object) -> list[Finding]:
    report = verify_dataset(folder, **options)  # type: ignore[arg-type]
    assert report.ok, report.text()
    return list(report.warnings)


def scaled(factor: float) -> Change:
    def change(volume: Volume) -> Volume:
        matrix = volume.geometry.matrix @ np.diag([factor, factor, factor, 1])
        return Volume(volume.array, Geometry.from_affine(volume.array.shape, matrix))

    return change


def turned(code: str) -> Change:
    def change(volume: Volume) -> Volume:
        old = axis_code(volume.geometry)
        return Volume(np.ascontiguousarray(turn(volume.array, old, code)), turn_geometry(volume.geometry, code))

    return change


def image_only(function: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(volume: Volume) -> Volume:
        return Volume(function(volume.array), volume.geometry) if volume.array.dtype == np.float32 else volume

    return change


def test_cases_that_fit_together_raise_no_warning(tmp_path: Path) -> None:
    assert not warned(make_dataset(tmp_path / "D"))
    assert not warned(make_dataset(tmp_path / "E", c1=scaled(1.6), c2=scaled(0.7), c3=scaled(1.2)))


def test_cases_stored_in_two_orientations_are_named(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "D", c1=turned("LAS"), c4=turned("LAS"))
    [finding] = warned(folder)
    assert "RAS in 4" in finding.found and "LAS in 2 (c1, c4)" in finding.found and "--reorient RAS" in finding.action
    assert not warned(folder, orientation="RAS")


@pytest.mark.parametrize("factor", [10, 0.1, 0.001, 1000])
def test_a_spacing_that_is_out_of_line_is_named_once(tmp_path: Path, factor: float) -> None:
    findings = warned(make_dataset(tmp_path / "D", c3=scaled(factor)))
    assert {finding.case for finding in findings} == {"c3"}
    assert (
        len([finding for finding in findings if "spacing" in finding.expected and "volume" not in finding.found]) == 1
    )
    assert any("2 × 1 × 1 mm" in finding.expected for finding in findings)


def test_one_axis_that_is_ten_times_too_coarse_is_named(tmp_path: Path) -> None:
    def coarse(volume: Volume) -> Volume:
        matrix = volume.geometry.matrix @ np.diag([1, 1, 10.0, 1])
        return Volume(volume.array, Geometry.from_affine(volume.array.shape, matrix))

    assert "c2" in {finding.case for finding in warned(make_dataset(tmp_path / "D", c2=coarse))}


def test_an_empty_channel_is_named(tmp_path: Path) -> None:
    findings = warned(make_dataset(tmp_path / "D", c5=image_only(np.zeros_like)))
    assert [(f.case, f.found) for f in findings] == [("c5", "the value 0 in all voxels")]


def test_intensities_far_off_are_named_in_hu_sooner_than_in_arbitrary_units(tmp_path: Path) -> None:
    ten_times = image_only(lambda image: image * 10)
    assert not warned(make_dataset(tmp_path / "M", c1=ten_times))
    findings = warned(make_dataset(tmp_path / "C", channel="CT", c1=ten_times, c2=image_only(lambda i: i + 1024)))
    assert [f.case for f in findings] == ["c1", "c2"] and all("intensities" in f.expected for f in findings)
    assert [f.case for f in warned(make_dataset(tmp_path / "T", c1=image_only(lambda image: image * 1e4)))] == ["c1"]


def test_equal_scans_under_two_names_are_twins(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "D")
    twin = read_volume(folder / "imagesTr/c1_0000.nii.gz")
    write_volume(folder / "imagesTr/c4_0000.nii.gz", twin.array, twin.geometry)
    [finding] = warned(folder)
    assert "the same voxels in c1, c4" in finding.found


@pytest.mark.parametrize("code", ["LPS", "PIR", "SAL"])
def test_a_scan_that_is_stored_in_another_orientation_is_the_same_scan(tmp_path: Path, code: str) -> None:
    folder = make_dataset(tmp_path / "D")
    for file in ("imagesTr/c{}_0000.nii.gz", "labelsTr/c{}.nii.gz"):
        volume = read_volume(folder / file.format(1))
        turned = turn(volume.array, axis_code(volume.geometry), code)
        write_volume(folder / file.format(4), turned, turn_geometry(volume.geometry, code))
    assert any("the same voxels in c1, c4" in finding.found for finding in warned(folder))
    made = make_fingerprint(folder, DatasetDescription.load(folder / "dataset.json"))
    facts = {case.case: case for case in made.facts}
    assert facts["c1"].digest == facts["c4"].digest and facts["c4"].orientation == code
    assert len({case.digest for case in made.facts}) == len(facts) - 1
    for comparable in (True, False):  # by an earlier version the hash of the turned scan meant something else
        save(tmp_path / "fingerprint.json", replace(made, comparable=comparable))
        assert known_contents(tmp_path).get("c4") == (facts["c1"].digest if comparable else None)
        assert known_contents(tmp_path)["c1"] == facts["c1"].digest


def test_a_structure_that_a_few_of_many_cases_lack_is_named(tmp_path: Path) -> None:
    def without(volume: Volume) -> Volume:
        return (
            volume
            if volume.array.dtype == np.float32
            else Volume(np.where(volume.array == 2, 0, volume.array), volume.geometry)
        )

    [finding] = warned(make_dataset(tmp_path / "D", cases=21, c7=without))
    assert "spleen (2), which 20 of 21 cases show" in finding.expected and finding.found == "none in c7"


def test_structures_that_are_mirror_images_are_named_with_the_option(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "D")
    for path in sorted((folder / "labelsTr").iterdir()):
        volume = read_volume(path, np.uint8)
        label = np.zeros_like(volume.array)
        label[3:9, 4:10, 2:6] = 1
        label[3:5, 4:6, 2:4] = 0  # not symmetric itself
        label[np.flip(label, 2) == 1] = 2
        write_volume(path, label, volume.geometry)
    [finding] = warned(folder)
    assert "along axis 2: liver and spleen" in finding.found and "--mirror-axes 0 1" in finding.action
    assert not warned(folder, mirror_axes=(0, 1)) and not warned(folder, mirror_axes=())
    assert warned(folder, mirror_axes=(0, 2))


def test_structures_that_only_lie_side_by_side_are_no_mirror_images() -> None:
    label = np.zeros((20, 20, 30), np.int16)
    label[4:14, 4:14, 2:10] = 1
    label[4:14, 4:14, 15:23] = 2
    assert [(p.first, p.second, p.axis) for p in mirror_pairs(label, {1: 800, 2: 800}, (1, 1, 1))] == [(1, 2, 2)]
    label[4:9, 4:9, 2:10] = 0  # corners that lie across from each other are missing
    label[9:14, 9:14, 15:23] = 0
    counts = {1: int((label == 1).sum()), 2: int((label == 2).sum())}
    assert not mirror_pairs(label, counts, (1, 1, 1))


@pytest.mark.parametrize("code", ["LAS", "PIR", "SLA", "IPR"])
def test_a_turned_scan_shows_the_same_place_and_comes_back(code: str) -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(size=(2, *SHAPE))
    angle = np.deg2rad(20)
    matrix = np.array(
        [[np.cos(angle), -np.sin(angle), 0, 5], [np.sin(angle), np.cos(angle), 0, -7], [0, 0, 2, 9], [0, 0, 0, 1.0]]
    )
    geometry = Geometry.from_affine(SHAPE, matrix)
    old = axis_code(geometry)
    new_geometry, new = turn_geometry(geometry, code), turn(array, old, code)
    assert axis_code(new_geometry) == code and new.shape[1:] == new_geometry.shape
    np.testing.assert_array_equal(turn(new, code, old), array)
    place = tuple(int(rng.integers(size)) for size in SHAPE)
    world = geometry.matrix @ [*reversed(place), 1]
    index = np.rint(np.linalg.inv(new_geometry.matrix) @ world)[:3].astype(int)
    assert new[(0, *index[::-1])] == array[(0, *place)]


def test_there_are_48_axis_codes() -> None:
    assert len(CODES) == len(set(CODES)) == 48 and {"RAS", "LPS", "PIR"} <= set(CODES)


def test_outliers_need_both_a_factor_and_many_deviations() -> None:
    assert outliers([1, 1, 1, 1, 9], 5) == [4]
    assert outliers([1, 1, 1, 1, 4], 5) == []
    assert outliers([1, 3, 5, 7, 25], 5) == [4] and outliers([1, 3, 5, 7, 15], 5) == []


def test_percentiles_of_a_channel_are_near_the_exact_ones() -> None:
    channel = np.random.default_rng(1).normal(size=(40, 50, 60)).astype(np.float32)
    facts = describe_channel(channel)
    np.testing.assert_allclose(
        (facts.low, facts.median, facts.high), np.percentile(channel, (0.5, 50, 99.5)), atol=0.15
    )
    assert not facts.constant and describe_channel(np.full((3, 3, 3), 7.0)).constant


def test_scans_without_labels_are_compared_with_the_others_and_counted(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "D")
    (folder / "imagesUn").mkdir()
    for index, change in enumerate([lambda volume: volume, scaled(10), turned("LAS")]):
        volume = change(read_volume(folder / f"imagesTr/c{index}_0000.nii.gz"))
        volume.array[0, 0, 0] += 1  # no twin
        write_volume(folder / f"imagesUn/u{index}_0000.nii.gz", volume.array, volume.geometry)
    report = verify_dataset(folder)
    assert report.ok and report.unlabelled == ("u0", "u1", "u2")
    assert "6 good cases, 3 good scans without labels, 0 bad cases" in report.summary()
    texts = [finding.text() for finding in report.warnings]
    assert len(texts) == 2, texts
    assert any("LAS in 1 (u2)" in text for text in texts)
    assert any(text.startswith("case u1: expected a spacing near the others'") for text in texts)


def test_a_set_of_scans_without_labels_counts_them(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "D")
    for part in ("labelsTr", "imagesUn"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "imagesTr").rename(folder / "imagesUn")
    data = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**data, "numTraining": 0}))
    report = verify_dataset(folder)
    assert report.ok, report.text()
    assert report.summary() == "D: 6 good scans without labels, 0 bad cases, 0 problems, 0 warnings"


def test_an_empty_channel_is_named_by_its_value_without_a_sign(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "D", c1=lambda volume: Volume(volume.array * -0.0, volume.geometry))
    [finding] = warned(folder)[:1]
    assert finding.found == "the value 0 in all voxels"


def test_cases_whose_names_differ_by_capitals_alone_are_named(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "D")
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (folder / part / f"c1{ending}").rename(folder / part / f"C0{ending}")
    (finding,) = warned(folder)
    assert (finding.found, finding.case) == ("C0, c0", "C0") and "macOS and Windows" in finding.action


def test_labels_that_are_probably_one_are_named(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "D")
    data = json.loads((folder / "dataset.json").read_text())
    first, second = [name for name, value in data["labels"].items() if value]
    data["labels"] = {"background": 0, first: 1, f"{first.upper()} ": data["labels"][second]}
    (folder / "dataset.json").write_text(json.dumps(data))
    (finding,) = warned(folder)
    assert (
        finding.expected == "labels that differ in more than capitals and blanks" and f"'{first}' and" in finding.found
    )
