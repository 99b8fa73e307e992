from __future__ import annotations

import numpy as np
import pytest

from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.preprocessing.pipeline import preprocess_case

from .builders import make_configuration, plan_of

SHAPE = (8, 10, 12)
GEOMETRY = Geometry.from_spacing(SHAPE, (1.0, 1.0, 3.0))


def scan() -> np.ndarray:
    image = np.random.default_rng(0).normal(5, 1, (1, *SHAPE)).astype(np.float32)
    image[:, :2] = 0
    image[:, :, :, -3:] = 0
    return image


def test_axes_are_transposed_cropped_and_resampled() -> None:
    configuration = make_configuration((3.0, 0.5, 1.0))
    found = preprocess_case("c", scan(), GEOMETRY, plan_of(configuration, (2, 0, 1)), configuration)
    assert found.properties.crop == ((0, 9), (2, 8), (0, 10))
    assert found.properties.shape == found.image.shape[1:] == (9, 12, 10)
    assert found.image.dtype == np.float32 and found.image.flags.c_contiguous
    assert found.label is None and found.properties.geometry == GEOMETRY


def test_a_2d_configuration_keeps_the_slices() -> None:
    configuration = make_configuration((0.5, 2.0))
    found = preprocess_case("c", scan(), GEOMETRY, plan_of(configuration, (2, 0, 1)), configuration)
    assert found.image.shape == (1, 9, 12, 5)


def test_background_outside_the_body_becomes_minus_one_and_labels_survive() -> None:
    configuration = make_configuration()
    geometry = Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0))
    image, label = scan(), np.zeros(SHAPE, np.uint8)
    image[0, 3:, :2, :2] = 0
    image[0, 5, 5, 5] = 0  # a hole is inside
    label[4, 0, 0] = 2  # annotated although the image is zero there
    found = preprocess_case("c", image, geometry, plan_of(configuration), configuration, label)
    assert found.label is not None and found.label.dtype == np.int16
    assert found.label[3, 0, 0] == -1 and found.label[2, 0, 0] == 2 and found.label[3, 5, 5] == 0
    assert (found.label == -1).sum() == 5 * 4 - 1


def test_the_label_does_not_change_the_image() -> None:
    configuration = make_configuration((1.5, 0.8, 2.0), mask=True)
    label = np.ones(SHAPE, np.int16)
    with_label = preprocess_case("c", scan(), GEOMETRY, plan_of(configuration), configuration, label)
    np.testing.assert_array_equal(
        with_label.image, preprocess_case("c", scan(), GEOMETRY, plan_of(configuration), configuration).image
    )


def test_normalising_comes_before_resampling() -> None:
    configuration = make_configuration((2.0, 2.0, 2.0))
    geometry = Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0))
    image = np.random.default_rng(0).normal(5, 1, (1, *SHAPE)).astype(np.float32)
    found = preprocess_case("c", image, geometry, plan_of(configuration), configuration).image
    assert found.std() < 0.8, "noise that is averaged after unit scaling has a smaller deviation"


def test_the_input_is_left_alone_unless_it_may_be_overwritten() -> None:
    configuration = make_configuration()
    geometry = Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0))
    image, label = scan(), np.zeros(SHAPE, np.int16)
    kept = preprocess_case("c", image, geometry, plan_of(configuration), configuration, label).image
    np.testing.assert_array_equal(image, scan())
    assert not label.any()
    np.testing.assert_array_equal(
        preprocess_case("c", image, geometry, plan_of(configuration), configuration, overwrite=True).image, kept
    )


def test_mismatches_name_the_case() -> None:
    configuration = make_configuration()
    with pytest.raises(DataError, match=r"Case c7: image .* and label .* differ"):
        preprocess_case("c7", scan(), GEOMETRY, plan_of(configuration), configuration, np.zeros((8, 10, 11), np.int16))
    with pytest.raises(DataError, match="Case c7: the plan expects 1 channels, found 2"):
        preprocess_case("c7", np.concatenate([scan(), scan()]), GEOMETRY, plan_of(configuration), configuration)
    with pytest.raises(DataError, match=r"Case c7, channel 0: .*0 to 255"):
        rgb = make_configuration(scheme="rgb_0_1")
        preprocess_case("c7", scan() - 100, GEOMETRY, plan_of(rgb), rgb)
