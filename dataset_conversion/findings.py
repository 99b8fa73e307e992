"""Short ways to say what is wrong with a source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from medkd.core.channels import machine
from medkd.io.checks import Finding


def problem(case: str, file: Path | str, expected: str, found: str, action: str) -> Finding:
    """An error: the case, where one is named, is left out."""
    return Finding(case=case, file=str(file), expected=expected, found=found, action=action)


def warning(case: str, file: Path | str, expected: str, found: str, action: str) -> Finding:
    """What may be wrong; the conversion goes on with it."""
    return Finding(case=case, file=str(file), expected=expected, found=found, action=action, error=False)


def modality_findings(case: str, file: Path | str, modality: str, channel: str) -> list[Finding]:
    """A warning where a DICOM series is of another modality than the channel that it becomes, as far as both say so.

    >>> [found.found for found in modality_findings("a", "a", "MR", "CT")]
    ['a series of modality MR']
    >>> modality_findings("a", "a", "MR", "T2") or modality_findings("a", "a", "PT", "CT")
    []
    """
    expected = machine(channel)
    if not expected or modality not in ("CT", "MR") or modality == expected:
        return []
    action = "leave it out, or name the channel after what it is"
    return [warning(case, file, f"a series for the channel {channel}", f"a series of modality {modality}", action)]


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether one of them is an error."""
    return any(finding.error for finding in findings)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and a mark that there are more."""
    more = ", …" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def file_names(paths: Iterable[Path]) -> str:
    """The names of files, for a sentence."""
    return ", ".join(path.name for path in paths)
