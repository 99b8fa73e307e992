"""The phantom is a valid raw data set with the properties that make it worth segmenting."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import label as components

from dataset_conversion.phantom import (
    AORTA,
    KIDNEYS,
    LABELS,
    LIVER,
    SPINE,
    SPLEEN,
    PhantomCase,
    make_phantom,
    phantom_case,
)
from medkd.core.dataset import DatasetDescription, image_cases, training_cases
from medkd.core.errors import DataError
from medkd.io.volumes import read_image, read_label


@pytest.fixture(scope="module")
def cases() -> list[PhantomCase]:
    return [phantom_case(seed) for seed in range(6)]


def test_a_seed_gives_the_same_scan_and_another_seed_another(cases: list[PhantomCase]) -> None:
    again = phantom_case(0)
    assert np.array_equal(again.image, cases[0].image)
    assert np.array_equal(again.label, cases[0].label)
    assert again.geometry == cases[0].geometry
    assert cases[1].image.shape != cases[0].image.shape or not np.array_equal(cases[1].image, cases[0].image)


def test_every_organ_is_in_every_scan_and_looks_as_it_should(cases: list[PhantomCase]) -> None:
    """The middle half of an organ's intensities lies where a contrast-enhanced CT has it."""
    expected = {LIVER: (60, 150), SPLEEN: (70, 165), KIDNEYS: (60, 230), AORTA: (70, 280), SPINE: (60, 450)}
    for image, label, _ in cases:
        for value, (low, high) in expected.items():
            inside = image[label == value]
            assert inside.size > 150
            quarter, three_quarters = np.percentile(inside, [25, 75])
            assert low < quarter < three_quarters < high


def test_liver_and_spleen_cannot_be_told_apart_by_intensity(cases: list[PhantomCase]) -> None:
    means = np.array([[image[label == value].mean() for value in (LIVER, SPLEEN)] for image, label, _ in cases])
    assert means[:, 0].max() > means[:, 1].min()


def test_labelled_organs_are_no_more_than_half_of_what_is_as_bright(cases: list[PhantomCase]) -> None:
    """Vena cava, bowel and noise: a threshold on intensity finds more of them than of the aorta and the kidneys."""
    for image, label, _ in cases:
        bright = (image > 110) & (image < 250)
        assert np.isin(label[bright], (AORTA, KIDNEYS)).mean() < 0.5


def test_air_surrounds_the_body(cases: list[PhantomCase]) -> None:
    for image, label, _ in cases:
        corners = image[:, :3, :3]
        assert abs(corners.mean() + 1000) < 25
        assert not label[:, :3, :3].any()


def test_boundaries_have_partial_volume(cases: list[PhantomCase]) -> None:
    """Between air and fat there is nothing but mixtures; without sub-sampling the blur alone gives about 0.013 of
    them.
    """
    for image, _, _ in cases:
        assert ((image > -850) & (image < -350)).mean() > 0.02


def test_two_kidneys_one_of_the_others(cases: list[PhantomCase]) -> None:
    for _, label, _ in cases:
        for value, count in {LIVER: 1, SPLEEN: 1, KIDNEYS: 2, AORTA: 1, SPINE: 1}.items():
            sizes = np.bincount(components(label == value)[0].ravel())[1:]
            assert (sizes > 40).sum() == count


def test_grids_are_anisotropic_and_differ_in_size_and_orientation(cases: list[PhantomCase]) -> None:
    spacings = np.array([case.geometry.spacing for case in cases])
    assert (spacings[:, 0] > 1.5 * spacings[:, 1]).all()
    assert np.ptp(spacings[:, 0]) > 0.2
    assert len({case.image.shape for case in cases}) > 3
    axes = [case.geometry.matrix[:3, :3] / np.linalg.norm(case.geometry.matrix[:3, :3], axis=0) for case in cases]
    flipped = [a[0, 0] < 0 for a in axes]
    oblique = [np.abs(a).max(axis=0).min() < 0.9999 for a in axes]
    assert any(flipped) and not all(flipped)
    assert any(oblique) and not all(oblique)


def test_anatomy_stands_upright_in_space_whatever_the_orientation(cases: list[PhantomCase]) -> None:
    """In patient coordinates the liver is right of the spleen and the spine is behind the aorta."""
    for _, label, geometry in cases:
        middle = {}
        for value in (LIVER, SPLEEN, AORTA, SPINE):
            z, y, x = np.argwhere(label == value).mean(0)
            middle[value] = geometry.matrix[:3] @ (x, y, z, 1)
        assert middle[LIVER][0] > middle[SPLEEN][0] + 20
        assert middle[SPINE][1] < middle[AORTA][1] - 4


def test_the_data_set_reads_back_as_it_was_made(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset900_Phantom"
    make_phantom(folder, 3, test_cases=1, seed=2)
    description = DatasetDescription.load(folder / "dataset.json")
    assert (description.num_training, description.channel_names, description.labels) == (3, ("CT",), LABELS)
    listed = training_cases(folder, description)
    assert [c.case for c in listed] == ["phantom_000", "phantom_001", "phantom_002"]
    assert [c.case for c in image_cases(folder / "imagesTs", description)] == ["phantom_test_000"]
    made = phantom_case(2001)
    image, geometry = read_image(listed[1].images, "phantom_001")
    assert np.abs(image[0] - made.image).max() <= 0.5  # rounded to whole HU
    assert geometry.differences(made.geometry) == []
    assert np.array_equal(read_label(folder / "labelsTr" / "phantom_001.nii.gz").array, made.label)
    stored = nibabel.load(listed[1].images[0])
    assert stored.get_data_dtype() == np.int16


def test_a_case_does_not_depend_on_the_number_of_cases(tmp_path: Path) -> None:
    make_phantom(tmp_path / "a", 1, test_cases=1)
    make_phantom(tmp_path / "b", 2, test_cases=1)
    for name in ("imagesTr/phantom_000_0000.nii.gz", "imagesTs/phantom_test_000_0000.nii.gz"):
        first, second = (np.asanyarray(nibabel.load(tmp_path / part / name).dataobj) for part in "ab")
        assert np.array_equal(first, second)


def test_a_finished_data_set_is_left_as_it_is(tmp_path: Path) -> None:
    make_phantom(tmp_path / "p", 1, test_cases=0)
    file = tmp_path / "p" / "imagesTr" / "phantom_000_0000.nii.gz"
    before = file.stat().st_mtime_ns
    assert make_phantom(tmp_path / "p", 1, test_cases=0).num_training == 1
    assert file.stat().st_mtime_ns == before


def test_an_impossible_number_of_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 1 training"):
        make_phantom(tmp_path / "p", 0)
