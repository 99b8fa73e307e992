"""Splits and lists name cases and files in many spellings: each means one of them, or is an error that names it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from medkd.core.dataset import DatasetDescription, training_cases
from medkd.core.errors import DataError
from medkd.core.resolve import NameIndex, case_spellings
from medkd.core.splits import Split, ensure_splits, split_of_fold
from medkd.io.volumes import READERS
from tests.dataset_conversion.trees import convert, folds, make_acdc, make_btcv, make_nnunet, make_synapse

Spelling = Callable[[str], str]

SPELLINGS: dict[str, Spelling] = {
    "as it is": lambda name: name,
    "another machine's prefix": lambda name: f"/home/you/data/{name}",
    "a drive and backslashes": lambda name: f"D:\\data\\{name}".replace("/", "\\"),
    "an address": lambda name: f"file:///data/{name}".replace("_", "%5F"),
    "..": lambda name: f"../x/../{name}",
    "capitals": lambda name: name.upper(),
    "quotes": lambda name: f'"{name}"',
}
WRONG = ("nothing", "thing_99", "thing_9", "", "..", "thing_00 x")


def spelled(name: str) -> list[str]:
    return [spell(name) for spell in SPELLINGS.values()]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", ["rücken_01", "rücken_01.nii.gz", "imagesTr/rücken_01_0000.nii.gz", "rücken_01.NRRD"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_case_is_found_by_every_spelling_of_one_of_its_files(spelling: str, name: str, form: str) -> None:
    index = NameIndex(["other", unicodedata.normalize("NFC", "rücken_01"), "rücken_02", "rücken"])
    text = SPELLINGS[spelling](unicodedata.normalize(form, name))  # type: ignore[arg-type]
    assert index.find(text) == "rücken_01"


def test_a_name_is_never_guessed() -> None:
    index = NameIndex(["a", "A", "b.v1", "b", "c_0000", "c", "scan"])
    assert index.find("a") == "a" and index.find("A.nii") == "A"
    assert index.find("b.v1.png") == "b.v1" and index.find("c_0000") == "c_0000" and index.find("c_0001") == "c"
    assert index.find("scan.v1") is None and index.find("") is None and index.find("scans") is None
    with pytest.raises(DataError, match=r"'Two\.nii\.gz' means 2 cases: TWO, two"):
        NameIndex(["two", "TWO"]).find("Two.nii.gz")
    found, faults = index.find_all(["a", "a.png", "nobody", "c/b"])
    assert found == ["a", "b"] and list(faults) == ["nobody"]


def test_every_ending_of_a_scan_is_taken_off() -> None:
    for ending in READERS:
        assert case_spellings(f"x_0003{ending}") == [f"x_0003{ending}", "x_0003", "x"]


# nnU-Net's splits_final.json


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_folds_of_the_source_are_taken_over_however_they_are_spelled(tmp_path: Path, spelling: str) -> None:
    source, spell = make_nnunet(tmp_path), SPELLINGS[spelling]
    train = [spell(f"imagesTr/thing_{i:02d}_0000.nii.gz") for i in range(3)]
    val = [spell(f"thing_{i:02d}.nii.gz") for i in (3, 4)]
    (source / "splits_final.json").write_text(json.dumps([{"train": train, "val": val}]))
    result = convert("nnunet", source, tmp_path / "root")
    assert result.ok, result.conversion.text()
    assert folds(result.folder) == [{"train": ["thing_00", "thing_01", "thing_02"], "val": ["thing_03", "thing_04"]}]


@pytest.mark.parametrize("wrong", WRONG)
def test_an_entry_of_a_split_that_is_no_case_is_an_error_that_names_it(tmp_path: Path, wrong: str) -> None:
    source = make_nnunet(tmp_path)
    split = [{"train": ["thing_00", "thing_01", wrong], "val": ["thing_03", "thing_04", "thing_01"]}]
    (source / "splits_final.json").write_text(json.dumps(split))
    report = convert("nnunet", source, tmp_path / "root").conversion
    texts = [finding.text() for finding in report.problems]
    assert not report.ok and len(texts) == 2
    assert any(f"'{wrong}', which is no case" in text and "splits_final.json" in text for text in texts)
    assert any("'thing_01' in 'train' and in 'val' of fold 0" in text for text in texts)


def test_a_users_split_in_the_raw_folder_may_name_files(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    cases = ["case_01", "case_02", "Case_03"]
    split = [{"train": ["imagesTr\\case_01_0000.nii.gz", "case_01.nii.gz", "case_03"], "val": ["/x/case_02.nii.gz"]}]
    (raw / "splits_final.json").write_text(json.dumps(split))
    splits = ensure_splits(tmp_path, cases, None, raw)
    assert splits == [Split(("case_01", "Case_03"), ("case_02",))]
    assert split_of_fold(splits, 0, cases) == splits[0]
    split[0]["val"].append("case_04.nii.gz")
    (tmp_path / "splits_final.json").write_text(json.dumps(split))
    with pytest.raises(DataError, match=r"case_04\.nii\.gz"):
        split_of_fold(ensure_splits(tmp_path, cases, None, raw), 0, cases)
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["CASE_01"], "val": ["b"]}]))
    with pytest.raises(DataError, match=r"splits_final\.json: .*'CASE_01' means 2 cases"):
        ensure_splits(tmp_path, ["case_01", "Case_01", "b"], None, None)


# nnU-Net's list of files in dataset.json


def list_files(source: Path, spell: Spelling) -> None:
    data = json.loads((source / "dataset.json").read_text())
    data["dataset"] = {}
    for i in range(5):
        images = [spell(f"imagesTr/thing_{i:02d}_{c:04d}.nii.gz") for c in range(2)]
        data["dataset"][f"thing_{i:02d}"] = {"images": images, "label": spell(f"labelsTr/thing_{i:02d}.nii.gz")}
    (source / "dataset.json").write_text(json.dumps(data))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_listed_files_are_found_however_they_are_spelled(tmp_path: Path, spelling: str) -> None:
    source = make_nnunet(tmp_path)
    list_files(source, SPELLINGS[spelling])
    cases = training_cases(source, DatasetDescription.load(source / "dataset.json"))
    assert [files.case for files in cases] == [f"thing_{i:02d}" for i in range(5)]
    for files in cases:
        images = tuple(source / f"imagesTr/{files.case}_{c:04d}.nii.gz" for c in range(2))
        assert files.images == images and files.label == source / f"labelsTr/{files.case}.nii.gz"


def test_a_listed_file_that_is_not_there_or_there_twice_is_named(tmp_path: Path) -> None:
    source = make_nnunet(tmp_path)
    list_files(source, lambda name: name.replace("thing_03.nii", "thing_77.nii"))
    report = convert("nnunet", source, tmp_path / "root").conversion
    assert report.left_out == ("thing_03",) and "thing_77.nii.gz" in report.problems[0].text()
    for folder in ("a", "b"):
        (source / folder).mkdir()
        (source / folder / "twice.nii.gz").write_bytes(b"")
    list_files(source, lambda name: name.replace("labelsTr/thing_02", "twice"))
    with pytest.raises(DataError, match=r"thing_02.*'twice\.nii\.gz' is there 2 times"):
        convert("nnunet", source, tmp_path / "other")
    list_files(source, lambda name: name.replace("labelsTr/thing_02", "labelsTr/THING_01"))
    with pytest.raises(DataError, match=r"label map of its own.*thing_01"):
        convert("nnunet", source, tmp_path / "other")


# the split of BTCV and the lists of slices


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_split_of_btcv_in_every_spelling(tmp_path: Path, spelling: str) -> None:
    source, spell = make_btcv(tmp_path / "download"), SPELLINGS[spelling]
    parts = {"training": (1, 2, 10, 21), "validation": (35,)}
    content = {
        part: [{"image": spell(f"imagesTr/img{n:04d}.nii.gz")} for n in numbers] for part, numbers in parts.items()
    }
    (tmp_path / "split.json").write_text(json.dumps(content))
    result = convert("btcv", source, tmp_path / "root", settings={"split": str(tmp_path / "split.json")})
    assert result.ok, result.conversion.text()
    assert folds(result.folder) == [{"train": ["img0001", "img0002", "img0010", "img0021"], "val": ["img0035"]}]


@pytest.mark.parametrize("wrong", ["imagesTr/img0099.nii.gz", "imagesTs/img0061.nii.gz", "img1", ""])
def test_an_entry_of_btcvs_split_that_is_no_training_case_is_an_error(tmp_path: Path, wrong: str) -> None:
    source = make_btcv(tmp_path / "download")
    content = {"training": [{"image": "img0001.nii.gz"}, {"image": wrong}], "validation": [{"image": "img0002.nii.gz"}]}
    (tmp_path / "split.json").write_text(json.dumps(content))
    report = convert("btcv", source, tmp_path / "root", settings={"split": str(tmp_path / "split.json")}).conversion
    assert not report.ok and f"'{wrong}', which is no case" in report.problems[0].text()


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("form", ["{}", "{}.h5", "data/{}.h5", "data/slices/{}_slice_3.h5", "{}_slice_0"])
def test_lists_of_acdc_in_every_spelling(tmp_path: Path, spelling: str, form: str) -> None:
    source, spell = make_acdc(tmp_path / "ACDC", patients=3), SPELLINGS[spelling]
    for name, patient in (("val.list", 2), ("test.list", 3)):
        lines = [spell(form.format(f"patient{patient:03d}_frame{frame:02d}")) for frame in (1, 12)]
        (source / name).write_text("\r\n".join(lines), encoding="utf-8-sig")
    result = convert("acdc_h5", source, tmp_path / "root")
    assert result.ok, result.conversion.text()
    assert folds(result.folder)[0]["val"] == ["patient002_frame01", "patient002_frame12"]
    tests = sorted(path.name for path in (result.folder / "imagesTs").iterdir())
    assert tests == ["patient003_frame01_0000.nii.gz", "patient003_frame12_0000.nii.gz"]


def test_a_line_of_no_case_and_a_case_in_two_lists_are_errors(tmp_path: Path) -> None:
    source = make_acdc(tmp_path / "ACDC", patients=3)
    (source / "val.list").write_text("patient002_frame01\npatient099_frame01\npatient003_frame01\n")
    report = convert("acdc_h5", source, tmp_path / "root").conversion
    texts = [finding.text() for finding in report.problems]
    assert report.left_out == ("patient003_frame01", "patient099_frame01") and len(texts) == 2
    assert "val.list" in texts[0] and "test.list" in texts[0] and "'patient099_frame01', which is no case" in texts[1]
    (source / "val.list").write_text("nobody\n")
    with pytest.raises(DataError, match=r"val\.list: none of its lines is a case.*'nobody'"):
        convert("acdc_h5", source, tmp_path / "other")


def test_a_list_that_contradicts_the_folders_is_said_and_the_stricter_part_wins(tmp_path: Path) -> None:
    source = make_synapse(tmp_path / "Synapse")
    (source / "val.list").write_text("case0001\ncase0005\n")
    result = convert("synapse_slices", source, tmp_path / "root")
    assert (result.folder / "imagesTs/case0001_0000.nii.gz").exists()
    assert folds(result.folder)[0]["val"] == ["case0005"]
    assert [finding.case for finding in result.conversion.warnings] == ["case0001"]
