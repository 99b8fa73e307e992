"""Which scans to predict: a folder, a file, or the channel files of one case."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from medkd.core.dataset import CaseFiles
from medkd.core.errors import DataError
from medkd.core.made_with import is_note
from medkd.core.settled import SETTINGS_FILE
from medkd.io.dicom import Study, find_series, is_dicom, no_scan_text, safe_name
from medkd.io.links import refuse_dangling
from medkd.io.volumes import PICTURES, READERS, SEGMENTATION_ENDING, WRITABLE, any_ending, file_ending, stem

_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
DEFAULT_ENDING = ".nii.gz"
"""Beside predictions: what they were made with."""

_SHOWN = 20  # names in an error
logger = logging.getLogger(__name__)


def find_cases(inputs: Path | str | Sequence[Path | str], channels: int) -> list[CaseFiles]:
    """List the cases to predict, sorted by case id.

    Args:
        inputs: a folder of ``CASE_0000.nii.gz`` (one file per channel; for a single channel any names will do, if none
            ends in ``_0000``), one scan, or the files of one case in channel order. Any readable format is accepted. A
            folder (or tree) of DICOM files gives a case per series, for single-channel models; otherwise give a folder
            with one series per channel.
        channels: how many channels the model expects.

    Returns:
        The cases; a missing channel shows itself when the case is read.

    Raises:
        DataError: an input does not exist, holds no scans or scans that belong to no case (they are named), links lead
            nowhere, or the files are not as many as the channels, or numbered in another order.
    """
    paths = [Path(inputs)] if isinstance(inputs, (str, Path)) else [Path(p) for p in inputs]
    refuse_dangling(paths)
    for path in paths:
        if not path.exists():
            raise DataError(f"The input {path} does not exist.")
    if len(paths) == 1 and paths[0].is_dir():
        return _folder(paths[0], channels)
    if len(paths) == 1 and _names_channel(paths[0], channels):
        return [_siblings(paths[0], channels)]
    _check_count(paths, channels)
    return [CaseFiles(case_name(*paths), tuple(paths))]


def _check_count(paths: Sequence[Path], channels: int) -> None:
    """One file per channel; the colours of pictures are channels, too."""
    if len(paths) == channels or (len(paths) < channels and all(map(_is_picture, paths))):
        return
    raise DataError(
        f"The model expects {channels} channel file(s) per case, found {len(paths)}; give one file per channel, in "
        "order."
    )


def case_name(*paths: Path) -> str:
    """The id of the case whose channels these files are.

    ``CASE_0000.nii.gz, CASE_0001.nii.gz`` is ``CASE``: four digits are a channel where they number all the files from
    0. Other names, ``CASE_0001.nii.gz`` alone too, count as they are without their ending; DICOM by the name of the
    folder or file.

    Raises:
        DataError: the files are numbered as channels, but stand in another order.
    """
    if any_ending(paths[0]) is None:
        return safe_name(paths[0].resolve().name.removesuffix(".dcm")) or "scan"
    numbered = [found for path in paths if (found := _numbered(path)) is not None]
    numbers = [number for _, number in numbered]
    if sorted(numbers) == list(range(len(paths))):
        if numbers != sorted(numbers):
            files = ", ".join(path.name for path in paths)
            raise DataError(f"The channels {files} are numbered in another order than they are given; sort them.")
        return numbered[0][0]
    return stem(paths[0])


def _names_channel(path: Path, channels: int) -> bool:
    """Whether a file is one of several channels by its number."""
    numbered = _numbered(path)
    return channels > 1 and numbered is not None and numbered[1] < channels


def _numbered(path: Path) -> tuple[str, int] | None:
    """``CASE_0001.nii.gz`` → ``CASE, 1``."""
    match = _CHANNEL.match(stem(path))
    return (match["case"], int(match["channel"])) if match else None


def output_ending(case: CaseFiles) -> str:
    """The ending of a case's label map: the scan's own where that format can be written, else ``.nii.gz``."""
    return writable_ending(any_ending(case.images[0]))


def writable_ending(ending: str | None) -> str:
    """``ending`` where medkd can write that format, else ``.nii.gz``."""
    return ending if ending in WRITABLE else DEFAULT_ENDING


def _folder(folder: Path, channels: int) -> list[CaseFiles]:
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    refuse_dangling(entries)
    scans = _scans_of(entries)
    cases = _cases_of(scans, channels)
    if cases:
        _check_strays(folder, scans, cases, channels)
        _say_left_out(folder, [path for path in entries if path not in scans and not _is_settings(path)])
    else:
        cases = _dicom_cases(folder, channels)
    _check_formats(folder, scans, entries)
    if not cases:
        raise DataError(_no_scans_text(folder, scans, channels))
    _check_names(folder, cases)
    return cases


def _is_settings(path: Path) -> bool:
    """Whether a file says what predictions beside it were made with."""
    return path.name == SETTINGS_FILE or is_note(path)


def _scans_of(entries: Sequence[Path]) -> list[Path]:
    """The files among them whose ending is one of a scan, not of a segmentation; where there is none, the pictures."""
    files = [path for path in entries if path.is_file() and file_ending(path) != SEGMENTATION_ENDING]
    scans = [path for path in files if file_ending(path)]
    return scans or [path for path in files if any_ending(path)]


def _no_scans_text(folder: Path, scans: Sequence[Path], channels: int) -> str:
    only = f", only {_listed(scans)}; rename them" if scans else ""
    return (
        f"{folder}: expected scans named {_expected(channels)}, one file per channel ({', '.join(READERS)}), or DICOM "
        f"series; found none{only}."
    )


def _cases_of(scans: Sequence[Path], channels: int) -> list[CaseFiles]:
    """The cases whose first channel is among the files; for one channel every file where none ends in ``_0000``."""
    first = [path for path in scans if stem(path).endswith("_0000")]
    if not first and (channels == 1 or all(map(_is_picture, scans))):
        return [CaseFiles(stem(path), (path,)) for path in scans]
    return [_siblings(path, channels) for path in first]


def _check_formats(folder: Path, scans: Sequence[Path], entries: Sequence[Path]) -> None:
    """Refuse a mixture of DICOM files and other scans."""
    if scans and any(_is_bare_dicom(path) for path in entries):
        raise DataError(
            f"{folder} holds DICOM files and scans of other formats ({scans[0].name}); give a folder with one of the "
            "two."
        )


def _check_names(folder: Path, cases: Sequence[CaseFiles]) -> None:
    """Refuse two cases of one name."""
    names = [case.case for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{folder}: the case {twice[0]} is there in more than one format; keep one of its files.")


def _is_bare_dicom(path: Path) -> bool:
    if not path.is_file() or any_ending(path) or path.name.upper() == "DICOMDIR":
        return False
    return is_dicom(path)


def _say_left_out(folder: Path, others: Sequence[Path]) -> None:
    if others:
        logger.info("%s: no scans, so left out: %s", folder, _listed(others))


def _check_strays(folder: Path, scans: Sequence[Path], cases: Sequence[CaseFiles], channels: int) -> None:
    """Refuse scans that belong to no case; the label maps of an earlier prediction into the same folder are passed
    over.
    """
    known = {path for case in cases for path in case.images}
    earlier = _earlier_label_maps(folder, cases)
    strays = [path for path in scans if path not in known | earlier]
    if strays:
        raise DataError(
            f"{folder}: expected {channels} channel(s) per case, named {_expected(channels)}, found {len(strays)} of "
            f"{len(scans)} scans that belong to no case: {_listed(strays)}; name a scan that stands alone "
            "OTHERCASE_0000, complete its channels, or move it elsewhere."
        )
    _say_left_out(folder, [path for path in scans if path in earlier])


def _earlier_label_maps(folder: Path, cases: Sequence[CaseFiles]) -> set[Path]:
    """Files that label maps of these cases may have, where a prediction has written into the folder."""
    if not (folder / SETTINGS_FILE).exists():
        return set()
    earlier: set[Path] = set()
    for case in cases:
        earlier |= {folder / f"{case.case}{ending}" for ending in WRITABLE}
    return earlier


def _expected(channels: int) -> str:
    names = [f"CASE_{i:04d}{DEFAULT_ENDING}" for i in range(channels)]
    return ", ".join(names[:-1]) + f" and {names[-1]}" if channels > 1 else names[0]


def _listed(paths: Sequence[Path]) -> str:
    shown = ", ".join(path.name for path in paths[:_SHOWN])
    return shown + (f", … ({len(paths)} in all)" if len(paths) > _SHOWN else "")


def _dicom_cases(folder: Path, channels: int) -> list[CaseFiles]:
    """One case per series below ``folder``, its slices as the files; localizers, screenshots and reports are passed
    over.
    """
    study = find_series(folder)
    if not study.scans and (study.others or study.damaged):
        raise DataError(no_scan_text(folder, study))
    if study.scans and channels > 1:
        raise DataError(
            f"{folder} holds DICOM series, but the model expects {channels} channels; give one folder with a series "
            "per channel."
        )
    _say_passed_over(study)
    return [CaseFiles(series.name, series.files) for series in study.scans]


def _say_passed_over(study: Study) -> None:
    """Name what is no scan, and the damaged files that belong to none."""
    for series in study.others:
        logger.info("%s is left out: %s", series.text(), series.not_a_scan)
    reported = {path for series in study.scans for path in series.damaged}  # their series fails, and says why
    for path in sorted(study.damaged.keys() - reported):
        logger.warning("%s", study.damaged[path])


def _siblings(path: Path, channels: int) -> CaseFiles:
    """The case of one of its numbered channel files."""
    ending = path.name[len(stem(path)) :]
    numbered = _numbered(path)
    name = stem(path) if numbered is None else numbered[0]
    files = [path.with_name(f"{name}_{i:04d}{ending}") for i in range(channels)]
    if _is_picture(path):  # the channels may be the colours of fewer files
        files = [file for file in files if file.exists()]
    return CaseFiles(name, tuple(files))


def _is_picture(path: Path) -> bool:
    return any_ending(path) in PICTURES
