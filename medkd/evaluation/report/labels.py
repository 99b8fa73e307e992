"""Short names for runs, no two of them equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from medkd.tasks import TASKS

if TYPE_CHECKING:
    from medkd.evaluation.report.data import RunEntry


def short_names(entries: Sequence[RunEntry]) -> dict[str, str]:
    """Run → a name for tables and figures; where two would have the same one, their teachers tell them apart, else the
    names of their folders.
    """
    labels = {entry.name: short_name(entry) for entry in entries}
    for entry in _alike(entries, labels):
        labels[entry.name] += f" of {entry.teacher_name}" if entry.teacher_name else ""
    for entry in _alike(entries, labels):
        labels[entry.name] += f" [{entry.name}]"
    return labels


def _alike(entries: Sequence[RunEntry], labels: Mapping[str, str]) -> list[RunEntry]:
    counts = Counter(labels.values())
    return [entry for entry in entries if counts[labels[entry.name]] > 1]


def short_name(entry: RunEntry) -> str:
    """Network (with its width divisor), method, and what a tag added to the run's name."""
    network, *_ = entry.path.name.split("__")
    notes = []
    tag = tag_of(entry)
    if tag:
        notes.append(tag.replace("__", ", "))
    if entry.run.init != "random":
        notes.append("starts from its teacher")
    if entry.run.configuration not in ("3d_fullres", *TASKS):
        notes.append(entry.run.configuration)
    name = f"{network} + {entry.run.method}" if entry.role == "distilled" else network
    return f"{name} ({', '.join(notes)})" if notes else name


def tag_of(entry: RunEntry) -> str:
    """What ``--tag`` added to the run's name; empty where nothing was."""
    _, *parts = entry.path.name.split("__")
    # an imported teacher is recorded by its path, so that its part of the name is known by its place
    teacher = parts.index(entry.run.method) + 1 if entry.run.method in parts else None
    known = (entry.run.configuration, entry.run.method, f"from_{entry.run.teacher}")
    added = []
    for place, part in enumerate(parts):
        if part not in known and place != teacher:
            added.append(part)
    return "__".join(added)
