from __future__ import annotations

import numpy as np
import pytest

from medkd.core.errors import DataError, PlanError
from medkd.preprocessing.normalisation import normalise, scheme_of

from .builders import STATISTICS


def image() -> np.ndarray:
    return np.random.default_rng(0).normal(3, 5, (5, 6, 7)).astype(np.float32)


def test_ct_clips_and_uses_the_statistics_of_the_data_set() -> None:
    expected = (np.clip(image().astype(np.float64), -3, 5) - 1) / 2
    np.testing.assert_allclose(normalise(image(), "ct", STATISTICS), expected, rtol=1e-5, atol=1e-6)


def test_zscore_has_zero_mean_and_unit_deviation() -> None:
    found = normalise(image(), "zscore")
    assert abs(found.mean()) < 1e-5 and abs(found.std() - 1) < 1e-5


def test_masked_zscore_leaves_the_outside_as_it_is() -> None:
    mask = np.zeros((5, 6, 7), bool)
    mask[1:4] = True
    found = normalise(image(), "zscore", mask=mask)
    np.testing.assert_array_equal(found[~mask], image()[~mask])
    inside = image()[mask].astype(np.float64)
    np.testing.assert_allclose(found[mask], (inside - inside.mean()) / inside.std(), rtol=1e-4, atol=1e-5)


def test_constant_images_stay_finite() -> None:
    for scheme in ("zscore", "rescale_0_1"):
        assert (normalise(np.full((2, 2, 2), 7, np.float32), scheme) == 0).all()


def test_rescaling_spans_zero_to_one_and_rgb_divides_by_255() -> None:
    found = normalise(image(), "rescale_0_1")
    assert found.min() == 0 and found.max() == 1
    np.testing.assert_allclose(normalise(np.array([[[0, 51, 255]]], np.float32), "rgb_0_1"), [[[0, 0.2, 1]]])
    np.testing.assert_array_equal(normalise(image(), "none"), image())


def test_normalising_works_in_place_in_float32() -> None:
    for scheme in ("ct", "zscore", "rescale_0_1", "none"):
        array = image()
        assert normalise(array, scheme, STATISTICS) is array and array.dtype == np.float32


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(DataError, match="0 to 255"):
        normalise(image(), "rgb_0_1")
    with pytest.raises(PlanError, match="Did you mean 'zscore'"):
        normalise(image(), "zscores")
    with pytest.raises(PlanError, match="foreground intensities"):
        normalise(image(), "ct")


def test_channel_names_select_schemes() -> None:
    assert [scheme_of(n) for n in ("CT", "noNorm", "T1w", "rescale_to_0_1", "rgb_to_0_1")] == [
        "ct", "none", "zscore", "rescale_0_1", "rgb_0_1",
    ]  # fmt: skip
