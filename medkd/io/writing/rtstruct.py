"""DICOM RT Structure Sets: the outlines of every structure in every slice, along the edges of the voxels.

DICOM PS3.3, A.19, C.8.8.5 and C.8.8.6.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.files import atomic_path
from medkd.io.dicom_stack import plane_axes
from medkd.io.writing.contours import has_holes, outlines
from medkd.io.writing.derived import derived_object, reference, save_object
from medkd.io.writing.maker import Maker, long_string
from medkd.io.writing.source import SourceSeries
from medkd.io.writing.structures import Structure, mask_of
from medkd.io.writing.terms import Code

_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY = "1.2.840.10008.3.1.2.3.1"


def write_rtstruct(
    path: Path,
    array: np.ndarray,
    source: SourceSeries,
    structures: Sequence[Structure],
    maker: Maker | None = None,
) -> None:
    """Write a label map as an RT Structure Set, atomically.

    A slice whose outlines have holes states them as ``CLOSEDPLANAR_XOR``; others are ``CLOSED_PLANAR``.

    Args:
        path: of the file.
        array: label map ``(z, y, x)`` on the source's grid, in the order of its planes.
        source: the series that it was predicted from.
        structures: the regions of interest in order; they may overlap.
        maker: the model; None for an unnamed one.

    Raises:
        DataError: the file cannot be written.
    """
    maker = maker or Maker()
    names = [structure.name for structure in structures]
    dataset = derived_object(source.headers[0], _STRUCTURE_SET, "RTSTRUCT", maker, names, number=200)
    now = datetime.datetime.now()
    dataset.StructureSetLabel = long_string(maker.algorithm, 16)
    dataset.StructureSetName = long_string(f"Structures by {maker.algorithm}")
    dataset.StructureSetDate, dataset.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    dataset.ApprovalStatus = "UNAPPROVED"
    frame_of_reference = str(source.headers[0].FrameOfReferenceUID)
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = frame_of_reference, ""
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source, frame_of_reference)]
    dataset.StructureSetROISequence = []
    dataset.ROIContourSequence = []
    dataset.RTROIObservationsSequence = []
    present = set(np.unique(array).tolist())
    for number, structure in enumerate(structures, start=1):
        dataset.StructureSetROISequence.append(_region(number, structure, frame_of_reference))
        polygons = _outlines(array, structure) if present & set(structure.values) else {}
        dataset.ROIContourSequence.append(_contours(number, structure, polygons, source))
        dataset.RTROIObservationsSequence.append(_observation(number, structure))
    with atomic_path(path) as temporary:
        save_object(dataset, temporary)


def _frame_of_reference(source: SourceSeries, uid: str) -> Any:
    from pydicom.dataset import Dataset

    first = source.headers[0]
    series = Dataset()
    series.SeriesInstanceUID = str(first.SeriesInstanceUID)
    series.ContourImageSequence = [reference(header) for header in source.headers]
    study = Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY, str(first.StudyInstanceUID)
    study.RTReferencedSeriesSequence = [series]
    item = Dataset()
    item.FrameOfReferenceUID = uid
    item.RTReferencedStudySequence = [study]
    return item


def _region(number: int, structure: Structure, frame_of_reference: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ROINumber, item.ReferencedFrameOfReferenceUID = number, frame_of_reference
    item.ROIName = long_string(structure.name) or f"region {number}"
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    return item


def _outlines(array: np.ndarray, structure: Structure) -> dict[int, list[np.ndarray]]:
    """Plane → outlines of one structure, of the planes where it is."""
    mask = mask_of(array, structure)
    return {plane: outlines(mask[plane]) for plane in np.flatnonzero(mask.any(axis=(1, 2))).tolist()}


def _contours(number: int, structure: Structure, planes: dict[int, list[np.ndarray]], source: SourceSeries) -> Any:
    """The item of one structure; the sequence of contours is left out where there is none."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ROIDisplayColor, item.ReferencedROINumber = list(structure.colour), number
    contours = []
    for plane, polygons in planes.items():
        kind = "CLOSEDPLANAR_XOR" if has_holes(polygons) else "CLOSED_PLANAR"
        for polygon in polygons:
            contours.append(_contour(polygon, kind, plane, source))
    if contours:
        item.ContourSequence = contours
    return item


def _contour(polygon: np.ndarray, kind: str, plane: int, source: SourceSeries) -> Any:
    from pydicom.dataset import Dataset
    from pydicom.valuerep import DSfloat

    frame = source.stack.frames[plane]
    across, down, _ = plane_axes(frame, str(source.where))
    between_rows, between_columns = frame.spacing
    columns, rows = polygon.T[..., None]
    points = np.array(frame.position) + columns * between_columns * across + rows * between_rows * down
    header = source.headers[plane if len(source.headers) > 1 else 0]
    image = reference(header)
    if len(source.headers) == 1:
        image.ReferencedFrameNumber = frame.index + 1
    item = Dataset()
    item.ContourImageSequence = [image]
    item.ContourGeometricType, item.NumberOfContourPoints = kind, len(polygon)
    item.ContourData = [DSfloat(round(value, 4), auto_format=True) for value in points.ravel().tolist()]
    return item


def _observation(number: int, structure: Structure) -> Any:
    """What a region is: with its coded term, where that is known."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ObservationNumber, item.ReferencedROINumber = number, number
    term = structure.term
    if term is not None:
        item.SegmentedPropertyCategoryCodeSequence = [_coded(term.category)]
        kind = _coded(term.kind)
        if term.side is not None:
            kind.SegmentedPropertyTypeModifierCodeSequence = [_coded(term.side)]
        item.RTROIIdentificationCodeSequence = [kind]
    item.RTROIInterpretedType, item.ROIInterpreter = "", ""
    return item


def _coded(code: Code) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item
