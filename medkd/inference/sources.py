"""Which DICOM series each case's label map refers to: that of the scan itself, or one that was given for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medkd.core.dataset import CaseFiles
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.io.dicom import find_series, is_dicom, no_scan_text
from medkd.io.volumes import file_ending
from medkd.io.writing.formats import Format
from medkd.io.writing.source import SourceSeries, need_dicom_package, read_source


@dataclass(frozen=True)
class CaseSources:
    """The series of the cases, each read when its case comes and let go when it is written.

    Attributes:
        files: case id → files of its series; empty where no format refers to one.
        read: case id → its series, between reading and writing.
    """

    files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    read: dict[str, SourceSeries] = field(default_factory=dict)

    @classmethod
    def of(cls, cases: Sequence[CaseFiles], formats: Sequence[Format], series: Path | None) -> CaseSources:
        """The series that label maps of these formats refer to.

        Args:
            cases: that are predicted.
            formats: of their label maps.
            series: folder with the series of the only case, or a tree with one per case, called as it; None where the
                scans are DICOM themselves.

        Raises:
            DataError: a format refers to a series and a case has none, or highdicom is not installed.
        """
        needing = [entry for entry in formats if entry.dicom]
        if not needing:
            if series is not None:
                raise DataError(
                    "--source-series is for formats that refer to a DICOM series (dicom-seg, rtstruct); give --format, "
                    "or leave it out."
                )
            return cls()
        need_dicom_package()
        if series is not None:
            return cls(_given(cases, Path(series)))
        for case in cases:
            if not _is_series(case.images[0]):
                raise DataError(
                    f"--format {needing[0].name} refers to the DICOM series of the scan, but {case.images[0]} is none; "
                    "predict from the series itself, or name it with --source-series."
                )
        return cls({case.case: _first_channel(case) for case in cases})

    def check(self, case: CaseFiles, geometry: Geometry) -> None:
        """Read the series of a case, whose scan must lie on its grid.

        Raises:
            DataError: it does not, or the series cannot be read.
        """
        if case.case in self.files:
            source = read_source(self.files[case.case])
            source.check_grid(geometry)
            self.read[case.case] = source

    def get(self, case: CaseFiles) -> SourceSeries | None:
        """The series of a case; None where no format refers to one."""
        if case.case in self.files and case.case not in self.read:
            self.read[case.case] = read_source(self.files[case.case])
        return self.read.get(case.case)

    def done(self, case: CaseFiles) -> None:
        """The case is written."""
        self.read.pop(case.case, None)


def _is_series(path: Path) -> bool:
    """Whether a scan's first file is one of a DICOM series, or their folder."""
    return path.is_dir() or (file_ending(path) is None and is_dicom(path))


def _first_channel(case: CaseFiles) -> tuple[Path, ...]:
    """The files of the first channel: all of a series that is the only one, else its folder."""
    first = case.images[0]
    return (first,) if first.is_dir() else case.images


def _given(cases: Sequence[CaseFiles], folder: Path) -> dict[str, tuple[Path, ...]]:
    """The series below a folder: the only one for the only case, else those that are called as the cases.

    Raises:
        DataError: a case has none.
    """
    if not folder.exists():
        raise DataError(f"--source-series {folder} does not exist; name the folder of the DICOM series.")
    study = find_series(folder)
    if not study.scans:
        raise DataError(no_scan_text(folder, study))
    if len(cases) == 1 and len(study.scans) == 1:
        return {cases[0].case: study.scans[0].files}
    named = {series.name: series.files for series in study.scans}
    missing = [case.case for case in cases if case.case not in named]
    if missing:
        raise DataError(
            f"--source-series {folder} has no series called {missing[0]} ({len(missing)} of {len(cases)} cases have "
            f"none); its series are {', '.join(list(named)[:5])}, so name their folders as the cases."
        )
    return {case.case: named[case.case] for case in cases}
