"""The DICOM series that a label map belongs to: its headers in the order of the volume, and label maps on its grid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.io.dicom import stack_of
from medkd.io.dicom_header import read_dataset, text_of
from medkd.io.dicom_stack import Stack
from medkd.io.orientation import axis_code, turn, turn_geometry

_log = logging.getLogger(__name__)
_IMAGE_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
_SHARED_UIDS = ("StudyInstanceUID", "SeriesInstanceUID")
# type 2: they must be there, though they may be empty; old and anonymised files lack them
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)


@dataclass(frozen=True)
class SourceSeries:
    """A series of slices.

    Attributes:
        where: its folder, for sentences.
        stack: its planes in the order of the volume.
        headers: of its files, without pixels: one per plane in that order, or the only one of a multi-frame image.
    """

    where: Path
    stack: Stack
    headers: tuple[Any, ...]

    @property
    def geometry(self) -> Geometry:
        """The grid of the volume."""
        return Geometry.from_affine(self.stack.shape[::-1], self.stack.affine)

    @property
    def step(self) -> float:
        """Distance of neighbouring planes in mm."""
        return self.geometry.spacing[0]

    def fitted(self, array: np.ndarray, geometry: Geometry) -> np.ndarray:
        """A label map in the order of the planes: axes are flipped and exchanged where that is enough, no voxel is
        interpolated.

        Raises:
            DataError: it lies on another grid.
        """
        code = axis_code(self.geometry)
        self.check_grid(geometry)
        return np.ascontiguousarray(turn(array, axis_code(geometry), code))

    def check_grid(self, geometry: Geometry) -> None:
        """A label map on this grid can be put on the series without interpolation.

        Raises:
            DataError: it cannot.
        """
        differing = turn_geometry(geometry, axis_code(self.geometry)).differences(self.geometry)
        if differing:
            other = ", ".join(differing)
            raise DataError(
                f"The scan does not lie on the grid of the DICOM series in {self.where} (other {other}), to whose "
                "slices its label map must refer; give the series that the scan was made from."
            )


def read_source(paths: Sequence[Path]) -> SourceSeries:
    """Read the headers of a series.

    UIDs that its files lack, mostly since anonymisation emptied them, are replaced by ones made from what they say, the
    same ones every time; a warning names them.

    Args:
        paths: as for :func:`medkd.io.dicom.stack_of`.

    Raises:
        DataError: the series is none that medkd reads, or mixes images of one and of several frames.
    """
    stack = stack_of(paths)
    where = Path(paths[0]) if Path(paths[0]).is_dir() else Path(paths[0]).parent
    files = list(dict.fromkeys(frame.path for frame in stack.frames))
    if 1 < len(files) < len(stack.frames):
        raise DataError(
            f"{where} mixes images of one and of several frames, to which a segmentation cannot refer; export the "
            "series in one form."
        )
    headers = [_read_header(path) for path in files]
    if not text_of(headers[0], "FrameOfReferenceUID"):
        uid = _made_uid(headers[0], "FrameOfReferenceUID")
        for header in headers:
            header.FrameOfReferenceUID = uid
    _complete(headers, where)
    return SourceSeries(where, stack, tuple(headers))


def read_reference(path: Path) -> Any:
    """The header of an image that derived objects refer to, completed as that of :func:`read_source`.

    Raises:
        DataError: it cannot be read, or does not say what kind of image it is.
    """
    header = _read_header(path)
    _complete([header], path)
    return header


def _read_header(path: Path) -> Any:
    dataset = read_dataset(path, stop_before_pixels=True)
    for key in _MAY_BE_EMPTY:
        if key not in dataset:
            setattr(dataset, key, None if key in ("PatientBirthDate", "StudyDate", "StudyTime") else "")
    return dataset


def _complete(headers: Sequence[Any], where: Path) -> None:
    """Fill in the UIDs that headers of one series lack.

    Raises:
        DataError: a file does not say what kind of image it is.
    """
    first = headers[0]
    lacking = [key for key in _SHARED_UIDS if not text_of(first, key)]
    if not all(map(_instance, headers)):
        lacking.append("SOPInstanceUID")
    shared = {key: text_of(first, key) or _made_uid(first, key) for key in _SHARED_UIDS}
    for header in headers:
        header.SOPClassUID = _image_class(header)
        header.SOPInstanceUID = _instance(header) or _made_uid(header, "SOPInstanceUID")
        for key, value in shared.items():
            setattr(header, key, value)
    if lacking:
        _log.warning(
            "%s has no %s; what is derived from it gets one made from its headers, by which no archive finds the scan.",
            where,
            " and no ".join(lacking),
        )


def _instance(header: Any) -> str:
    """The UID of the image; empty where the file does not say it."""
    return text_of(header, "SOPInstanceUID") or text_of(header.file_meta, "MediaStorageSOPInstanceUID")


def _image_class(header: Any) -> str:
    """The UID of what kind of image it is.

    Raises:
        DataError: it does not say that.
    """
    stated = text_of(header, "SOPClassUID") or text_of(header.file_meta, "MediaStorageSOPClassUID")
    found = stated or _IMAGE_CLASSES.get(text_of(header, "Modality"), "")
    if not found:
        raise DataError(
            f"{header.filename} does not say what kind of image it is (SOPClassUID), which every object derived from "
            "it must repeat; export it again."
        )
    return found


def _made_uid(header: Any, key: str) -> str:
    """A UID that follows from what a header says of its series, and for an image of its place."""
    from pydicom.uid import generate_uid

    said = [text_of(header, other) for other in (*_SHARED_UIDS, "FrameOfReferenceUID", "StudyDate", "PatientID")]
    if key in ("SeriesInstanceUID", "SOPInstanceUID"):
        said += [text_of(header, other) for other in ("SeriesNumber", "SeriesDescription")]
    if key == "SOPInstanceUID":
        said += [text_of(header, other) for other in ("InstanceNumber", "ImagePositionPatient")]
    return str(generate_uid(entropy_srcs=["medkd", key, *said]))


def need_dicom_package(package: str = "highdicom") -> None:
    """DICOM objects are written by packages of the extra ``dicom``.

    Raises:
        DataError: the package is not installed.
    """
    try:
        missing = find_spec(package) is None
    except ValueError:  # an entry of sys.modules that is None
        missing = True
    if missing:
        raise DataError(
            f"Writing DICOM needs {package}, which is not installed; install it with: pip install 'medkd[dicom]'."
        )
