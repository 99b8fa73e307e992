"""Where methods differ from what their authors released, on purpose, and why: read from ``departures.json``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from medkd.core.files import read_json

FILE = Path(__file__).with_suffix(".json")
Kind = Literal["method", "detection", "network", "detector"]


@dataclass(frozen=True, kw_only=True)
class Departure:
    """One difference that is meant.

    Attributes:
        id: ``name.what``; for detectors ``detection.name.what``.
        kind: of what the name is: a method, a method that detectors define anew, a network, or the beginning of the
            names of detectors.
        variant: ``paper`` where the default has a form of its own anyway, else ``both``.
        what: what medkd does, and the original does not.
        why: the reason.
        size: how far values are off.
        source: the original's repository, commit and files.
        golden: pattern of the golden cases that differ for this reason, ``method/case:loss``; empty where no case shows
            it.
    """

    id: str
    kind: Kind
    variant: Literal["both", "paper"]
    what: str
    why: str
    size: str
    source: str
    golden: str = ""

    @property
    def name(self) -> str:
        """The name of the method or network."""
        return self.id.removeprefix("detection.").partition(".")[0]


@cache
def all_departures() -> tuple[Departure, ...]:
    """Every entry of the list."""
    return tuple(Departure(**entry) for entry in read_json(FILE)["departures"])


def departures_of(name: str, kind: Kind = "method") -> tuple[Departure, ...]:
    """Those of one method or network."""
    return tuple(entry for entry in all_departures() if entry.name == name and entry.kind == kind)
