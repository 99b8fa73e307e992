"""What was found in a radiograph, as DICOM objects that refer to it: a Structured Report with a region per box (TID
1500 and 1410 of PS3.16, by highdicom), and a Secondary Capture of the picture with the boxes drawn.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.files import atomic_path
from medkd.io.writing.derived import derived_object, reference, save_object, series_number
from medkd.io.writing.maker import MANUFACTURER, Maker, character_set, concept, long_string, quiet_highdicom
from medkd.io.writing.structures import Structure
from medkd.io.writing.terms import SNOMED, UNKNOWN, Code

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_CERTAINTY = Code("DCM", "111012", "Certainty of Finding")
_PERCENT = Code("UCUM", "%", "Percent")
_NUMBER = Code("99MEDKD", "boxes", "Number of boxes found")  # DICOM has no code for it
_COUNT = Code("UCUM", "1", "no units")
_RADIOGRAPHY = Code(SNOMED, "363680008", "Radiographic imaging procedure")
_CARRIED = ("PatientOrientation", "PixelSpacing", "BurnedInAnnotation", "BodyPartExamined", "ImageLaterality")


@dataclass(frozen=True)
class FoundBox:
    """A box in a radiograph.

    Attributes:
        box: left, top, right and bottom in pixels; 0 is the edge of the first pixel.
        structure: what it holds.
        score: from 0 to 1.
    """

    box: tuple[float, float, float, float]
    structure: Structure
    score: float


def write_report(path: Path, header: Any, boxes: Sequence[FoundBox], maker: Maker) -> None:
    """Write a Structured Report with the boxes, atomically; also where there is none.

    Args:
        path: of the file.
        header: of the radiograph, see :func:`medkd.io.writing.source.read_reference`.
        boxes: what was found.
        maker: the detector.

    Raises:
        DataError: the file cannot be written.
    """
    import highdicom

    if str(header.get("PatientSex") or "") not in ("", "M", "F", "O"):
        header.PatientSex = ""  # highdicom refuses codes that DICOM does not define
    with quiet_highdicom():
        report = highdicom.sr.ComprehensiveSR(
            evidence=[header],
            content=_content(header, boxes, maker)[0],
            series_instance_uid=highdicom.UID(),
            series_number=series_number(header, 300) or 1,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=maker.algorithm,
            software_versions=maker.version,
            device_serial_number=maker.serial_number,
            is_complete=True,
            series_description=long_string(f"Findings of {maker.algorithm}"),
            specific_character_set=character_set([*(box.structure.name for box in boxes), maker.name], header),
        )
    with atomic_path(path) as temporary:
        report.save_as(temporary)


def write_capture(path: Path, header: Any, picture: np.ndarray, maker: Maker) -> None:
    """Write a picture of a radiograph as a Secondary Capture, atomically.

    Args:
        path: of the file.
        header: of the radiograph.
        picture: ``(H, W, 3)`` uint8, the radiograph's own size.
        maker: the detector.

    Raises:
        DataError: the file cannot be written.
    """
    now = datetime.datetime.now()
    dataset = derived_object(header, _SECONDARY_CAPTURE, "OT", maker, [], number=400)
    for key in _CARRIED:
        if key in header:
            dataset[key] = header[key]
    for key, needless in (("PatientOrientation", "PatientOrientation"), ("Laterality", "ImageLaterality")):
        if needless not in dataset:  # they may be empty, but must be there
            setattr(dataset, key, header.get(key, ""))
    dataset.ConversionType = "WSD"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = f"Boxes drawn by {maker.algorithm}"
    dataset.SourceImageSequence = [reference(header)]
    dataset.ContentDate, dataset.ContentTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = dataset.ContentDate, dataset.ContentTime
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.Rows, dataset.Columns = picture.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    pixels = np.ascontiguousarray(picture, np.uint8).tobytes()
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    with atomic_path(path) as temporary:
        save_object(dataset, temporary)


def _content(header: Any, boxes: Sequence[FoundBox], maker: Maker) -> Any:
    import highdicom
    from highdicom import sr
    from pydicom.sr.codedict import codes

    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=highdicom.UID(),
            name=maker.algorithm,
            manufacturer_name=MANUFACTURER,
            model_name=maker.algorithm,
            serial_number=maker.serial_number,
        ),
    )
    groups = [_region(number, box, header, maker) for number, box in enumerate(boxes, start=1)]
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=concept(_RADIOGRAPHY),
        imaging_measurements=groups or [_nothing_found(header, maker)],
        title=codes.DCM.ImagingMeasurementReport,
    )


def _nothing_found(header: Any, maker: Maker) -> Any:
    """The group of a report without boxes, which must have one: their number in the whole image, 0."""
    import highdicom
    from highdicom import sr

    image = sr.SourceImageForMeasurementGroup(str(header.SOPClassUID), str(header.SOPInstanceUID))
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=highdicom.UID(), identifier="whole image"),
        source_images=[image],
        algorithm_id=sr.AlgorithmIdentification(maker.algorithm, maker.version, manufacturer=MANUFACTURER),
        measurements=[sr.Measurement(concept(_NUMBER), 0, concept(_COUNT))],
    )


def _region(number: int, found: FoundBox, header: Any, maker: Maker) -> Any:
    """One box: closed polygon, what it is, and how certain the detector is."""
    import highdicom
    from highdicom import sr

    left, top, right, bottom = found.box
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])
    image = sr.SourceImageForRegion(str(header.SOPClassUID), str(header.SOPInstanceUID))
    term = found.structure.term
    sites = None
    if term is not None and term.region is not None:
        side = None if term.side is None else concept(term.side)
        sites = [sr.FindingSite(concept(term.region), laterality=side)]
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=highdicom.UID(), identifier=f"{found.structure.name} {number}"),
        referenced_region=sr.ImageRegion("POLYLINE", corners, image),
        finding_type=concept(UNKNOWN if term is None else term.kind),
        finding_sites=sites,
        algorithm_id=sr.AlgorithmIdentification(maker.algorithm, maker.version, manufacturer=MANUFACTURER),
        measurements=[sr.Measurement(concept(_CERTAINTY), round(100 * found.score, 1), concept(_PERCENT))],
    )
