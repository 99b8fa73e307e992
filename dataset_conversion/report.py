"""What a conversion did, case by case."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medkd.core.files import write_text
from medkd.core.serial import save
from medkd.io.checks import Finding
from medkd.io.verify import findings_text

REPORT_FILE = "conversion_report.json"
_NAMED = 20


@dataclass(frozen=True, kw_only=True)
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
        lists: cases or files by what is remarkable about them, for example ``absent``, ``truncated``, ``rotated``.
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
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    schema: int = 1

    @property
    def ok(self) -> bool:
        """Whether every case was converted and nothing was wrong."""
        return not self.left_out and not self.problems

    def summary(self) -> str:
        """One line."""
        names = (
            ": " + ", ".join(self.left_out[:_NAMED]) + (" …" if len(self.left_out) > _NAMED else "")
            if self.left_out
            else ""
        )
        return (
            f"{self.dataset} from {self.source} ({self.format}): {len(self.converted)} cases converted, "
            f"{len(self.unchanged)} were there "
            f"already, {len(self.left_out)} left out{names}"
        )

    def text(self) -> str:
        """The report for people."""
        notes = [f"note: {note}" for note in self.notes]
        counts = [f"{name}: {len(members)}" for name, members in self.lists.items()]
        lists: list[str] = []
        for name, members in self.lists.items():
            lists += ["", f"{name} ({len(members)}):", *_wrapped(members)]
        head = [self.summary(), *([", ".join(counts)] if counts else []), *notes]
        return "\n".join([*head, *findings_text(self.problems, self.warnings), *lists]) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``conversion_report.json`` and ``conversion_report.txt``."""
        save(folder / REPORT_FILE, self)
        write_text(folder / Path(REPORT_FILE).with_suffix(".txt"), self.text())


def _wrapped(members: tuple[str, ...]) -> list[str]:
    return textwrap.wrap(
        ", ".join(members),
        120,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
