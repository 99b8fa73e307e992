"""DICOM Segmentation objects by highdicom: BINARY, one bit plane per segment, and LABELMAP (DICOM 2024c).

DICOM PS3.3, A.51 and C.8.20. Frames refer to the source's images, and lie where these lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medkd.core.errors import DataError
from medkd.core.files import atomic_path
from medkd.io.writing.derived import series_number
from medkd.io.writing.maker import MANUFACTURER, Maker, character_set, concept, long_string, quiet_highdicom
from medkd.io.writing.source import SourceSeries
from medkd.io.writing.structures import Structure, mask_of, overlapping
from medkd.io.writing.terms import UNKNOWN

SegmentationKind = Literal["binary", "labelmap"]
SEGMENTATION_KINDS: tuple[SegmentationKind, ...] = ("binary", "labelmap")


def check_kind(structures: Sequence[Structure], kind: str) -> None:
    """Whether structures can be written in a kind.

    Raises:
        DataError: there is no such kind, or structures overlap, for which LABELMAP has no place.
    """
    if kind not in SEGMENTATION_KINDS:
        raise DataError(f"--seg-kind expects {' or '.join(SEGMENTATION_KINDS)}, found '{kind}'.")
    pair = overlapping(structures)
    if kind == "labelmap" and pair is not None:
        raise DataError(
            f"A DICOM-SEG of the kind labelmap has one structure per voxel, but {pair[0]} and {pair[1]} overlap; "
            "choose --seg-kind binary."
        )


def write_dicom_seg(
    path: Path,
    array: np.ndarray,
    source: SourceSeries,
    structures: Sequence[Structure],
    *,
    kind: str = "binary",
    maker: Maker | None = None,
) -> None:
    """Write a label map as a DICOM Segmentation, atomically.

    Args:
        path: of the file.
        array: label map ``(z, y, x)`` on the source's grid, in the order of its planes.
        source: the series that it was predicted from.
        structures: the segments in order; they may overlap in ``binary``.
        kind: ``binary`` or ``labelmap``.
        maker: the model; None for an unnamed one.

    Raises:
        DataError: the kind does not fit, or the file cannot be written.
    """
    check_kind(structures, kind)
    planes = _in_file_order(array, source)
    with quiet_highdicom():
        dataset = _segmentation(planes, source, structures, kind, maker or Maker())
    with atomic_path(path) as temporary:
        dataset.save_as(temporary)


def _segmentation(
    planes: np.ndarray, source: SourceSeries, structures: Sequence[Structure], kind: str, maker: Maker
) -> Any:
    import highdicom
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    first = source.headers[0]
    labelmap = kind == "labelmap"
    dataset = highdicom.seg.Segmentation(
        source_images=_as_highdicom_wants(source),
        pixel_array=_segment_planes(planes, structures),
        segmentation_type="LABELMAP" if labelmap else "BINARY",
        segment_descriptions=_descriptions(structures, maker),
        series_instance_uid=highdicom.UID(),
        series_number=series_number(first, 100),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=maker.algorithm,
        software_versions=maker.version,
        device_serial_number=maker.serial_number,
        content_label="SEGMENTATION",
        content_description=long_string(f"Segmentation by {maker.algorithm}"),
        series_description=long_string(f"Segmentation by {maker.algorithm}"),
        pixel_measures=_measures(source),
        transfer_syntax_uid=RLELossless if labelmap else ExplicitVRLittleEndian,
        specific_character_set=character_set([*(entry.name for entry in structures), maker.name], first),
    )
    if "ContentCreatorName" not in dataset:  # it may be empty, but must be there
        dataset.ContentCreatorName = ""
    return dataset


def _in_file_order(array: np.ndarray, source: SourceSeries) -> np.ndarray:
    """Planes in the order of the source's frames, which in a multi-frame image may be another than along z."""
    if len(source.headers) > 1:
        return array
    order = np.argsort([frame.index for frame in source.stack.frames])
    return np.ascontiguousarray(array[order])


def _segment_planes(planes: np.ndarray, structures: Sequence[Structure]) -> np.ndarray:
    """Segment numbers ``(frames, rows, columns)``; where segments overlap, one plane for each as the last axis."""
    if overlapping(structures) is None:
        numbers = np.zeros(_largest(planes, structures) + 1, np.uint8 if len(structures) < 256 else np.uint16)
        for number, structure in enumerate(structures, start=1):
            numbers[list(structure.values)] = number
        return numbers[planes]
    stacked = np.empty((*planes.shape, len(structures)), np.uint8)
    for number, structure in enumerate(structures):
        stacked[..., number] = mask_of(planes, structure)
    return stacked


def _largest(planes: np.ndarray, structures: Sequence[Structure]) -> int:
    """The largest value of the voxels and of the structures."""
    values = [int(planes.max(initial=0))]
    for structure in structures:
        values += structure.values
    return max(values)


def _measures(source: SourceSeries) -> Any:
    """Spacing of pixels and planes; the slices' own thickness, which may be another than their distance."""
    import highdicom

    first = source.headers[0]
    thickness = first.get("SliceThickness")
    return highdicom.PixelMeasuresSequence(
        pixel_spacing=list(source.stack.frames[0].spacing),
        slice_thickness=float(thickness) if thickness else source.step,
        spacing_between_slices=source.step,
    )


def _descriptions(structures: Sequence[Structure], maker: Maker) -> list[Any]:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=maker.algorithm, version=maker.version, family=codes.DCM.ArtificialIntelligence
    )
    described = []
    for number, structure in enumerate(structures, start=1):
        term = structure.term
        description = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=long_string(structure.name) or f"segment {number}",
            segmented_property_category=concept(UNKNOWN if term is None else term.category),
            segmented_property_type=concept(UNKNOWN if term is None else term.kind),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            anatomic_regions=None if term is None or term.region is None else [concept(term.region)],
            display_color=highdicom.color.CIELabColor.from_rgb(*structure.colour),
        )
        if term is not None and term.side is not None:
            _add_side(description, concept(term.side), region=term.region is not None)
        described.append(description)
    return described


def _add_side(description: Any, side: Any, *, region: bool) -> None:
    """Left or right, as a modifier of the structure, or of the region where a finding lies."""
    if region:
        description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [side]
    else:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [side]


def _as_highdicom_wants(source: SourceSeries) -> list[Any]:
    """The headers, completed: highdicom refuses codes of the patient's sex that DICOM does not define, and asks for the
    thickness of slices even where it is told.
    """
    for header in source.headers:
        if str(header.get("PatientSex") or "") not in ("", "M", "F", "O"):
            header.PatientSex = ""
        if not header.get("SliceThickness"):
            header.SliceThickness = source.step
    return list(source.headers)
