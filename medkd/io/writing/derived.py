"""DICOM objects made from an image, without pixels or with drawn ones: patient and study are those of the image."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from medkd.io.writing.maker import MANUFACTURER, Maker, character_set, long_string

_PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("PatientSize", "PatientWeight", "EthnicGroup", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription"),
    *("ReferringPhysicianName", "ClinicalTrialProtocolID", "ClinicalTrialSubjectID"),
)


def derived_object(
    source: Any, sop_class: str, modality: str, maker: Maker, names: list[str], *, number: int = 100
) -> Any:
    """A new object of the patient and study of ``source``, in a series of its own.

    Args:
        source: header of the image, see :func:`medkd.io.writing.source.read_reference`.
        sop_class: UID of what kind of object it is.
        modality: of its series.
        maker: the model that made it.
        names: further texts that it will hold.
        number: tells the series of derived objects from each other, see :func:`series_number`.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    now = datetime.datetime.now()
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    characters = character_set([*names, maker.name], source)
    if characters:
        dataset.SpecificCharacterSet = characters
    for key in _PATIENT_AND_STUDY:
        if key in source:
            dataset[key] = source[key]
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    dataset.SeriesInstanceUID, dataset.Modality, dataset.InstanceNumber = generate_uid(), modality, 1
    dataset.SeriesNumber = series_number(source, number)
    dataset.SeriesDescription = long_string(f"Prediction of {maker.algorithm}")
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, maker.algorithm
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = maker.version, maker.serial_number
    dataset.OperatorsName = ""
    return dataset


def series_number(source: Any, above: int) -> int:
    """A number for a series derived from another: the source's and a multiple of a thousand."""
    try:
        number = int(source.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    return above * 10 + (number if 0 <= number < 10**6 else 0)


def reference(header: Any) -> Any:
    """An item that names an image."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = str(header.SOPClassUID), str(header.SOPInstanceUID)
    return item


def save_object(dataset: Any, path: Path) -> None:
    """Write an object as a DICOM file."""
    dataset.save_as(path, enforce_file_format=True)
