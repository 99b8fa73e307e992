"""Models, and files of weights, that lie elsewhere by now than when folds were made from them: the same by the hash of
their weights, wherever they lie.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from medkd.core.checkpoint import stored_checkpoint
from medkd.core.made_from import MADE_FROM_FILE, former_names, note_places, noted_weights, weights_in
from medkd.core.run import RUN_FILE, RunDescription
from medkd.core.run_files import SCORED_TEACHER, ScoredTeacher
from medkd.core.serial import load, save
from medkd.core.teachers import apart, together


def lies_at(fold: Path, old: str, new: str) -> bool:
    """Whether a fold was made from weights at or below one place, all of which lie at or below another by now.

    Args:
        fold: ``<root>/results/DATASET/RUN/fold_K``.
        old: folder or file, absolute.
        new: likewise.

    Raises:
        DataError: the fold's record is damaged.
    """
    if not (os.path.isabs(old) and os.path.isabs(new)):
        return False
    there = {file: digest for file, digest in noted_weights(fold).items() if file.is_relative_to(old)}
    found = [_has(_placed(file, old, new), digest) for file, digest in there.items()]
    return bool(found) and all(found)


def all_lie_at(run: Path, old: str, new: str) -> bool:
    """Whether that holds for every fold of a run that was begun."""
    folds = list(_begun(run))
    return bool(folds) and all(lies_at(fold, old, new) for fold in folds)


def moved_teachers(run: Path, known: RunDescription, now: RunDescription) -> dict[str, str]:
    """Where the teachers of a run lay → where they lie now, for those that lie elsewhere; empty where none does, or one
    is another by its weights.

    Args:
        run: its folder.
        known: as its ``run.json`` says.
        now: what is going to be trained.
    """
    before, after = (run.taught_by or apart(run.teacher) for run in (known, now))
    pairs = {old: new for old, new in zip(before, after, strict=False) if old != new}
    same = len(before) == len(after) and all(all_lie_at(run, old, new) for old, new in pairs.items())
    return pairs if same else {}


def names_of_teachers(run: Path, known: RunDescription) -> frozenset[str]:
    """What the teachers of a run are called, or were before they were moved."""
    now = "_and_".join(dict.fromkeys(Path(text).name for text in known.taught_by))
    return frozenset([now, *(name for fold in _begun(run) for name in former_names(fold))])


def note_moved(run: Path, old: str, new: str) -> None:
    """Write into the records of a run where a model, or a file of weights, lies now.

    Args:
        run: folder of a run, or of the scores of a model from elsewhere; what is no such folder stays as it is.
        old: where it lay, absolute.
        new: where it lies, absolute.
    """
    for fold in _begun(run):
        if lies_at(fold, old, new):
            places = {file: _placed(file, old, new) for file in noted_weights(fold) if file.is_relative_to(old)}
            note_places(fold, places, Path(old).name)
            _note_scored(fold, old, new)
    if (run / RUN_FILE).exists():
        _note_taught(run / RUN_FILE, old, new)


def _note_taught(file: Path, old: str, new: str) -> None:
    known = load(RunDescription, file)
    taught_by = tuple(new if text == old else text for text in known.taught_by)
    teacher = together(new if text == old else text for text in apart(known.teacher)) or None
    if (taught_by, teacher) != (known.taught_by, known.teacher):
        save(file, replace(known, taught_by=taught_by, teacher=teacher))


def _note_scored(fold: Path, old: str, new: str) -> None:
    """Students that an earlier command taught name the former place."""
    if (fold / SCORED_TEACHER).exists():
        record = load(ScoredTeacher, fold / SCORED_TEACHER)
        if record.path == old:
            former = {*record.former, old} - {new}
            save(fold / SCORED_TEACHER, replace(record, path=new, former=tuple(sorted(former))))


def _begun(run: Path) -> Iterator[Path]:
    return (file.parent for file in sorted(run.glob(f"fold_*/{MADE_FROM_FILE}")))


def _placed(file: Path, old: str, new: str) -> Path:
    """A file at or below one place, at or below the other."""
    inside = file.relative_to(old)
    return Path(new) / inside if inside.parts else Path(new)


def _has(file: Path, digest: str) -> bool:
    stored = stored_checkpoint(file)
    return stored.is_file() and weights_in(stored) == digest
