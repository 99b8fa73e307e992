"""Small DICOM series, made by the tests with pydicom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    CTImageStorage,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SHAPE = (6, 8, 10)
Change = Callable[[int, Any], None]


def stored_values(shape: tuple[int, ...] = SHAPE, low: int = 0, high: int = 4000, seed: int = 0) -> np.ndarray:
    """Random integers ``(z, y, x)``, so that every mistake in order or orientation shows."""
    return np.random.default_rng(seed).integers(low, high, shape)


def write_series(
    folder: Path,
    stored: np.ndarray | None = None,
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: tuple[float, float] = (0.75, 0.5),
    step: float = 2.5,
    origin: Sequence[float] = (-31.5, 12.25, -700.0),
    slope: float = 1.0,
    intercept: float = -1024.0,
    signed: bool = False,
    syntax: str = ExplicitVRLittleEndian,
    series: str | None = None,
    change: Change | None = None,
    name: Callable[[int], str] = lambda z: f"slice{(z * 61 + 3) % 97:02d}",
) -> list[Path]:
    """Write one file per plane and return the paths in the order of the stack.

    Args:
        folder: made where it is missing.
        stored: integers ``(z, y, x)``.
        orientation: ImageOrientationPatient.
        spacing: between rows, between columns, mm.
        step: between planes along the normal, mm.
        origin: of the first plane.
        slope: RescaleSlope.
        intercept: RescaleIntercept.
        signed: PixelRepresentation.
        syntax: transfer syntax without compression.
        series: SeriesInstanceUID.
        change: edits the data set of plane z before it is written.
        name: file name of plane z; not in the order of the stack by default.
    """
    stored = stored_values() if stored is None else stored
    normal = np.cross(orientation[:3], orientation[3:])
    uid = series or generate_uid()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for z, plane in enumerate(stored):
        dataset = plane_dataset(plane, signed=signed, syntax=syntax)
        dataset.SeriesInstanceUID = uid
        dataset.InstanceNumber = z + 1
        dataset.PixelSpacing = list(spacing)
        dataset.ImageOrientationPatient = list(orientation)
        dataset.ImagePositionPatient = [round(float(v), 6) for v in np.asarray(origin) + z * step * normal]
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        if change is not None:
            change(z, dataset)
        paths.append(folder / name(z))
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def plane_dataset(plane: np.ndarray, *, signed: bool = False, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """A CT image ``(y, x)`` or a multi-frame one ``(frames, y, x)`` without a place."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.Modality, dataset.PatientID, dataset.SeriesNumber = "CT", "", 2
    dataset.StudyInstanceUID, dataset.ImageType = "1.2.3", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, int(signed)
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    dataset.PixelData = plane.astype(f"{order}{'i' if signed else 'u'}2").tobytes()
    return dataset


def on_slice(number: int, **tags: Any) -> Callable[[int, Any], None]:
    """Set tags on one slice, or on all of them (-1)."""

    def change(z: int, dataset: Any) -> None:
        if z == number or number < 0:
            for tag, value in tags.items():
                delattr(dataset, tag) if value is None else setattr(dataset, tag, value)

    return change


def clutter(folder: Path) -> None:
    """What lies beside the slices on a disc from a hospital."""
    folder.mkdir(parents=True, exist_ok=True)
    directory = plane_dataset(np.zeros((2, 2)))
    directory.file_meta.MediaStorageSOPClassUID = directory.SOPClassUID = MediaStorageDirectoryStorage
    for name in ("DICOMDIR", "directory.bak"):
        directory.save_as(folder / name, enforce_file_format=True)
    (folder / "readme.txt").write_text("viewer")
    (folder / "AUTORUN").write_bytes(b"\x08\x00 not DICOM at all" + bytes(300))
    (folder / "empty").touch()
    (folder / "._slice").write_bytes(bytes(128) + b"DICM")
    write_series(folder / ".trash")
