"""How a scan's axes lie in the patient, and scans turned to other axes without interpolation."""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations, product

import numpy as np

from medkd.core.errors import DataError
from medkd.core.geometry import Geometry

_PAIRS = ("LR", "PA", "IS")


def _codes() -> tuple[str, ...]:
    codes: list[str] = []
    for pairs in permutations(_PAIRS):
        codes += map("".join, product(*pairs))
    return tuple(codes)


CODES = _codes()
"""All 48 axis codes, ``RAS`` among them."""


def check_code(code: str) -> str:
    """An axis code in capitals.

    Raises:
        DataError: it is not one of the 48 codes of three letters.
    """
    if code.upper() not in CODES:
        raise DataError(
            f"Unknown axis code '{code}'; expected three letters, one each of L or R, A or P, and I or S, for example "
            "RAS: indices that grow to the right, to the front and to the head."
        )
    return code.upper()


def axis_code(geometry: Geometry) -> str:
    """The nearest axis code of a grid: where its first, second and third file index ``(x, y, z)`` grow to."""
    return _code(tuple(row[:3] for row in geometry.affine[:3]))


def patient_axes(geometry: Geometry) -> tuple[int, ...]:
    """The array axes of ``(z, y, x)`` that run nearest to head-foot, front-back and left-right."""
    return array_axes(axis_code(geometry))


def array_axes(code: str) -> tuple[int, ...]:
    """The array axes of ``(z, y, x)`` that run along head-foot, front-back and left-right under an axis code.

    >>> array_axes("RAS"), array_axes("SLP")
    ((0, 1, 2), (2, 0, 1))
    """
    axes = []
    for first, second in ("IS", "PA", "LR"):
        place = code.index(first if first in code else second)
        axes.append(2 - place)
    return tuple(axes)


def turn_geometry(geometry: Geometry, code: str) -> Geometry:
    """The grid of :func:`turn`'s result: the same points in space, counted in another order."""
    from nibabel.orientations import inv_ornt_aff

    change = _change(axis_code(geometry), code)
    shape = np.array(geometry.shape[::-1])
    affine = geometry.matrix @ inv_ornt_aff(change, tuple(shape))
    turned = shape[np.argsort(change[:, 0])]
    return Geometry.from_affine(tuple(turned[::-1].tolist()), affine)


def turn(array: np.ndarray, old: str, new: str) -> np.ndarray:
    """Flip and exchange the last three axes so that a scan with the axis code ``old`` gets the axis code ``new``.

    Args:
        array: ``(..., z, y, x)``.
        old: axis code of the array.
        new: axis code of the result.

    Returns:
        A view of the array.
    """
    from nibabel.orientations import apply_orientation

    return apply_orientation(array.T, _change(old, new)).T


@lru_cache(1024)
def _code(directions: tuple[tuple[float, ...], ...]) -> str:
    from nibabel.orientations import aff2axcodes

    affine = np.eye(4)
    affine[:3, :3] = directions
    return "".join(aff2axcodes(affine))


def _change(old: str, new: str) -> np.ndarray:
    from nibabel.orientations import axcodes2ornt, ornt_transform

    return ornt_transform(axcodes2ornt(tuple(old)), axcodes2ornt(tuple(check_code(new))))
