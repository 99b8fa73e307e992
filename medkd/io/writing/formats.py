"""In which formats predictions are written, by name; ``--format`` takes these."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medkd.core.errors import RunError
from medkd.core.serial import nearest


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of predictions.

    Attributes:
        name: on the command line.
        task: whose predictions it holds.
        endings: that a file of it may have; files in a folder get the first.
        about: what it is, in a line.
        dicom: whether it refers to a DICOM series or image, which must be there.
    """

    name: str
    task: str
    endings: tuple[str, ...]
    about: str
    dicom: bool = False

    @property
    def ending(self) -> str:
        """Of files in a folder."""
        return self.endings[0]

    def fits(self, path: Path) -> bool:
        """Whether a file is called as one of this format."""
        return path.name.lower().endswith(self.endings)


_ALL = (
    Format(
        name="nifti",
        task="segmentation",
        endings=(".nii.gz", ".nii"),
        about="NIfTI; names and colours in a header extension, and in labels.ctbl for 3D Slicer",
    ),
    Format(
        name="nrrd",
        task="segmentation",
        endings=(".seg.nrrd", ".nrrd"),
        about="NRRD with 3D Slicer's names, colours and terms",
    ),
    Format(
        name="mha",
        task="segmentation",
        endings=(".mha",),
        about="MetaImage; names and colours in labels.ctbl beside it",
    ),
    Format(
        name="dicom-seg",
        task="segmentation",
        endings=(".dcm",),
        about="DICOM Segmentation that refers to the series; coded terms, BINARY or LABELMAP (--seg-kind)",
        dicom=True,
    ),
    Format(
        name="rtstruct",
        task="segmentation",
        endings=(".rtstruct.dcm", ".dcm"),
        about="DICOM RT Structure Set: contours along the voxels' edges",
        dicom=True,
    ),
    Format(
        name="dicom-sr",
        task="detection",
        endings=(".sr.dcm",),
        about="DICOM Structured Report (TID 1500) with a region per box, which refers to the radiograph",
        dicom=True,
    ),
    Format(
        name="dicom-sc",
        task="detection",
        endings=(".sc.dcm",),
        about="DICOM Secondary Capture: the radiograph with the boxes drawn",
        dicom=True,
    ),
)
FORMATS: dict[str, Format] = {entry.name: entry for entry in _ALL}
"""Name → format."""


def name_of_format(text: str) -> str:
    """The format's name for what people call it: its name, or an ending that no other format has.

    >>> name_of_format("seg.nrrd"), name_of_format(".nii.gz"), name_of_format("dcm")
    ('nrrd', 'nifti', 'dcm')
    """
    if text in FORMATS:
        return text
    ending = "." + text.lower().lstrip(".")
    meant = [name for name, entry in FORMATS.items() if ending in entry.endings]
    return meant[0] if len(meant) == 1 else text


def formats_of(task: str) -> list[str]:
    """Names of the formats for a task."""
    return [name for name, entry in FORMATS.items() if entry.task == task]


def choose_formats(names: str | Iterable[str] | None, task: str) -> tuple[Format, ...]:
    """The formats of these names, each once.

    Raises:
        RunError: there is no such format, or it is for another task.
    """
    listed = [name_of_format(name) for name in ([names] if isinstance(names, str) else names or ())]
    known = formats_of(task)
    for name in listed:
        if name not in FORMATS:
            raise RunError(f"--format has no '{name}'.{nearest(name, known)} For {task}: {', '.join(known)}.")
        if name not in known:
            raise RunError(
                f"--format {name} is for {FORMATS[name].task}, but the model is for {task}; choose {', '.join(known)}."
            )
    return tuple(FORMATS[name] for name in dict.fromkeys(listed))
