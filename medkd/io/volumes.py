"""Scans and label maps: one way to read and write them, whatever the format.

Arrays are ``(z, y, x)``, the reverse of a file's index order; the :class:`~medkd.core.geometry.Geometry` keeps the
file's own affine, so oblique and left-handed grids survive a round trip unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import DTypeLike

from medkd.core.errors import DataError
from medkd.core.files import atomic_path, check_file
from medkd.core.geometry import Geometry, NiftiForms
from medkd.io import dicom, itk, mgh, nifti, pictures
from medkd.io.writing.slicer import segment_fields
from medkd.io.writing.structures import Structure
from medkd.io.writing.tables import label_table

READERS: dict[str, ModuleType] = {
    ".nii.gz": nifti, ".nii": nifti, ".seg.nrrd": itk, ".nrrd": itk, ".nhdr": itk, ".mha": itk, ".mhd": itk,
    ".mgz": mgh, ".mgh": mgh,
}  # fmt: skip
PICTURES = pictures.ENDINGS
"""Endings of pictures, which are read where they are named, but not looked for among scans: previews lie there."""
SEGMENTATION_ENDING = ".seg.nrrd"
"""Of NRRD files that 3D Slicer opens as segmentations; they are label maps, never scans."""
WRITABLE = (".nii.gz", ".nii", SEGMENTATION_ENDING, ".nrrd", ".mha", *PICTURES)


_FLAT = 1e-6
"""Share of the box of a voxel's edges that the voxel must fill, else its edges lie in a plane."""


@dataclass(frozen=True)
class Volume:
    """Voxels ``(z, y, x)`` and where they lie.

    Attributes:
        remarks: what is odd in the file's header: pairs of what was expected and what was found.
    """

    array: np.ndarray
    geometry: Geometry
    remarks: tuple[tuple[str, str], ...] = ()


def file_ending(path: Path) -> str | None:
    """The ending of a scan that medkd can read (``".nii.gz"``), or None."""
    name = path.name.lower()
    for ending in READERS:
        if name.endswith(ending):
            return ending
    return None


def any_ending(path: Path) -> str | None:
    """:func:`file_ending`, of pictures, too."""
    suffix = path.suffix.lower()
    return file_ending(path) or (suffix if suffix in PICTURES else None)


def stem(path: Path) -> str:
    """File name without the image ending: ``a.b.nii.gz`` → ``a.b``."""
    ending = any_ending(path) or ""
    return path.name[: len(path.name) - len(ending)]


def read_geometry(path: Path) -> Geometry:
    """Read only the header.

    Raises:
        DataError: as for :func:`read_volume`, as far as the header shows it.
    """
    path = Path(path)
    reader = _reader(path)
    if reader is nifti:
        header = nifti.parsed_header(path)
        return _geometry(path, _spatial(path, header.shape), header.affine, header.forms)
    shape, affine = reader.read_header(path)
    return _geometry(path, _spatial(path, shape), affine)


def header_remarks(path: Path) -> tuple[tuple[str, str], ...]:
    """What is odd in the header of a file that can be read: pairs of what was expected and what was found.

    Raises:
        DataError: the header cannot be read.
    """
    path = Path(path)
    if file_ending(path) not in (".nii", ".nii.gz"):
        return ()
    return nifti.parsed_header(path).remarks if _reader(path) is nifti else ()


def read_shape(path: Path) -> tuple[int, ...]:
    """All axes of a file in its own index order, from the header; unlike :func:`read_geometry` also for 2D and 4D.

    Raises:
        DataError: the header cannot be read.
    """
    path = Path(path)
    shape, _ = _reader(path).read_header(path)
    return tuple(shape)


def read_volume(path: Path, dtype: DTypeLike | None = np.float32) -> Volume:
    """Read a 3D scan; a trailing axis of length 1 is dropped.

    Args:
        path: NIfTI, NRRD, MetaImage or MGH file, a folder with the slices of one DICOM series, or a multi-frame DICOM
            file.
        dtype: type of the voxels; None keeps the file's type (float where the file scales its values).

    Raises:
        DataError: the file is missing, of an unknown format, truncated, damaged, not 3D, or says no voxel size.
    """
    path = Path(path)
    stored = _read(path)
    shape = _spatial(path, stored.voxels.shape)
    return _volume(path, stored.voxels.reshape(shape, order="F"), stored, dtype)


def read_channels(path: Path, dtype: DTypeLike | None = None) -> list[Volume]:
    """Read a 3D or 4D scan as one volume per channel (last file axis), on one grid.

    Raises:
        DataError: as for :func:`read_volume`; also for more than four axes.
    """
    path = Path(path)
    stored = _read(path)
    voxels = stored.voxels
    if voxels.ndim != 4 or voxels.shape[3] == 1:
        shape = _spatial(path, voxels.shape)
        return [_volume(path, voxels.reshape(shape, order="F"), stored, dtype)]
    channels = []
    for channel in range(voxels.shape[3]):
        channels.append(_volume(path, voxels[..., channel], stored, dtype))
    return channels


def read_case_file(path: Path) -> list[Volume]:
    """The channels that one of a case's files holds: one, of a picture as many as it has colours.

    Raises:
        DataError: as for :func:`read_volume`.
    """
    if any_ending(Path(path)) in PICTURES:
        return read_channels(path, np.float32)
    return [read_volume(path)]


def split_channels(path: Path, folder: Path, case: str | None = None) -> list[Path]:
    """Write each channel of a 4D scan to ``folder/CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, … and return the paths."""
    name = case or stem(Path(path))
    paths = []
    for i, channel in enumerate(read_channels(path)):
        paths.append(Path(folder) / f"{name}_{i:04d}.nii.gz")
        write_volume(paths[-1], channel.array, channel.geometry)
    return paths


def read_image(paths: Sequence[Path], case: str) -> tuple[np.ndarray, Geometry]:
    """Read the channels of a case.

    Args:
        paths: one file (or folder of a DICOM series) per channel; or all slices of one DICOM series, as the only
            channel.
        case: case id, for error texts.

    Returns:
        The image ``(C, z, y, x)``, float32, and the grid of the first channel.

    Raises:
        DataError: a channel is unreadable, holds NaN or infinity, or lies on another grid than the first.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise DataError(f"Case {case} has no image files; expected one per channel.")
    if len(files) > 1 and all(map(_is_dicom_file, files)):
        stored = _Stored(*dicom.read_files(files))
        volume = _volume(files[0].parent, stored.voxels, stored, np.float32)
        return volume.array[None], volume.geometry
    if any_ending(files[0]) in PICTURES:
        return _read_pictures(files, case)
    first = _read_channel(files[0], case, None)
    if len(files) == 1:
        return first.array[None], first.geometry
    geometry = first.geometry
    image = np.empty((len(files), *geometry.shape), np.float32)
    image[0] = first.array
    del first  # two channels at once are enough
    for channel, path in enumerate(files[1:], start=1):
        image[channel] = _read_channel(path, case, (files[0], geometry)).array
    return image, geometry


def _read_pictures(files: Sequence[Path], case: str) -> tuple[np.ndarray, Geometry]:
    """The channels of all files one after the other, as nnU-Net stacks them."""
    from medkd.io.checks import finite_finding, grid_findings

    every: list[Volume] = []
    findings = []
    for path in files:
        for volume in read_case_file(path):
            every.append(volume)
            findings += grid_findings(case, files[0], every[0].geometry, path, volume.geometry)
            findings += finite_finding(case, path, volume.array)
    wrong = [finding for finding in findings if finding.error]
    if wrong:
        raise DataError(wrong[0].text())
    return np.stack([volume.array for volume in every]), every[0].geometry


def _read_channel(path: Path, case: str, grid: tuple[Path, Geometry] | None) -> Volume:
    """One channel of a case, whose voxels are finite and lie on the grid of the first file."""
    from medkd.io.checks import finite_finding, grid_findings

    volume = read_volume(path)
    findings = [] if grid is None else grid_findings(case, *grid, path, volume.geometry)
    findings = [finding for finding in findings if finding.error]
    findings += finite_finding(case, path, volume.array)
    if findings:
        raise DataError(findings[0].text())
    return volume


def read_label(path: Path) -> Volume:
    """Read a label map as int16; float files are accepted where they hold whole numbers.

    Raises:
        DataError: as for :func:`read_volume` and :func:`as_label`.
    """
    return as_label(read_volume(path, None), Path(path))


def as_label(volume: Volume, path: Path) -> Volume:
    """Turn the voxels of ``path``, as read, into int16 label values.

    Raises:
        DataError: values are not whole numbers or do not fit into 16 bits.
    """
    array = volume.array
    if array.dtype.kind == "f":
        whole = np.rint(array)
        # not exactly: files that scale their values store slopes like 1/255, and 255 × 1/255 = 1.0000001
        wrong = ~(np.abs(array - whole) <= 1e-3)  # negated, so that NaN counts as wrong
        if wrong.any():
            example, count = float(array[wrong][0]), np.count_nonzero(wrong)
            raise DataError(
                f"{path}: a label map must hold whole numbers, found {example:.6g} ({count} such voxels); export it "
                "again with nearest-neighbour interpolation, and check that it is not the image."
            )
        array = whole
    if array.size and (array.min() < -32768 or array.max() > 32767):
        raise DataError(
            f"{path}: label values must lie within -32768..32767, found {array.min()}..{array.max()}; is this the "
            "image?"
        )
    return Volume(np.ascontiguousarray(array, dtype=np.int16), volume.geometry, volume.remarks)


def write_volume(path: Path, array: np.ndarray, geometry: Geometry, structures: Sequence[Structure] = ()) -> None:
    """Write voxels ``(z, y, x)`` atomically; the ending decides the format (``.nii.gz``, ``.nii``, ``.nrrd``,
    ``.seg.nrrd``, ``.mha``).

    Booleans become uint8, 64-bit integers the smallest signed type that holds them, half precision float32.

    Args:
        path: of the file.
        array: the voxels.
        geometry: where they lie.
        structures: of a label map, one per value; NIfTI gets their names and colours as a header extension, NRRD as 3D
            Slicer's fields.

    Raises:
        DataError: the array does not fit the geometry, the format is unknown, or the file cannot be written.
    """
    path = Path(path)
    if tuple(array.shape) != tuple(geometry.shape):
        raise DataError(f"{path}: expected an array of the geometry's shape {geometry.shape}, found {array.shape}.")
    ending = any_ending(path)
    if ending not in WRITABLE:
        raise DataError(f"{path}: medkd writes {', '.join(WRITABLE)}; choose one of these endings.")
    voxels = _storable(array).T
    with atomic_path(path) as temporary:
        if ending in PICTURES:
            pictures.write_picture(temporary, _storable(array), geometry.spacing, path)
        elif READERS[ending] is nifti:
            table = label_table(structures) if structures else ""
            nifti.write_nifti(temporary, voxels, geometry.matrix, geometry.forms, table)
        else:
            fields = segment_fields(array, structures) if structures and ending.endswith(".nrrd") else {}
            itk.write_itk(temporary, voxels, geometry.matrix, fields)


def _reader(path: Path) -> ModuleType:
    if path.is_dir() or _is_dicom_file(path):
        return dicom
    ending = any_ending(path)
    if ending is None:
        raise DataError(
            f"{path}: unknown image format; medkd reads {', '.join(READERS)}; convert the scan, best to .nii.gz."
        )
    if path.exists() or path.is_symlink():  # of a missing file the reader itself says so
        check_file(path)
    return pictures if ending in PICTURES else READERS[ending]


def _is_dicom_file(path: Path) -> bool:
    """DICOM files have any name, or none of ours."""
    return file_ending(path) is None and dicom.is_dicom(path)


def _spatial(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The three spatial sizes, in file order."""
    spatial = shape
    while len(spatial) > 3 and spatial[-1] == 1:
        spatial = spatial[:-1]
    if len(spatial) == 4:
        raise DataError(
            f"{path}: expected a 3D image, found 4D with {spatial[3]} volumes {shape}; write each channel or time "
            "point to its own file (medkd.io.volumes.split_channels does it)."
        )
    if len(spatial) != 3 or 0 in spatial:
        raise DataError(
            f"{path}: expected a 3D image, found the shape {shape}; medkd needs one volume with an x, a y and a z axis."
        )
    return spatial


@dataclass(frozen=True)
class _Stored:
    """Voxels in the file's index order, their affine, and what a NIfTI header says besides; see :class:`Volume`."""

    voxels: np.ndarray
    affine: np.ndarray
    forms: NiftiForms | None = None
    remarks: tuple[tuple[str, str], ...] = ()


def _read(path: Path) -> _Stored:
    reader = _reader(path)
    if reader is nifti:
        voxels, header = nifti.read_parsed(path)
        return _Stored(voxels, header.affine, header.forms, header.remarks)
    return _Stored(*reader.read_voxels(path))


def _geometry(path: Path, shape: tuple[int, ...], affine: np.ndarray, forms: NiftiForms | None = None) -> Geometry:
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > _FLAT * sides.prod():
        raise DataError(
            f"{path}: the header gives no valid voxel size and orientation (affine {affine[:3].tolist()}); export it "
            "again."
        )
    return Geometry.from_affine(shape[::-1], affine, forms)


def _volume(path: Path, voxels: np.ndarray, stored: _Stored, dtype: DTypeLike | None) -> Volume:
    geometry = _geometry(path, voxels.shape, stored.affine, stored.forms)
    if dtype is None:
        dtype = voxels.dtype.newbyteorder("=")
    with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32 becomes infinity and is found as such
        array = np.ascontiguousarray(voxels.T, dtype=dtype)
    if not array.flags.writeable:
        array = array.copy()
    return Volume(array, geometry, stored.remarks)


def _storable(array: np.ndarray) -> np.ndarray:
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        low, high = 0, 0
        if array.size:
            low, high = int(array.min()), int(array.max())
        signed = np.min_scalar_type(min(low, -1))
        return array.astype(np.promote_types(signed, np.min_scalar_type(high)))
    return array
