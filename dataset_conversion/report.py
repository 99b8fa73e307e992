"""What a conversion did, case by case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medkd.core.files import write_text
from medkd.core.serial import save
from medkd.io.checks import Finding
from medkd.io.verify import findings_text

REPORT_FILE = "conversion_report.json"


@dataclass(frozen=True)
class ConversionReport:
    """``conversion_report.json``.

    Attributes:
        dataset: full name of the data set.
        format: name of the converter.
        source: what was converted.
        converted: cases written by this run.
        unchanged: cases that an earlier run had written from the same files.
        left_out: cases that could not be converted; ``problems`` says why.
        problems: what was wrong.
        warnings: what may be wrong.
        notes: decisions that the converter took.
    """

    dataset: str
    format: str
    source: str
    converted: tuple[str, ...]
    unchanged: tuple[str, ...]
    left_out: tuple[str, ...]
    problems: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    schema: int = 1

    @property
    def ok(self) -> bool:
        """Whether every case was converted and nothing was wrong."""
        return not self.left_out and not self.problems

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.dataset} from {self.source} ({self.format}): {len(self.converted)} cases converted, {len(self.unchanged)} were there "
            f"already, {len(self.left_out)} left out{': ' + ', '.join(self.left_out) if self.left_out else ''}"
        )

    def text(self) -> str:
        """The report for people."""
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([self.summary(), *notes, *findings_text(self.problems, self.warnings)]) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``conversion_report.json`` and ``conversion_report.txt``."""
        save(folder / REPORT_FILE, self)
        write_text(folder / Path(REPORT_FILE).with_suffix(".txt"), self.text())
