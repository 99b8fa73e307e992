"""What a NIfTI-1 or NIfTI-2 header says, checked: sizes, type, scaling, and the ways in which it places the voxels.

A header can place its voxels three times: by the sform (a matrix), by the qform (a quaternion, an offset and
``pixdim``), and by ``pixdim`` alone. nibabel and medkd take the first that is coded; ITK takes its spacing from
``pixdim`` and, where both are coded, its directions mostly from the qform. Where they disagree, two programs see one
scan in two places, which is said here and left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from itertools import product
from math import hypot, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.errors import DataError
from medkd.core.geometry import NiftiForms, nested

HEADER_BYTES = 544  # NIfTI-2's 540 and the extension flag
_MAGICS = {b"n+1\0": 1, b"n+2\0": 2}
_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown (taken as mm), metre, millimetre, micrometre
_OVERSHOOT = 0.01  # of a quaternion's squared length beyond 1 that rounding may explain
_REL = 0.01  # of a spacing
_TINY = 1e-6  # between the entries of two matrices that are one


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """A checked header.

    Attributes:
        shape: in the file's index order.
        dtype: of the stored voxels.
        offset: of the first voxel, in bytes.
        slope: ``scl_slope``, 1 where it is not set.
        inter: ``scl_inter``, 0 where it is not set.
        affine: index → RAS+ mm, as nibabel chooses it.
        forms: all that the header says about it; None where that is one thing, in the codes that medkd writes.
        remarks: what is odd in it, each as what was expected and what was found.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    affine: np.ndarray
    forms: NiftiForms | None
    remarks: tuple[tuple[str, str], ...]


def parse_header(path: Path, start: bytes) -> NiftiHeader:
    """Read and check a header.

    Args:
        path: for error texts.
        start: the first :data:`HEADER_BYTES` of the file, uncompressed.

    Raises:
        DataError: it is not NIfTI, or the header makes no sense.
    """
    header = _raw_header(path, start)
    try:
        shape = tuple(map(int, header.get_data_shape()))
        dtype = header.get_data_dtype()
        offset = int(header.get_data_offset())
        slope, inter = header.get_slope_inter()
    except Exception as error:  # nibabel raises what the bytes lead it into: KeyError, OverflowError, ValueError, …
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if min(shape, default=0) < 0:
        raise _damaged(path, f"negative sizes {shape}")
    if offset < int(header.sizeof_hdr):
        raise _damaged(path, f"the voxels start at byte {offset}")
    with np.errstate(over="ignore", invalid="ignore"):
        affine, forms, remarks = _placement(path, header)
    return NiftiHeader(
        shape=shape,
        dtype=dtype,
        offset=offset,
        slope=1.0 if slope is None else slope,
        inter=inter or 0.0,
        affine=affine,
        forms=forms,
        remarks=tuple(remarks),
    )


def _raw_header(path: Path, start: bytes) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    version = _MAGICS.get(start[344:348]) or _MAGICS.get(start[4:8])
    if version is None:
        if start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0":
            raise DataError(f"{path} is only the header of a header/image pair; save the scan as one .nii.gz file.")
        raise DataError(f"{path} is not a NIfTI file, in spite of its name; export it again as .nii.gz.")
    kind, size = (Nifti1Header, 348) if version == 1 else (Nifti2Header, 540)
    if len(start) < size:
        raise DataError(
            f"{path} is truncated: {len(start)} bytes are less than a NIfTI header; copy or download the file again."
        )
    try:
        return kind.from_fileobj(BytesIO(start[:size] + b"\0\0\0\0"), check=False)  # extensions are of no interest
    except Exception as error:  # see above
        raise _damaged(path, str(error)) from error


def _placement(path: Path, header: Any) -> tuple[np.ndarray, NiftiForms | None, list[tuple[str, str]]]:
    """The affine that counts, all forms where they are not plain, and what is odd about them."""
    remarks: list[tuple[str, str]] = []
    placed = _placed(path, header, _unit(int(header.structarr["xyzt_units"]), remarks))
    if placed.sform is None and (placed.fault or not placed.sound):
        raise _damaged(path, placed.fault or f"voxel sizes {placed.pixdim.tolist()}")
    if placed.fault:
        remarks.append(("a qform that places the voxels", placed.fault))
    elif not placed.sound:
        remarks.append(("voxel sizes above 0 in pixdim", f"{_listed(placed.pixdim)} beside a sane sform"))
    affine = placed.affine
    remarks += _disagreements(header.get_data_shape(), affine, placed)
    if placed.sform_code == placed.qform_code == 1 and not remarks:
        return affine, None, remarks
    return affine, placed.forms(), remarks


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """The ways in which a header places its voxels, in mm.

    Attributes:
        pixdim: voxel sizes.
        affine: the one that counts.
        sform: where it is coded.
        qform: where it is coded and makes sense.
        fault: why a coded qform makes no sense, or nothing.
    """

    pixdim: np.ndarray
    affine: np.ndarray
    sform: np.ndarray | None
    sform_code: int
    qform: np.ndarray | None
    qform_code: int
    fault: str

    @property
    def sound(self) -> bool:
        """Whether the voxel sizes in ``pixdim`` can be used."""
        return bool(np.isfinite(self.pixdim).all() and (self.pixdim > 0).all())

    def forms(self) -> NiftiForms:
        """All that is to be written back with what is made from the scan."""
        pixdim = self.pixdim if self.sound else np.linalg.norm(self.affine[:3, :3], axis=0)
        return NiftiForms(
            sform=None if self.sform is None else nested(self.sform),
            sform_code=self.sform_code,
            qform=None if self.qform is None else nested(self.qform),
            qform_code=0 if self.qform is None else self.qform_code,
            pixdim=tuple(pixdim.tolist()),
        )


def _placed(path: Path, header: Any, scale: float) -> _Placed:
    fields = header.structarr
    sform_code, qform_code = int(fields["sform_code"]), int(fields["qform_code"])
    sform = _sform(path, header, scale) if sform_code else None
    qform, fault = _qform(fields, scale) if qform_code else (None, "")
    affine = qform if sform is None else sform
    if affine is None:  # by the voxel sizes alone
        affine = _scaled(header.get_base_affine(), scale)
    return _Placed(
        pixdim=np.array(fields["pixdim"][1:4], dtype=np.float64) * scale,
        affine=affine,
        sform=sform,
        sform_code=sform_code,
        qform=qform,
        qform_code=qform_code,
        fault=fault,
    )


def _sform(path: Path, header: Any, scale: float) -> np.ndarray:
    sform = _scaled(header.get_sform(), scale)
    if not _usable(sform):
        raise _damaged(path, f"its sform {nested(sform[:3])} gives no valid voxel size and orientation")
    return sform


def _unit(code: int, remarks: list[tuple[str, str]]) -> float:
    """Millimetres per unit of length."""
    unit = code & 7
    if unit not in _UNITS:
        remarks.append(("a unit of length (1, 2 or 3) in xyzt_units", f"{unit}, taken as mm"))
    return _UNITS.get(unit, 1.0)


def _qform(fields: Any, scale: float) -> tuple[np.ndarray | None, str]:
    """The qform's matrix in mm, or None and why there is none."""
    quaternion = [float(fields[f"quatern_{letter}"]) for letter in "bcd"]
    offsets = np.array([fields[f"qoffset_{axis}"] for axis in "xyz"], dtype=np.float64)
    sizes = np.array(fields["pixdim"][1:4], dtype=np.float64)
    length = hypot(*quaternion)
    finite = np.isfinite([length, *offsets, *sizes]).all()
    if not finite or not (sizes > 0).all():
        stated = f"sizes {_listed(sizes)}, quaternion {_listed(quaternion)}, offset {_listed(offsets)}"
        return None, f"its qform has {stated}"
    if length > sqrt(1 + _OVERSHOOT):
        return None, f"the quaternion of its qform is {length:.4g} long, more than 1"
    if length > 1:  # by rounding: the rotation is one by 180 degrees
        quaternion = [value / length for value in quaternion]
    flip = -1.0 if float(fields["pixdim"][0]) < 0 else 1.0  # 0 counts as 1, as in the reference implementation
    matrix = np.eye(4)
    matrix[:3, :3] = _rotation(*quaternion) * (sizes * scale * (1, 1, flip))
    matrix[:3, 3] = offsets * scale
    return matrix, ""


def _rotation(b: float, c: float, d: float) -> np.ndarray:
    """The rotation of the unit quaternion ``a + bi + cj + dk`` (nifti1.h, method 2)."""
    a = sqrt(max(1 - b * b - c * c - d * d, 0.0))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )


def _disagreements(shape: tuple[int, ...], affine: np.ndarray, placed: _Placed) -> list[tuple[str, str]]:
    """What other programs see in another place or size than the affine says."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    qform, pixdim = placed.qform, placed.pixdim
    if qform is not None and len(shape) >= 3 and np.abs(affine - qform).max() > _TINY:
        moved = _farthest(shape, affine - qform)
        if moved > 0.1 * float(lengths.min()):
            found = f"sform and qform that place the same voxels up to {moved:.3g} mm apart"
            return [("sform and qform that agree", found)]
    if placed.sound and (np.abs(lengths - pixdim) > _REL * lengths + np.minimum(_REL * lengths, 1e-4)).any():
        found = f"pixdim {_listed(pixdim)} mm beside {_listed(lengths)} mm of the sform"
        return [("one voxel size", found)]
    return []


def _farthest(shape: tuple[int, ...], difference: np.ndarray) -> float:
    """How far in mm two affines move a corner of the volume apart, at most."""
    ends = [(0, max(size - 1, 0)) for size in shape[:3]]
    corners = np.array([[*corner, 1] for corner in product(*ends)]).T
    apart = (difference @ corners)[:3]
    return float(np.linalg.norm(apart, axis=0).max())


def _scaled(matrix: np.ndarray, scale: float) -> np.ndarray:
    result = np.array(matrix, dtype=np.float64)
    result[:3] *= scale
    return result


def _usable(matrix: np.ndarray) -> bool:
    return bool(np.isfinite(matrix).all() and abs(np.linalg.det(matrix[:3, :3])) >= 1e-12)


def _listed(values: Any) -> str:
    return " × ".join(f"{float(value):.4g}" for value in values)


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} has a damaged NIfTI header ({why}); export it again.")
