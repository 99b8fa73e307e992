"""Overlap and surface metrics of two binary masks; each one validates, then computes.

Empty masks: where both are empty a metric is undefined and NaN; where exactly one is empty, Dice, IoU and NSD are 0 and
the Hausdorff distance and the mean surface distances are infinite. What that counts for in a mean is decided in
:mod:`medkd.evaluation.segmentation.cases`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np

from medkd.core.errors import DataError
from medkd.evaluation.segmentation.surfaces import SurfaceDistances, check_masks, surface_distances

HausdorffDefinition = Literal["max", "pooled"]


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice similarity ``2 |P ∩ R| / (|P| + |R|)``.

    Args:
        prediction: bool mask, any rank.
        reference: bool mask of the same shape.

    Returns:
        0 to 1; NaN where both masks are empty.

    Raises:
        DataError: the masks are not boolean or their shapes differ.

    >>> import numpy as np
    >>> prediction = np.array([True, True, False, False])
    >>> reference = np.array([True, False, False, False])
    >>> round(dice(prediction, reference), 3)
    0.667
    """
    check_masks(prediction, reference)
    common = int(np.count_nonzero(prediction & reference))
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2 * common / total if total else float("nan")


def hausdorff95(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], *, definition: HausdorffDefinition = "max"
) -> float:
    """95th percentile of the Hausdorff distance in mm, between surfaces as
    :mod:`medkd.evaluation.segmentation.surfaces` defines them.

    Huttenlocher et al., IEEE TPAMI 15(9), 1993, doi:10.1109/34.232073 (ranked Hausdorff distance).

    Args:
        prediction: bool mask, any rank.
        reference: bool mask of the same shape.
        spacing: voxel size in mm per axis.
        definition: ``"max"``: the larger one of the two directed 95th percentiles (MONAI); ``"pooled"``: the 95th
            percentile of both directions' distances put together (MedPy), which lies between the two.

    Returns:
        Distance in mm; NaN where both masks are empty, infinity where exactly one is.

    Raises:
        DataError: the masks are not boolean, shapes differ, or the spacing or definition is invalid.

    >>> import numpy as np
    >>> prediction, reference = np.zeros((2, 1, 9, 9), dtype=bool)
    >>> prediction[0, 2, 2] = reference[0, 2, 5] = True
    >>> hausdorff95(prediction, reference, (3.0, 1.0, 0.5))
    1.5
    """
    return _of_surfaces(partial(hausdorff95_of, definition=definition), prediction, reference, spacing)


def normalized_surface_distance(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance_mm: float
) -> float:
    """Normalised surface distance: the share of both surfaces' voxels within ``tolerance_mm`` of the other surface.

    ``NSD = (|{p ∈ S_P: d(p, S_R) ≤ τ}| + |{r ∈ S_R: d(r, S_P) ≤ τ}|) / (|S_P| + |S_R|)``, counted in surface voxels
    (not weighted by surface area). Nikolov et al., J Med Internet Res 23(7), 2021, arXiv:1809.04430.

    Args:
        prediction: bool mask, any rank.
        reference: bool mask of the same shape.
        spacing: voxel size in mm per axis.
        tolerance_mm: τ, in mm; sensibly the variation between observers.

    Returns:
        0 to 1; NaN where both masks are empty, 0 where exactly one is.

    Raises:
        DataError: the masks are not boolean, shapes differ, or spacing or tolerance is invalid.

    >>> import numpy as np
    >>> prediction, reference = np.zeros((2, 1, 9, 9), dtype=bool)
    >>> prediction[0, 2, 2] = reference[0, 2, 5] = True
    >>> normalized_surface_distance(prediction, reference, (3.0, 1.0, 0.5), 2.0)
    1.0
    """
    measure = partial(normalized_surface_distance_of, tolerance_mm=tolerance_mm)
    return _of_surfaces(measure, prediction, reference, spacing, if_one_is_empty=0.0)


def average_surface_distance(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float:
    """Average surface distance (ASD) in mm: the mean distance of the prediction's surface from the reference's.

    Directed, as MedPy's ``asd``: a prediction that covers only a part of the reference's surface well has a small one,
    so that :func:`average_symmetric_surface_distance` should stand beside it.

    Args:
        prediction: bool mask, any rank.
        reference: bool mask of the same shape.
        spacing: voxel size in mm per axis.

    Returns:
        Distance in mm; NaN where both masks are empty, infinity where exactly one is.

    Raises:
        DataError: the masks are not boolean, shapes differ, or the spacing is invalid.

    >>> import numpy as np
    >>> prediction, reference = np.zeros((2, 1, 9, 9), dtype=bool)
    >>> prediction[0, 2, 2] = reference[0, 2, 2] = reference[0, 2, 8] = True
    >>> average_surface_distance(prediction, reference, (3.0, 1.0, 0.5))
    0.0
    """
    return _of_surfaces(average_surface_distance_of, prediction, reference, spacing)


def average_symmetric_surface_distance(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> float:
    """Average symmetric surface distance (ASSD) in mm: the mean over both surfaces' voxels of the distance to the other
    surface.

    MedPy's ``assd`` (from 0.5 on; it was the mean of both directions' means before), Heimann et al., IEEE TMI 28(8),
    2009, doi:10.1109/TMI.2009.2013851. Arguments, values and errors are those of :func:`average_surface_distance`.

    >>> import numpy as np
    >>> prediction, reference = np.zeros((2, 1, 9, 9), dtype=bool)
    >>> prediction[0, 2, 2] = reference[0, 2, 2] = reference[0, 2, 8] = True
    >>> average_symmetric_surface_distance(prediction, reference, (3.0, 1.0, 0.5))
    1.0
    """
    return _of_surfaces(average_symmetric_surface_distance_of, prediction, reference, spacing)


def _of_surfaces(
    measure: Callable[[SurfaceDistances], float],
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    if_one_is_empty: float = float("inf"),
) -> float:
    check_masks(prediction, reference, spacing)
    empty = _if_empty(prediction, reference, if_one_is_empty)
    return measure(surface_distances(prediction, reference, spacing)) if empty is None else empty


def average_surface_distance_of(distances: SurfaceDistances) -> float:
    """:func:`average_surface_distance` from distances that are already known."""
    return float(distances.to_reference.mean())


def average_symmetric_surface_distance_of(distances: SurfaceDistances) -> float:
    """:func:`average_symmetric_surface_distance` from distances that are already known."""
    return float(np.concatenate([distances.to_reference, distances.to_prediction]).mean())


def hausdorff95_of(distances: SurfaceDistances, definition: HausdorffDefinition = "max") -> float:
    """:func:`hausdorff95` from distances that are already known."""
    both = distances.to_reference, distances.to_prediction
    if definition == "max":
        return max(float(np.percentile(directed, 95)) for directed in both)
    if definition == "pooled":
        return float(np.percentile(np.concatenate(both), 95))
    raise DataError(f"Unknown definition of HD95 '{definition}'; expected 'max' or 'pooled'.")


def normalized_surface_distance_of(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """:func:`normalized_surface_distance` from distances that are already known."""
    if not 0 <= tolerance_mm < float("inf"):
        raise DataError(f"The tolerance of the surface distance must be 0 mm or more, found {tolerance_mm}.")
    limit = tolerance_mm + 1e-6  # 1 nm, so that 5 voxels of 0.4 mm lie within 2 mm in spite of rounding
    both = np.concatenate([distances.to_reference, distances.to_prediction])
    return float(np.count_nonzero(both <= limit) / len(both))


def _if_empty(prediction: np.ndarray, reference: np.ndarray, one_empty: float) -> float | None:
    found = int(prediction.any()) + int(reference.any())
    return (float("nan"), one_empty, None)[found]
