"""How far students follow their teachers where nobody has labels; never to be mistaken for a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.core.run_files import number_of

AGREEMENT = Path("agreement") / "agreement.json"
"""In the folder of a fold that holds no labelled case out."""


@dataclass(frozen=True)
class Agreement:
    """How far a fold's student and its teacher predict the same.

    Attributes:
        value: overlap of both predictions; None where neither sees anything.
        scans: that were held out.
    """

    value: float | None
    scans: int


def agreements(run: Path) -> dict[str, Agreement]:
    """Fold → how far the run agrees with its teacher there.

    Raises:
        DataError: a file is damaged.
    """
    found = {}
    for file in sorted(run.glob(f"fold_*/{AGREEMENT}")):
        content = read_json(file)
        if not isinstance(content, Mapping):
            raise DataError(f"{file}: expected an object, found {type(content).__name__}; validate the fold anew.")
        cases = content.get("cases")
        scans = len(cases) if isinstance(cases, list) else 0
        found[file.parents[1].name.removeprefix("fold_")] = Agreement(number_of(content.get("agreement")), scans)
    return found


def agreement_text(run: Path) -> str:
    """In words, what :func:`agreements` found; empty where there are none."""
    found = agreements(run)
    values = [(agreement.value, agreement.scans) for agreement in found.values() if agreement.value is not None]
    scans = sum(count for _, count in values)
    if not scans:
        return "an agreement with the teacher that is not defined, since neither sees anything" if found else ""
    mean = sum(value * count for value, count in values) / scans
    return (
        f"agreement with the teacher {mean:.4f} on {scans} held-out scans of fold {', '.join(found)}, which says "
        "nothing about who is right"
    )
