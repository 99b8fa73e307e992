"""Coded terms by the names of public data sets; every code against DICOM's own dictionary, as pydicom ships it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.io.writing.structures import mask_of, overlapping, painted_structures, structures_of
from medkd.io.writing.terms import FILE, known_terms, terms_with

BTCV = (
    "spleen, right kidney, left kidney, gallbladder, esophagus, liver, stomach, aorta, inferior vena cava, "
    "portal vein and splenic vein, pancreas, right adrenal gland, left adrenal gland"
)
WORD = (
    "liver, spleen, left_kidney, right_kidney, stomach, gallbladder, esophagus, pancreas, duodenum, colon, intestine, "
    "adrenal, rectum, bladder, Head_of_femur_L, Head_of_femur_R"
)
ACDC = "RV, MYO, LV"
BRATS = "edema, non-enhancing tumor, enhancing tumour, whole_tumor, tumor_core"
MSD = "liver, cancer, left atrium, spleen, pancreas, colon cancer primaries, Vessel, Tumour"
TOTAL = (
    "kidney_right, adrenal_gland_left, lung_upper_lobe_left, lung_middle_lobe_right, small_bowel, kidney_cyst_left, "
    "urinary_bladder, sacrum, vertebrae_S1, vertebrae_L5, vertebrae_C1, heart, pulmonary_vein, brachiocephalic_trunk, "
    "subclavian_artery_right, common_carotid_artery_left, brachiocephalic_vein_left, atrial_appendage_left, "
    "superior_vena_cava, iliac_artery_left, iliac_vena_right, humerus_left, scapula_right, clavicula_left, "
    "femur_right, hip_left, spinal_cord, gluteus_maximus_left, autochthon_right, iliopsoas_left, brain, skull, "
    "rib_left_1, rib_right_12, sternum, costal_cartilages"
)
# SNOMED CT codes that DICOM's own tables do not hold; from SNOMED CT, as TotalSegmentator's DICOM output uses them too
NOT_IN_DICOM = {
    *("myocardium", "portal_vein_and_splenic_vein", "carpal", "vertebra_s1", "gluteus_maximus", "gluteus_medius"),
    *("gluteus_minimus", "iliopsoas", "autochthon", "subcutaneous_fat", "infarct", "fracture"),
    *(f"rib_{number}" for number in range(1, 13)),
}


def test_every_code_is_dicoms_own() -> None:
    dictionary = pytest.importorskip("pydicom.sr._concepts_dict")
    meanings: dict[str, set[str]] = {}
    for versions in dictionary.concepts["SCT"].values():
        for code, (meaning, _) in versions.items():
            meanings.setdefault(code, set()).add(meaning.casefold())
    table = json.loads(FILE.read_text())["terms"]
    assert {name for name, entry in table.items() if entry["code"] not in meanings} == NOT_IN_DICOM
    for name, entry in table.items():
        if name in NOT_IN_DICOM:
            continue
        words = {word for meaning in meanings[entry["code"]] for word in meaning.replace(",", "").split()}
        said = {
            word for word in entry["meaning"].casefold().replace(",", "").split() if word not in ("gland", "urinary")
        }
        assert said & words or entry["meaning"] == "Neoplasm", (name, entry, words)


@pytest.mark.parametrize("names", [BTCV, WORD, ACDC, BRATS, MSD, TOTAL])
def test_the_names_of_public_data_sets_are_known(names: str) -> None:
    assert [name for name in names.split(", ") if known_terms().find(name) is None] == []


def test_sides_places_and_data_sets_are_understood() -> None:
    terms = known_terms()
    found = {name: terms.find(name) for name in ("Head_of_femur_L", "lung_upper_lobe_right", "LV", "liver_tumor")}
    assert {name: term.side.meaning if term and term.side else None for name, term in found.items()} == {
        "Head_of_femur_L": "Left", "lung_upper_lobe_right": "Right", "LV": None, "liver_tumor": None,
    }  # fmt: skip
    tumour = found["liver_tumor"]
    assert tumour is not None and tumour.region is not None and tumour.region.meaning == "Liver"
    assert tumour.category.value == "49755003"  # a finding, no anatomy
    assert terms.find("anterior") is None
    hippocampus = terms.find("Anterior", "Dataset004_Hippocampus")
    assert hippocampus is not None and hippocampus.kind.meaning == "Hippocampus"
    assert [terms.find(name) for name in ("left", "thing", "", "label 3", "lvx")] == [None] * 5


def test_a_file_of_the_users_goes_first(tmp_path: Path) -> None:
    own = {"Liver": {"code": "1", "scheme": "99ME", "meaning": "My liver", "colour": [1, 2, 3], "aliases": ["hepar"]}}
    (tmp_path / "t.json").write_text(json.dumps(own))
    terms = terms_with(tmp_path / "t.json")
    for name in ("liver", "HEPAR"):
        term = terms.find(name)
        assert term is not None and (term.kind.scheme, term.kind.value, term.colour) == ("99ME", "1", (1, 2, 3))
    assert terms.find("spleen") == known_terms().find("spleen") != known_terms().find("liver")


@pytest.mark.parametrize(
    ("own", "text"),
    [
        ([], "expected an object from names"),
        ({"a": 3}, "expected an object from names"),
        ({"a": {"code": "1"}}, "'a' needs 'code' and 'meaning'"),
        ({"a": {"code": "1" * 17, "meaning": "x"}}, "at most 16 characters"),
        ({"a": {"code": "1", "meaning": "x\\y"}}, "none of them a backslash"),
        ({"a": {"code": "1", "meaning": "x", "color": [1, 2, 3]}}, "unknown key 'color'"),
        ({"a": {"code": "1", "meaning": "x", "colour": [1, 2, 300]}}, "three whole numbers from 0 to 255"),
        ({"a": {"code": "1", "meaning": "x", "kind": "organ"}}, "the kind of 'a' must be anatomy or finding"),
        ({"a": {"code": "1", "meaning": "x", "aliases": "b"}}, "'aliases' of 'a' must be a list of names"),
        ({"a": {"code": "1", "meaning": "x", "region": "liver"}}, "'a' needs"),
    ],
)
def test_a_file_of_another_form_is_one_sentence(own: object, text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(own))
    with pytest.raises(DataError, match=text) as error:
        terms_with(tmp_path / "t.json")
    assert str(tmp_path / "t.json") in str(error.value)


def test_colours_of_all_structures_of_a_model_differ() -> None:
    names = list(dict.fromkeys(", ".join((BTCV, TOTAL)).split(", ")))
    structures = structures_of(LabelSpec.from_names([*names, "unheard of", "another"]), known_terms())
    assert len({structure.colour for structure in structures}) == len(structures)
    assert all(0 <= part <= 255 for structure in structures for part in structure.colour)


def test_regions_overlap_and_painted_values_say_what_is_left() -> None:
    labels = LabelSpec.from_json(
        {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [2, 3], "enhancing_tumor": 3}, [1, 2, 3], "here"
    )
    regions = structures_of(labels, known_terms())
    assert overlapping(regions) == ("whole_tumor", "tumor_core")
    painted = painted_structures(labels, known_terms())
    assert [(entry.name, entry.values) for entry in painted] == [
        ("whole_tumor without tumor_core and enhancing_tumor", (1,)),
        ("tumor_core without enhancing_tumor", (2,)),
        ("enhancing_tumor", (3,)),
    ]
    assert overlapping(painted) is None
    array = np.array([0, 1, 2, 3])
    assert mask_of(array, regions[0]).tolist() == [False, True, True, True]


def test_entries_that_name_no_structure_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = {"code": "10200004", "meaning": "Liver"}
    named = ("Liver", "kidney", "lung", "cancer", "lobes", "livr")
    table = dict.fromkeys(named, entry) | {"lien": {**entry, "aliases": ["milt"]}}
    (tmp_path / "own.json").write_text(json.dumps(table))
    terms_with(tmp_path / "own.json", ["liver", "left kidney", "lung_cancer", "Milt"])
    told = [record.getMessage() for record in caplog.records]
    assert [text.split("'")[1] for text in told] == ["lobes", "livr"] and "liver" in told[1]
    caplog.clear()
    terms_with(tmp_path / "own.json")  # of no model
    assert not caplog.records
