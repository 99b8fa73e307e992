"""DICOM series as scans: find them in a folder or tree, read them on their own grid, in rescaled values (HU for CT).

Needs pydicom (``pip install 'medkd[dicom]'``), which is imported when the first file is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medkd.core.errors import DataError
from medkd.io.dicom_header import Frame, Header, is_dicom, read_file_header
from medkd.io.dicom_pixels import read_planes
from medkd.io.dicom_stack import Stack, stack_frames

__all__ = [
    *("Series", "Study", "find_series", "is_dicom", "read_files", "read_header", "read_voxels", "safe_name"),
    "stack_of",
]


@dataclass(frozen=True)
class Series:
    """The files of one series.

    Attributes:
        name: unique within the search, made from the folder's name (see :func:`find_series`); letters, digits, ``_``
            and ``-`` only.
        folder: of its first file.
        headers: one per file, in the order of paths.
        damaged: unreadable DICOM files in its folders; they may belong to it, so it is not read.
    """

    name: str
    folder: Path
    headers: tuple[Header, ...]
    damaged: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Its files and the damaged ones; pass them to :func:`read_files` or :func:`medkd.io.volumes.read_image`."""
        return tuple(header.path for header in self.headers) + self.damaged

    @property
    def frames(self) -> tuple[Frame, ...]:
        """All its planes, unsorted."""
        frames: list[Frame] = []
        for header in self.headers:
            frames += header.frames
        return tuple(frames)

    @property
    def not_a_scan(self) -> str:
        """Why the series is no scan at all; empty for a stack of slices, even if that turns out to be irregular."""
        reasons = [header.not_a_scan for header in self.headers]
        if all(reasons):
            return reasons[0]
        if len(self.headers) > 1 or len(self.frames) > 1 or self.damaged:
            return ""
        return "it is a single slice, for example a localizer (scout)"

    def text(self) -> str:
        """What a person needs to recognise it; nothing about the patient."""
        first = self.headers[0]
        number = f"series {first.number}" if first.number else ""
        title = " ".join(filter(None, (first.modality, number, first.description)))
        return f"{title or first.uid} ({len(self.frames)} images in {self.folder})"


@dataclass(frozen=True)
class Study:
    """What a folder or tree holds.

    Attributes:
        scans: series of greyscale slices, sorted by name; whether a stack is regular shows itself when it is read.
        others: localizers, screenshots, reports and other objects.
        damaged: DICOM files that cannot be read → why.
    """

    scans: tuple[Series, ...]
    others: tuple[Series, ...]
    damaged: dict[Path, str]


def find_series(source: Path) -> Study:
    """Find the series in a folder and everything below it, by SeriesInstanceUID; hidden files, DICOMDIR and other files
    are passed over.

    Names: a series in a folder of its own is called like the folder, as seen from ``source`` (``patient1/CT`` →
    ``patient1_CT``; ``source`` itself where it lies there); several scans in one folder get number and description of
    the series appended.

    Raises:
        DataError: pydicom is not installed.
    """
    source = Path(source)
    groups: dict[str, list[Header]] = {}
    damaged: dict[Path, str] = {}
    for path in _dicom_files(source):
        try:
            header = read_file_header(path)
        except DataError as error:
            if isinstance(error.__cause__, ImportError):
                raise
            damaged[path] = str(error)
            continue
        if header is not None:
            groups.setdefault(header.uid, []).append(header)
    scans, others = [], []
    for uid in sorted(groups):
        series = _series(groups[uid], damaged)
        if series.not_a_scan:
            others.append(series)
        else:
            scans.append(series)
    return Study(tuple(_named(scans, source)), tuple(others), damaged)


def read_header(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Size in index order ``(x, y, z)`` and the affine to RAS+ mm of a series, without its pixels.

    Args:
        path: folder (or tree) with one scan, or a multi-frame file.

    Raises:
        DataError: there is no scan, more than one, or it is not a regular stack of greyscale slices.
    """
    stack = _stack(path)
    return stack.shape, stack.affine


def read_voxels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels in index order ``(x, y, z)`` and the affine to RAS+ mm; see :func:`read_header` and :func:`read_files`.

    Raises:
        DataError: as for :func:`read_header`; a file has no pixels, is truncated, or its compression cannot be read.
    """
    return _voxels(_stack(path))


def read_files(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read the slices of one series, given in any order.

    Returns:
        Voxels in index order ``(x, y, z)``, rescaled (int16 where they are whole and fit), and the affine to RAS+ mm.
        As in ITK, x runs along the rows and z along row direction × column direction.

    Raises:
        DataError: as for :func:`read_voxels`; also for files of different series.
    """
    return _voxels(stack_of(paths))


def stack_of(paths: Sequence[Path]) -> Stack:
    """The planes of a series in the order of the volume that :func:`read_files` gives, without their pixels.

    Args:
        paths: its files in any order; or a folder (or tree) with one scan, or a multi-frame file, alone.

    Raises:
        DataError: as for :func:`read_header`; also for files of different series.
    """
    if len(paths) == 1:
        return _stack(paths[0])
    headers = []
    for path in paths:
        header = read_file_header(path)
        if header is not None:
            headers.append(header)
    if not headers:
        raise DataError(f"{paths[0]} holds no DICOM image; give the slices of one series.")
    first = headers[0]
    for header in headers:
        if header.uid != first.uid:
            raise DataError(f"{first.path} and {header.path} belong to different series; give the files of one series.")
    return _checked(_series(headers, {}), Path(paths[0]).parent)


def modality(paths: Sequence[Path]) -> str:
    """Modality of the DICOM series that the first of these paths is or holds; empty for other files."""
    path = Path(paths[0])
    first = next(_dicom_files(path), None) if path.is_dir() else path
    if first is None or not is_dicom(first):
        return ""
    try:
        header = read_file_header(first)
    except DataError:  # reported where it is read
        return ""
    return header.modality if header is not None else ""


def safe_name(text: str) -> str:
    """``text`` with everything but letters, digits and ``-`` as ``_``; accents and other scripts are kept out of file
    names.
    """
    return re.sub(r"[^A-Za-z0-9-]+", "_", text).strip("_-")


def _voxels(stack: Stack) -> tuple[np.ndarray, np.ndarray]:
    return read_planes(stack.frames).T, stack.affine


def _stack(path: Path) -> Stack:
    """The planes of the only scan in a folder, or of one file."""
    path = Path(path)
    if not path.is_dir():
        header = read_file_header(path)
        if header is None:
            raise DataError(
                f"{path} holds no DICOM image (it may be the directory of a disc); give the folder with the slices."
            )
        return _checked(_series([header], {}), path)
    study = find_series(path)
    if len(study.scans) > 1:
        listed = "; ".join(series.text() for series in study.scans[:5])
        raise DataError(
            f"{path}: expected one DICOM series, found {len(study.scans)}: {listed}; give the folder of one of them."
        )
    if not study.scans:
        raise DataError(no_scan_text(path, study))
    return _checked(study.scans[0], path)


def no_scan_text(path: Path, study: Study) -> str:
    """The sentence for a folder without a scan."""
    if study.others:
        series = study.others[0]
        return (
            f"{path}: expected a DICOM series of slices, found {series.text()}: {series.not_a_scan}; give the folder "
            "of a scan."
        )
    if study.damaged:
        return next(iter(study.damaged.values()))
    return (
        f"{path} is a folder without DICOM images; expected an image file, or a folder with the slices of one series."
    )


def _checked(series: Series, path: Path) -> Stack:
    if series.not_a_scan:
        raise DataError(
            f"{path} cannot be used as a scan: {series.not_a_scan}; give the folder of a whole series of slices."
        )
    if series.damaged:
        read_file_header(series.damaged[0])  # raises again what is wrong with it
    for header in series.headers:
        if header.not_a_scan:
            raise DataError(
                f"{header.path} is among the slices of a series, but {header.not_a_scan}; restore the file or move it "
                "elsewhere."
            )
    return stack_frames(series.frames, str(path))


def _dicom_files(source: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(source):
        folders[:] = _visible(folders)
        for name in _visible(names):
            path = Path(folder, name)
            if name.upper() != "DICOMDIR" and is_dicom(path):
                yield path


def _visible(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith("."))


def _series(headers: list[Header], damaged: Iterable[Path]) -> Series:
    """A series that has no name yet, with the damaged files of its folders."""
    folders = {header.path.parent for header in headers}
    beside = [path for path in damaged if path.parent in folders]
    return Series("", headers[0].path.parent, tuple(headers), tuple(beside))


def _named(scans: list[Series], source: Path) -> list[Series]:
    folders = [series.folder for series in scans]
    named: dict[str, Series] = {}
    for series in scans:
        inside = series.folder.relative_to(source)
        parts = [*inside.parts] or [source.absolute().resolve().name]
        if folders.count(series.folder) > 1:
            parts += [series.headers[0].number, series.headers[0].description]
        name = base = "_".join(filter(None, map(safe_name, parts))) or "series"
        count = 1
        while name in named:
            count += 1
            name = f"{base}_{count}"
        named[name] = replace(series, name=name)
    return [named[name] for name in sorted(named)]
