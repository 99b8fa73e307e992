"""Check that ``patients`` of a raw data set names its cases."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from medkd.core.dataset import DatasetDescription, every_case
from medkd.core.errors import DataError
from medkd.core.patients import every_name, find_named
from medkd.core.run import DATASET_FILE
from medkd.io.checks import Finding

_NAMED = "'patients' to name a patient by the cases of the data set"
_ALL = "'patients' to name a patient of every case, since folds keep patients together"
_APART = "patients whose scans are all for training, or all for tests"
_EXPECTED = {_NAMED, _ALL, _APART}


def patient_findings(folder: Path, description: DatasetDescription) -> list[Finding]:
    """Names that are no case, cases without a patient beside others with one, and patients on both sides of a test;
    nothing where the cases cannot be listed, which is told elsewhere.

    Args:
        folder: the raw data set.
        description: its ``dataset.json``.
    """
    if not description.patients:
        return []
    try:
        names = every_name(folder, description)
        scans = [files.case for files in every_case(folder, description)]
    except DataError:
        return []
    named = find_named(description.patients, names)
    findings = []
    if named.faults:
        findings.append(
            Finding(
                case="",
                file=str(folder / DATASET_FILE),
                expected=_NAMED,
                found=f"{named.faults[0]}{_further(len(named.faults))}",
                action="write the names as the cases are called, or remove them",
            )
        )
    without = [case for case in scans if case not in named.of]
    if without and len(without) < len(scans):
        findings.append(
            Finding(
                case="",
                file=str(folder / DATASET_FILE),
                expected=_ALL,
                found=f"none for {len(without)} of {len(scans)} ({without[0]}, for example), which count as patients "
                "of their own",
                action="add their patients",
                error=False,
            )
        )
    return findings + _torn_by_tests(folder, named.of, scans)


def _torn_by_tests(folder: Path, patients: Mapping[str, str], scans: Collection[str]) -> list[Finding]:
    """A warning of patients with scans to train on and scans in ``imagesTs``."""
    trained = {patients[case] for case in scans if case in patients}
    tested = {patients[case] for case in patients.keys() - set(scans)}
    both = sorted(tested & trained)
    if not both:
        return []
    return [
        Finding(
            case="",
            file=str(folder / DATASET_FILE),
            expected=_APART,
            found=f"patient {both[0]}{_further(len(both))} on both sides",
            action="scores on these test cases flatter; take the scans of these patients from one side",
            error=False,
        )
    ]


def are_told(known: Sequence[Finding], now: Sequence[Finding]) -> bool:
    """Whether an earlier report says of patients what is found now.

    Args:
        known: all findings of the report.
        now: those of :func:`patient_findings`.
    """
    return {finding for finding in known if finding.expected in _EXPECTED} == set(now)


def _further(count: int) -> str:
    return f" (and {count - 1} more)" if count > 1 else ""
