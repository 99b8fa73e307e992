"""What the header of one DICOM file says: which series it belongs to, and where its frames lie.

DICOM PS3.3, sections C.7.6.2 (image plane), C.7.6.16 (functional groups of enhanced multi-frame images), C.11.1
(rescaling).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from medkd.core.errors import DataError
from medkd.core.files import is_file

DIRECTORY = "1.2.840.10008.1.3.10"
# a first data element without preamble: tag, then VR or length
_BARE = re.compile(rb"[\x02\x08]\0.\0([A-Z]{2}|.{2}\0\0)", re.DOTALL)
_DERIVED = {"SEG": "a segmentation", "RTDOSE": "a dose distribution", "PR": "a presentation state"}
_TAGS = [
    "SOPClassUID", "ImageType", "Modality", "PatientID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription",
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient",
    "RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One image plane.

    Attributes:
        path: its file.
        index: number of the frame in its file, from 0.
        size: rows and columns.
        position: ImagePositionPatient, mm in LPS; empty where the file does not say it, as the next two.
        orientation: ImageOrientationPatient: direction along a row (growing column), then along a column (growing row).
        spacing: PixelSpacing in mm: between rows, then between columns.
        slope: RescaleSlope as the file states it; None where it does not. 0 would make every voxel equal, and is read
            as "not set", as ITK and others do.
        intercept: RescaleIntercept; None where the file does not state it.
    """

    path: Path
    index: int
    size: tuple[int, int]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    slope: float | None = None
    intercept: float | None = None


@dataclass(frozen=True, kw_only=True)
class Header:
    """One DICOM file.

    Attributes:
        path: the file.
        uid: SeriesInstanceUID; where anonymisation emptied it, folder, number and description of the series.
        modality: ``CT``, ``MR``, …
        patient: PatientID.
        number: SeriesNumber, as text.
        description: SeriesDescription.
        not_a_scan: why the file is no plane of a scan; empty if it is one.
        frames: its planes.
    """

    path: Path
    uid: str
    modality: str
    patient: str
    number: str
    description: str
    not_a_scan: str
    frames: tuple[Frame, ...]


def is_dicom(path: Path) -> bool:
    """Whether a file looks like DICOM, by its first bytes; also without preamble, as old exports are."""
    if not is_file(path):
        return False
    try:
        with path.open("rb") as stream:
            start = stream.read(132)
    except OSError:
        return False
    return len(start) == 132 and (start[128:] == b"DICM" or _BARE.match(start) is not None)


def read_dataset(path: Path, **options: Any) -> Any:
    """Read a file with pydicom; ``options`` as for ``pydicom.dcmread``.

    Raises:
        DataError: pydicom is not installed, or the file is damaged.
    """
    pydicom = _pydicom()
    try:
        dataset = pydicom.dcmread(path, force=True, **options)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # pydicom lets errors of any kind through on damaged files
        raise _damaged(path, error) from error
    if "TransferSyntaxUID" not in dataset.file_meta:  # a file without meta information: pydicom guessed the encoding
        implicit, little = dataset.original_encoding
        explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else explicit
    return dataset


def read_file_header(path: Path) -> Header | None:
    """Read everything but the pixels; None for a DICOMDIR, and for a file that only looked like DICOM.

    Raises:
        DataError: as for :func:`read_dataset`, or a value in the header has the wrong form.
    """
    dataset = read_dataset(path, stop_before_pixels=True, specific_tags=_TAGS)
    with told(path):
        return _header(path, dataset)


def _header(path: Path, dataset: Any) -> Header | None:
    if dataset.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY:
        return None
    if "SeriesInstanceUID" not in dataset:  # every image has it, perhaps empty
        if not dataset.preamble:
            return None
        raise EOFError("the file ends within its header")  # of which pydicom says nothing
    reason = _not_a_scan(dataset)
    number = text_of(dataset, "SeriesNumber").strip()
    description = text_of(dataset, "SeriesDescription").strip()
    return Header(
        path=path,
        uid=text_of(dataset, "SeriesInstanceUID") or f"{path.parent}|{number}|{description}",
        modality=text_of(dataset, "Modality"),
        patient=text_of(dataset, "PatientID").strip(),
        number=number,
        description=description,
        not_a_scan=reason,
        frames=() if reason else tuple(_frames(path, dataset)),
    )


def text_of(dataset: Any, key: str) -> str:
    """A value of a header as text; empty where the file does not say it."""
    return str(dataset.get(key) or "")


def has_pixels(dataset: Any) -> bool:
    """Whether the header says that there is an image."""
    return bool(dataset.get("Rows") and dataset.get("Columns"))


@contextmanager
def told(path: Path) -> Iterator[None]:
    """What pydicom stumbles over in a damaged file, which may be an error of any kind, names the file.

    Raises:
        DataError: an error was raised inside.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


def _not_a_scan(dataset: Any) -> str:
    """Why a file is no plane of a scan; empty if it is one."""
    modality = text_of(dataset, "Modality")
    if not has_pixels(dataset):
        return f"it holds no image, only an object '{_kind(dataset) or modality or 'of unknown kind'}'"
    if modality in _DERIVED:
        return f"it is {_DERIVED[modality]}, not a scan"
    colour = text_of(dataset, "PhotometricInterpretation") or "MONOCHROME2"
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if samples > 1 or not colour.startswith("MONOCHROME"):
        return f"it is a colour image ({colour}), for example a screenshot"
    if _is_localizer(dataset):
        return "it is a localizer (scout), not a stack of slices"
    return ""


def _is_localizer(dataset: Any) -> bool:
    return "LOCALIZER" in (dataset.get("ImageType") or ())


def _kind(dataset: Any) -> str:
    """What an object is, in words; empty where the file does not say it."""
    return getattr(dataset.get("SOPClassUID"), "name", "")


def _frames(path: Path, dataset: Any) -> list[Frame]:
    size = int(dataset.Rows), int(dataset.Columns)
    count = int(dataset.get("NumberOfFrames") or 1)
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or [dataset] * count
    if len(groups) != count:
        raise ValueError(f"{count} frames, but functional groups for {len(groups)}")
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    unplaced = (
        count > 1 and groups[0] is dataset
    )  # old multi-frame images (ultrasound, nuclear medicine) place no frame
    frames = []
    for index, group in enumerate(groups):
        if unplaced:
            frames.append(Frame(path=path, index=index, size=size, position=(), orientation=(), spacing=()))
        else:
            frames.append(_frame(path, index, size, [group, *shared, dataset]))
    return frames


def _frame(path: Path, index: int, size: tuple[int, int], places: list[Any]) -> Frame:
    return Frame(
        path=path,
        index=index,
        size=size,
        position=_numbers(_find(places, "PlanePositionSequence", "ImagePositionPatient"), 3),
        orientation=_numbers(_find(places, "PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        spacing=_numbers(_find(places, "PixelMeasuresSequence", "PixelSpacing"), 2),
        slope=_rescale(places, "RescaleSlope"),
        intercept=_rescale(places, "RescaleIntercept"),
    )


def _rescale(places: list[Any], key: str) -> float | None:
    value = _find(places, "PixelValueTransformationSequence", key)
    if value is None:
        return None
    number = float(value)
    if not isfinite(number):
        raise ValueError(f"{key} is {number}")
    return number


def _find(places: list[Any], sequence: str, key: str) -> Any:
    """A value from the frame's own functional groups, else the shared ones, else the file itself."""
    for place in places:
        for item in (*(place.get(sequence) or ()), place):
            if item.get(key) is not None:
                return item.get(key)
    return None


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    numbers = () if value is None else tuple(map(float, value))
    if numbers and (len(numbers) != count or not np.isfinite(numbers).all()):
        raise ValueError(f"expected {count} numbers, found {list(numbers)}")
    return numbers


def _damaged(path: Path, error: Exception) -> DataError:
    text = f"{type(error).__name__}: {error}".replace("\n", " ")
    return DataError(f"{path} is a damaged DICOM file ({text:.160}); copy or export it again.")


def _pydicom() -> ModuleType:
    try:
        import pydicom
        import pydicom.uid
    except ImportError as error:
        raise DataError(
            "Reading DICOM needs pydicom, which is not installed; install it with: pip install 'medkd[dicom]'."
        ) from error
    return pydicom
