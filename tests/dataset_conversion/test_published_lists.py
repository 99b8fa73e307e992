"""The lists of FracAtlas and GRAZPEDWRI-DX: spelt on other machines, or naming what is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset_conversion import ConversionOptions, convert_dataset
from dataset_conversion.convert import Converted
from medkd.core.errors import DataError
from tests.dataset_conversion.radiograph_trees import graz_stem, make_fracatlas, make_graz


def convert(kind: str, source: Path, root: Path, **settings: str) -> Converted:
    return convert_dataset(kind, source, 3, root=root, options=ConversionOptions(workers=1, settings=settings))


def test_the_lists_of_fracatlas_mean_the_same_in_another_spelling(tmp_path: Path) -> None:
    source = make_fracatlas(tmp_path / "a")
    expected = convert("fracatlas", source, tmp_path / "one").folder / "splits_final.json"
    for path in (source / "Utilities/Fracture Split").glob("*.csv"):
        path.write_text(
            path.read_text().replace("IMG", "D:\\FracAtlas\\images\\Fractured\\IMG").replace(".jpg", ".JPG")
        )
    result = convert("fracatlas", source, tmp_path / "two")
    assert json.loads((result.folder / "splits_final.json").read_text()) == json.loads(expected.read_text())


def test_entries_that_name_nothing_or_two_parts_are_errors(tmp_path: Path) -> None:
    source = make_fracatlas(tmp_path / "a")
    path = source / "Utilities/Fracture Split/test.csv"
    path.write_text(path.read_text() + "\nIMG9999999.jpg")
    problems = convert("fracatlas", source, tmp_path / "one").conversion.problems
    assert [finding.case for finding in problems if "test.csv" in finding.file] == ["IMG9999999"]
    path.write_text(path.read_text() + "\nIMG0000000.jpg")
    with pytest.raises(DataError, match=r"found IMG0000000\.jpg in train\.csv and test\.csv"):
        convert("fracatlas", source, tmp_path / "two")


def test_a_split_of_grazpedwri_names_images_by_stem_or_path(tmp_path: Path) -> None:
    source, split = make_graz(tmp_path / "g"), tmp_path / "split"
    split.mkdir()
    for name, patients in {"train_data": (1, 2, 3, 4), "valid_data": (5, 6), "test_data": (7, 8)}.items():
        stems = [graz_stem(patient, 1, projection) for patient in patients for projection in (1, 2)]
        (split / f"{name}.csv").write_text("\n".join(["filestem", *(f"/data/{stem}.png" for stem in stems)]))
    with (split / "valid_data.csv").open("a") as stream:
        stream.write("\nnobody")
    result = convert("grazpedwri", source, tmp_path / "root", split=str(split))
    (fold,) = json.loads((result.folder / "splits_final.json").read_text())
    assert (len(fold["train"]), len(fold["val"]), len(list(result.folder.glob("labelsTs/*")))) == (8, 4, 4)
    assert [finding.case for finding in result.conversion.problems] == ["nobody"]
