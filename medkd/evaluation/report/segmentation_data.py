"""What a report shows: the runs of a data set, read from their files, and how they compare."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medkd.core.errors import DataError, RunError
from medkd.core.files import read_json
from medkd.core.run import DETECTION, RUN_FILE, RunDescription
from medkd.core.serial import load
from medkd.evaluation.cross_validation import VALIDATION_SUMMARY, merge_folds, scored_folds
from medkd.evaluation.segmentation.folds import SegmentationFolds
from medkd.evaluation.segmentation.results import Metric, Summary
from medkd.evaluation.statistics import PairedDifference, paired_difference

Role = Literal["teacher", "alone", "distilled"]
ROLES: tuple[Role, ...] = ("teacher", "alone", "distilled")
SCORED_TEACHER = "scored_teacher.json"


@dataclass(frozen=True)
class ScoredTeacher:
    """``fold_K/scored_teacher.json``: the model, trained elsewhere, whose scores lie in the fold folder.

    Attributes:
        path: its folder, absolute.
        fold: its own fold that predicted.
        weights: a hash of the weights of this fold.
        patch_size: voxels per axis that it predicted with.
        mirror_axes: axes that it mirrored.
        former: folders in which the same weights lay when they were scored before.
    """

    path: str
    fold: str
    weights: str
    patch_size: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    former: tuple[str, ...] = ()
    schema: int = 1


@dataclass(frozen=True)
class Cost:
    """``fold_K/model.json``; None where it was not measured.

    Attributes:
        parameters: trainable parameters.
        macs: multiply-adds of one patch.
        latency_ms: time of one patch.
        patch_size: voxels per axis.
        device: where the latency was measured.
        threads: CPU threads of that measurement.
    """

    parameters: int | None = None
    macs: int | None = None
    latency_ms: float | None = None
    patch_size: tuple[int, ...] = ()
    device: str = ""
    threads: int = 0


@dataclass(frozen=True)
class RunEntry:
    """One run of the report.

    Attributes:
        path: run folder.
        run: its description.
        role: ``teacher``, ``alone`` (a student without a teacher) or ``distilled``.
        folds: the folds whose scores are shown, as text.
        summary: scores over these folds; None where nothing was scored.
        cost: size and speed.
        log: one mapping per epoch of the first shown fold.
    """

    path: Path
    run: RunDescription
    role: Role
    folds: tuple[str, ...] = ()
    summary: Summary | None = None
    cost: Cost = field(default_factory=Cost)
    log: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.path.name

    @property
    def label(self) -> str:
        """A short name for tables and figures: network (with its width divisor), method, and what a tag added to the
        run's name.
        """
        network, *parts = self.path.name.split("__")
        teacher = (
            parts.index(self.run.method) + 1 if self.run.method in parts else None
        )  # an imported one is recorded by its path
        known = (self.run.configuration, self.run.method, f"from_{self.run.teacher}")
        notes = [p for i, p in enumerate(parts) if p not in known and i != teacher]
        notes += [] if self.run.init == "random" else ["starts from its teacher"]
        notes += [] if self.run.configuration in ("3d_fullres", DETECTION) else [self.run.configuration]
        method = f" + {self.run.method}" if self.role == "distilled" else ""
        return f"{network}{method}" + (f" ({', '.join(notes)})" if notes else "")

    @property
    def scored(self) -> bool:
        """Whether there are scores to show."""
        return self.summary is not None

    @property
    def merit(self) -> float:
        """The number by which runs of a kind are ordered; −1 without scores."""
        return self.summary.mean_dice if self.summary is not None else -1.0

    def prediction(self, case: str) -> Path | None:
        """The prediction of a case (file name of its reference), or None where there is no file."""
        cases = self.summary.cases if self.summary is not None else ()
        file = next(
            (Path(c.prediction_file).name for c in cases if c.name == case), case
        )  # its ending may be another than the reference's
        return next((p for f in self.folds if (p := self.path / f"fold_{f}" / "validation" / file).exists()), None)


Scoring = Callable[[RunEntry, Sequence[int]], RunEntry]
"""Gives an entry the scores of some folds."""


def with_summary(entry: RunEntry, folds: Sequence[int]) -> RunEntry:
    """The entry with the merged scores of a segmentation run's folds."""
    return replace(entry, summary=merge_folds(entry.path, folds, SegmentationFolds()))


def gather(results: Path, fold: int | str | None = None, score: Scoring = with_summary) -> list[RunEntry]:
    """Read all runs of a data set, teachers first, then students alone, then distilled ones by falling merit (Dice).

    Args:
        results: results folder of the data set.
        fold: the fold to show; None shows the folds that all scored runs of the same kind have in common.
        score: how the scores of a run are read.

    Raises:
        RunError: there is no run, or none that has this fold.
    """
    found = {p.parent: load(RunDescription, p) for p in sorted(results.glob(f"*/{RUN_FILE}"))}
    if not found:
        raise RunError(f"{results}: found no run; train a network first (medkd_train, medkd_train_distill).")
    taught = [r for r in found.values() if r.teacher is not None]
    roles = {path: _role(path, run, taught) for path, run in found.items()}
    shown = {path: _folds(path, fold) for path in found}
    if fold is not None and not any(shown.values()):
        raise RunError(f"{results}: no run has a fold {fold}; trained folds lie in <run>/fold_K.")
    if fold is None:
        scored = [set(scored_folds(path)) for path in found if scored_folds(path)]
        common = sorted(set.intersection(*scored)) if scored else []
        shown = {path: [k for k in common if k in scored_folds(path)] or shown[path] for path in found}
    entries = [
        _entry(path, run, roles[path], shown[path], score) for path, run in found.items() if shown[path] or fold is None
    ]
    return sorted(entries, key=lambda e: (ROLES.index(e.role), -e.merit, e.name))


def scored_teachers(run: Path) -> dict[Path, ScoredTeacher]:
    """Fold folder → the model whose scores it holds; empty for a run that medkd trained.

    Raises:
        DataError: a record cannot be read.
    """
    return {file.parent: load(ScoredTeacher, file) for file in sorted(run.glob(f"fold_*/{SCORED_TEACHER}"))}


def baseline_of(entry: RunEntry, entries: Sequence[RunEntry]) -> RunEntry | None:
    """The same network alone, under the same configuration.

    Of several, method ``none`` comes before a run of ``medkd_train``, then the run's own budget, seed included, before
    another.
    """
    same = [e for e in entries if e.role != "distilled" and _kind(e) == _kind(entry) and e.scored and e is not entry]
    return min(same, key=lambda e: (e.run.method != "none", e.run.budget != entry.run.budget), default=None)


def teacher_of(entry: RunEntry, entries: Sequence[RunEntry]) -> RunEntry | None:
    """The run that taught this one, where it is among ``entries``."""
    return next((e for e in entries if e is not entry and _names(entry.run.teacher, e.path, e.run, entry.run)), None)


def compare(
    entry: RunEntry, other: RunEntry, metric: Metric = "Dice", structure: int | None = None
) -> PairedDifference | None:
    """Paired difference ``entry − other`` over the cases that both scored; None where there is none.

    Raises:
        DataError: the two were scored with different structures.
    """
    if entry.summary is None or other.summary is None:
        return None
    if entry.summary.structures != other.summary.structures:
        raise DataError(
            f"{entry.name} and {other.name} were scored with different structures; evaluate them with one dataset.json."
        )
    mine, theirs = (
        {c.name: row for c, row in zip(s.cases, s.table(metric), strict=True)} for s in (entry.summary, other.summary)
    )
    shared = sorted(set(mine) & set(theirs))
    if not shared:
        return None
    a, b = (np.array([rows[name] for name in shared]) for rows in (mine, theirs))
    return paired_difference(a, b) if structure is None else paired_difference(a[:, structure], b[:, structure])


def gap_closed(entry: RunEntry, entries: Sequence[RunEntry]) -> float | None:
    """Share of the Dice between student alone and teacher that distillation won: ``(D − D_alone) / (D_teacher −
    D_alone)``.

    None where a part is missing, or where the gap itself is not clear (see :attr:`PairedDifference.clear`), since
    dividing by noise says nothing.
    """
    baseline, teacher = baseline_of(entry, entries), teacher_of(entry, entries)
    if entry.role != "distilled" or baseline is None or teacher is None:
        return None
    gap, gain = compare(teacher, baseline), compare(entry, baseline)
    return gain.mean / gap.mean if gap is not None and gain is not None and gap.clear and gap.mean > 0 else None


def _role(path: Path, run: RunDescription, taught: Sequence[RunDescription]) -> Role:
    if run.method not in (None, "none") or run.init != "random":
        return "distilled"
    return "teacher" if any(_names(student.teacher, path, run, student) for student in taught) else "alone"


def _names(teacher: str | None, path: Path, run: RunDescription, student: RunDescription) -> bool:
    """Whether ``teacher`` (a network's name, a run's name or a folder) means this run."""
    if teacher is None or run.configuration != student.configuration:
        return False
    scored = scored_teachers(path).values()
    if scored:  # many models' folders have the same name
        return os.path.abspath(teacher) in {
            os.path.abspath(place) for record in scored for place in (record.path, *record.former)
        }
    return (run.method is None and run.network.name == teacher) or path.name in (teacher, Path(teacher).name)


def _kind(entry: RunEntry) -> tuple[str, str, int]:
    return entry.run.network.name, entry.run.configuration, entry.run.network.width_divisor


def _folds(path: Path, fold: int | str | None) -> list[int | str]:
    if fold is not None:
        return [fold] if (path / f"fold_{fold}").is_dir() else []
    names = sorted(p.name.removeprefix("fold_") for p in path.glob("fold_*") if p.is_dir())
    return list(scored_folds(path) or names[:1])


def _entry(path: Path, run: RunDescription, role: Role, folds: Sequence[int | str], score: Scoring) -> RunEntry:
    first = path / f"fold_{folds[0]}" if folds else path
    entry = RunEntry(
        path, run, role, tuple(map(str, folds)), cost=_cost(first / "model.json"), log=_log(first / "log.jsonl")
    )
    scored = [int(f) for f in folds if str(f).isdigit() and (path / f"fold_{f}" / VALIDATION_SUMMARY).exists()]
    return score(entry, scored) if scored else entry


def _cost(path: Path) -> Cost:
    if not path.exists():
        return Cost()
    data = read_json(path)
    known = {k: data[k] for k in ("parameters", "macs", "latency_ms", "device", "threads") if data.get(k) is not None}
    return Cost(**known, patch_size=tuple(data.get("patch_size", ())))


def _log(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The epochs of a log; the last line of a run that is being written may be cut short and is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return tuple(r for r in records if isinstance(r, dict) and "epoch" in r)
