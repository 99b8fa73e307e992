"""Check the scans of a raw data set that have no labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from medkd.core.dataset import UNLABELLED_FOLDER, CaseFiles, DatasetDescription, unlabelled_cases
from medkd.core.errors import DataError
from medkd.io.checks import Finding
from medkd.io.volumes import file_ending


def check_layout(
    folder: Path,
    description: DatasetDescription,
    labelled: Collection[str],
    endings: Collection[str] | None = None,
) -> tuple[list[CaseFiles], list[Finding]]:
    """The cases in ``imagesUn``, and what is wrong with how they are laid out.

    Args:
        folder: the raw data set.
        description: its ``dataset.json``.
        labelled: ids of the cases that have labels.
        endings: of files that must belong to a case; None is those of scans.
    """
    try:
        cases = unlabelled_cases(folder, description)
    except DataError as error:
        return [], [_layout_finding(folder, error)]
    findings = []
    for case in cases:
        if case.case in labelled:
            findings.append(_labelled_finding(case))
    findings += _stray_findings(folder / UNLABELLED_FOLDER, description, cases, endings)
    return cases, findings


def _layout_finding(folder: Path, error: DataError) -> Finding:
    return Finding(
        case="",
        file=str(folder / UNLABELLED_FOLDER),
        expected="scans without labels",
        found=str(error).rstrip("."),
        action="mend it, then verify again",
    )


def _labelled_finding(case: CaseFiles) -> Finding:
    return Finding(
        case=case.case,
        file=str(case.images[0]),
        expected=f"only scans without labels in {UNLABELLED_FOLDER}",
        found="labels of this name in labelsTr",
        action="move the scan to imagesTr, or give it another name",
    )


def _stray_findings(
    place: Path, description: DatasetDescription, cases: Sequence[CaseFiles], endings: Collection[str] | None
) -> list[Finding]:
    """Files that belong to no case: further channels, other endings, folders, cases without a first channel."""
    known: set[str] = set()
    for case in cases:
        known.update(path.name for path in case.images)
    names = ", ".join(description.channel_names)
    findings = []
    for path in sorted(place.glob("[!.]*")):
        is_scan = file_ending(path) is not None if endings is None else path.suffix.lower() in endings
        is_scan |= path.is_dir() or path.suffix.lower() == ".dcm"  # of DICOM, which has to be converted first
        if path.name in known or not is_scan:
            continue
        findings.append(
            Finding(
                case="",
                file=str(path),
                expected=f"{len(description.channel_names)} channels per case ({names}), named CASE_0000 and so on",
                found=path.name,
                action="rename, convert (medkd_convert) or remove it",
            )
        )
    return findings
