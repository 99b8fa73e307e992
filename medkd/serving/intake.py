"""Uploaded bytes as the channel files of one scan: named by the server, never by the client, and judged by content."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from medkd.core.archives import ArchiveRules, check_directory, check_entries, extract, is_damage
from medkd.core.dataset import CaseFiles
from medkd.core.errors import DataError
from medkd.io.dicom import is_dicom
from medkd.serving.limits import Limits

CASE = "scan"
_ZIP, _GZIP = b"PK", b"\x1f\x8b"
_NIFTI = tuple(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))


def scan_of(uploads: Sequence[Path], channels: int, limits: Limits) -> CaseFiles:
    """The scan that was uploaded.

    Args:
        uploads: one file per channel, as they came: NIfTI, gzipped or not, one DICOM file with all slices, or a zip of
            one DICOM series; they are renamed or unpacked in their folder.
        channels: of the model.
        limits: of zips.

    Raises:
        DataError: these are not as many files as channels, something else, or a zip with what no series holds.
    """
    if len(uploads) != channels:
        raise DataError(
            f"The model takes {channels} file(s) per scan, one per channel in order, but the request holds "
            f"{len(uploads)}; send each as a part 'scan' of a multipart form."
        )
    files = []
    for channel, upload in enumerate(uploads):
        files.append(_channel(upload, f"{CASE}_{channel:04d}", limits))
    return CaseFiles(CASE, tuple(files))


def _channel(upload: Path, name: str, limits: Limits) -> Path:
    with upload.open("rb") as file:
        start = file.read(4)
    if not start:
        raise DataError("The request holds an empty file; send a NIfTI file, or a zip of one DICOM series.")
    if start.startswith(_GZIP):
        return upload.rename(upload.with_name(f"{name}.nii.gz"))
    if start in _NIFTI:
        return upload.rename(upload.with_name(f"{name}.nii"))
    if start.startswith(_ZIP):
        folder = upload.with_name(name)
        _unpack(upload, folder, limits)
        upload.unlink()
        return folder
    if is_dicom(upload):
        return upload.rename(upload.with_name(name))
    raise DataError("The request is neither NIfTI (.nii.gz, .nii) nor DICOM, nor a zip of one DICOM series; send one.")


def _unpack(archive: Path, folder: Path, limits: Limits) -> None:
    """Unpack a zip, whose names are checked and then forgotten: its files are numbered."""
    rules = ArchiveRules(
        holds="a DICOM series",
        remedy="pack the series again",
        error=DataError,
        entries=limits.entries,
        size=limits.unpacked,
        ratio=500,
    )
    folder.mkdir()
    try:
        check_directory(archive, "The zip", rules)
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            check_entries("The zip", entries, rules)
            wanted = [entry for entry in entries if not entry.is_dir()]
            for number, entry in enumerate(wanted):
                extract(opened, entry, folder / f"{number:05d}", "The zip", rules)
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        if is_damage(error):
            raise DataError("The zip is damaged; pack the series again.") from error
        raise
