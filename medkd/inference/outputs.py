"""Where predictions go: a folder with a label map per case, or for one scan the very file that was named."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medkd.core.dataset import CaseFiles
from medkd.core.errors import DataError
from medkd.core.files import atomic_path, write_text
from medkd.core.geometry import Geometry
from medkd.inference.inputs import output_ending
from medkd.inference.made_here import MadeHere
from medkd.inference.sources import CaseSources
from medkd.io.volumes import WRITABLE, any_ending, stem, write_volume
from medkd.io.writing.formats import FORMATS, Format
from medkd.io.writing.label_maps import LabelMapWriter
from medkd.io.writing.tables import COLOUR_TABLE, colour_table
from medkd.runtime.prediction import Prediction

logger = logging.getLogger(__name__)
_DICOM_FILE = FORMATS["dicom-seg"]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files of the predictions.

    Attributes:
        folder: where they lie.
        file: the only label map, where it was named itself.
        probabilities: whether a case has a ``.npz`` too.
        formats: of the label maps; none for the scan's own, where that can be written, else NIfTI.
        writer: knows names, colours and terms; None writes label maps without them.
        sources: the DICOM series that label maps refer to.
        made: the files that this model is known to have made; None where nobody notes it.
    """

    folder: Path
    file: Path | None = None
    probabilities: bool = False
    formats: tuple[Format, ...] = ()
    writer: LabelMapWriter | None = None
    sources: CaseSources = field(default_factory=CaseSources)
    made: MadeHere | None = None

    @classmethod
    def at(
        cls,
        path: Path,
        cases: Sequence[CaseFiles],
        *,
        probabilities: bool = False,
        formats: Sequence[Format] = (),
        writer: LabelMapWriter | None = None,
        series: Path | None = None,
    ) -> Outputs:
        """What ``-o PATH`` means for these cases: a folder, or a file where the name ends as a scan's.

        Args:
            path: of the folder or file.
            cases: that are predicted.
            probabilities: see the class.
            formats: see the class; a file's ending decides by itself.
            writer: see the class.
            series: DICOM series, or tree of them, of scans that are no DICOM themselves.

        Raises:
            DataError: one file is named for several cases, has an ending that cannot be written or is another than the
                format's, or is one of the scans; or a format needs a DICOM series that a case has not.
        """
        file = path if _names_file(path) else None
        if file is not None:
            formats = _formats_of_file(file, len(cases), formats)
        outputs = cls(
            folder=path if file is None else path.parent,
            file=file,
            probabilities=probabilities,
            formats=tuple(formats),
            writer=writer,
            sources=CaseSources.of(cases, formats, series),
        )
        outputs._refuse_overwriting(cases)
        return outputs

    @classmethod
    def for_file(
        cls, file: Path, case: CaseFiles, *, formats: Sequence[Format], writer: LabelMapWriter, series: Path | None
    ) -> Outputs:
        """The very file of one case, whatever its name; arguments and errors as for :meth:`at`."""
        chosen = _formats_of_file(file, 1, formats)
        sources = CaseSources.of([case], chosen, series)
        outputs = cls(folder=file.parent, file=file, formats=chosen, writer=writer, sources=sources)
        outputs._refuse_overwriting([case])
        return outputs

    def _refuse_overwriting(self, cases: Sequence[CaseFiles]) -> None:
        """No label map may take the place of a scan."""
        scans = {scan.resolve() for case in cases for scan in case.images}
        for case in cases:
            for label_map in self.label_maps(case):
                if label_map.resolve() in scans:
                    raise DataError(
                        f"The label map {label_map} would overwrite the scan; choose another output folder."
                    )

    def label_map(self, case: CaseFiles) -> Path:
        """The label map of a case, of the first format."""
        return self.label_maps(case)[0]

    def label_maps(self, case: CaseFiles) -> list[Path]:
        """The label map of a case in each format."""
        if self.file is not None:
            return [self.file]
        endings = [entry.ending for entry in self.formats] or [output_ending(case)]
        return [self.folder / f"{case.case}{ending}" for ending in endings]

    def archive(self, case: CaseFiles) -> Path:
        """The probabilities of a case."""
        return self.folder / f"{case.case if self.file is None else stem(self.file)}.npz"

    def files(self, case: CaseFiles) -> list[Path]:
        """All files of a case."""
        return [*self.label_maps(case), *([self.archive(case)] if self.probabilities else [])]

    def finished(self, case: CaseFiles) -> bool:
        """Whether all files of a case are there as this model made them of the scan as it is."""
        return self.made is not None and self.made.has(case, self.files(case))

    def warn_of_replacing(self, cases: Sequence[CaseFiles], *, resume: bool = False) -> list[str]:
        """Say which of the cases have label maps that are going to be replaced; returns their ids.

        Args:
            cases: that are going to be predicted.
            resume: those that this model made of these scans are kept.
        """
        there = [case for case in cases if self.label_map(case).exists()]
        if there:
            example = self.label_map(there[0])
            more = f" and {len(there) - 1} more" if len(there) > 1 else ""
            why = ", since not these weights and settings made what is there of the scans as they are" if resume else ""
            logger.warning("%s%s replaced by new predictions%s", example, f"{more} are" if more else " is", why)
        return [case.case for case in there]

    def check(self, case: CaseFiles, geometry: Geometry) -> None:
        """Whether what is going to be predicted can be written, before it is.

        Raises:
            DataError: the DICOM series of the case is damaged, or lies on another grid.
        """
        self.sources.check(case, geometry)

    def write(self, case: CaseFiles, prediction: Prediction, geometry: Geometry) -> None:
        """Write what was predicted, each file atomically.

        Raises:
            DataError: a file cannot be written.
        """
        if prediction.probabilities is not None:
            with atomic_path(self.archive(case)) as temporary:
                np.savez_compressed(temporary, probabilities=prediction.probabilities)
            self._note(case, self.archive(case))
        self._write_colour_table()
        # last: their presence says that the case is finished
        named = () if self.writer is None else self.writer.painted
        formats = self.formats or (None,)
        for path, entry in zip(self.label_maps(case), formats, strict=True):
            if entry is not None and entry.dicom and self.writer is not None:
                self.writer.write(path, entry.name, prediction.labels, geometry, self.sources.get(case))
            else:
                write_volume(path, prediction.labels, geometry, named)
            self._note(case, path)
        self.sources.done(case)

    def begin(self, case: CaseFiles) -> None:
        """Call it before the scan of a case is read."""
        if self.made is not None:
            self.made.begin(case)

    def _note(self, case: CaseFiles, file: Path) -> None:
        if self.made is not None:
            self.made.add(case, file)

    def _write_colour_table(self) -> None:
        """3D Slicer's colour table beside formats that cannot hold names and colours for it."""
        wanted = {"nifti", "mha"} & {entry.name for entry in self.formats}
        if not wanted or self.file is not None or self.writer is None:
            return
        table, text = self.folder / COLOUR_TABLE, colour_table(self.writer.painted)
        if not table.is_file() or table.read_bytes() != text.encode():  # of another model
            write_text(table, text)


def _names_file(path: Path) -> bool:
    """Whether ``-o`` is the very file of the only case."""
    return not path.is_dir() and (any_ending(path) is not None or _DICOM_FILE.fits(path))


def _formats_of_file(file: Path, count: int, formats: Sequence[Format]) -> tuple[Format, ...]:
    """The format of the only file: the one asked for, else the one that its name says; none for volumes, whose writers
    go by the ending.

    Raises:
        DataError: there are several cases or formats, the ending cannot be written, or another format was asked for.
    """
    if count != 1:
        raise DataError(f"-o {file} names one file, but there are {count} scans to predict; give a folder.")
    if len(formats) > 1:
        raise DataError(f"-o {file} names one file, but --format has {len(formats)} formats; give a folder.")
    if formats and not formats[0].fits(file):
        raise DataError(
            f"-o {file} does not end as --format {formats[0].name} does; end the name with "
            f"{' or '.join(formats[0].endings)}, or give a folder."
        )
    if formats:
        return tuple(formats)
    if _DICOM_FILE.fits(file):
        return (FORMATS["rtstruct"] if file.name.lower().endswith(".rtstruct.dcm") else _DICOM_FILE,)
    ending = any_ending(file)
    if ending not in WRITABLE:
        raise DataError(
            f"-o {file}: label maps cannot be written as {ending or file.name}; end the name with "
            f"{', '.join((*WRITABLE, _DICOM_FILE.ending))}."
        )
    return ()
