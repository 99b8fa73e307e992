"""The guard against leaks, for every kind of network: a teacher must never have seen a case on which its student is
judged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from medkd.core.errors import LeakError, RunError
from medkd.core.files import write_json
from medkd.core.run import SPLIT_FILE
from medkd.core.splits import ALL, FoldRecord, Split
from medkd.models.base import ModelFolder, Trained

T = TypeVar("T", bound=Trained)
UNKNOWN = ""  # stands among the cases that a network has seen for those that nobody can name


@dataclass(frozen=True)
class Teacher(Generic[T]):
    """A model of which one fold is allowed to teach.

    Attributes:
        model: the model.
        fold: the fold whose weights teach.
        seen: every case that it, or a teacher of its own, was trained on.
    """

    model: ModelFolder[T]
    fold: str
    seen: frozenset[str]

    def network(self) -> Any:
        """Load it, on the CPU and in evaluation mode."""
        return self.model.network(self.fold)


def leaks(seen: Collection[str], split: Split, patients: Mapping[str, str] | None = None) -> list[str]:
    """The seen cases that tell of those on which a fold is judged: these themselves, then other scans of their
    patients.

    A patient on whose scans the fold is trained as well does not count: who made such splits was told of it, and a
    teacher of the same splits knows no more than its student.

    Args:
        seen: by a network that is going to teach, or to give its weights.
        split: of the fold.
        patients: case → patient, where known.
    """
    owners, judged = patients or {}, set(split.val)
    whom = {owners[case] for case in split.val if case in owners}
    whom -= {owners[case] for case in split.train if case in owners}
    return sorted(judged.intersection(seen)) + sorted(case for case in set(seen) - judged if owners.get(case) in whom)


def told_leak(found: Sequence[str], split: Split, whose: str) -> str:
    """What :func:`leaks` found, behind "was trained on"; ``whose`` names the fold."""
    themselves = len(set(found) & set(split.val))
    if themselves:
        return f"{themselves} of the {len(split.val)} cases on which {whose} is judged, for example {found[0]}"
    return f"{len(found)} other scans of patients on whom {whose} is judged, for example {found[0]}"


def choose_teacher(
    model: ModelFolder[T],
    fold: int | str,
    split: Split,
    cases: Sequence[str],
    raw: Path,
    patients: Mapping[str, str] | None = None,
) -> Teacher[T]:
    """The teacher's fold that may teach a student of ``fold``.

    A teacher must never have seen a case that its student is judged on, or another scan of that patient, neither itself
    nor through a teacher of its own. The teacher's own fold of the same number comes first, then any other.

    Args:
        model: that is going to teach.
        fold: of the student.
        split: the student's training and validation cases.
        cases: all training cases of the student's data set.
        raw: its raw folder, which may hold splits.
        patients: case → patient, where known.

    Raises:
        RunError: the teacher has no finished fold, or does not say what it was trained on.
        LeakError: every finished fold has seen some of the student's validation cases.
    """
    folds = sorted(model.teaching_folds, key=lambda f: (f != str(fold), f != ALL if str(fold) == ALL else f))
    if not folds:
        raise RunError(
            f"The teacher {model.path} has no finished fold (no checkpoint_final.pt); finish its training first."
        )
    overlaps: list[tuple[str, list[str]]] = []
    for name in folds:
        seen = model.seen(name, cases, raw)
        overlap = leaks(seen, split, patients)
        if not overlap:
            return Teacher(model, name, seen)
        overlaps.append((name, overlap))
    name, overlap = overlaps[0]
    raise LeakError(
        f"The teacher {model.path.name} was trained (fold {name}) on "
        f"{told_leak(overlap, split, f'fold {fold} of the student')}; train the teacher for fold {fold} with "
        f"the same splits, or train the student as fold '{ALL}' and judge it on a test set{model.cleared(raw)}."
    )


def choose_any_fold(model: ModelFolder[T], fold: int | str, cases: Sequence[str], raw: Path) -> Teacher[T]:
    """The teacher's fold that teaches where no case has a label, so that nobody is judged by labels.

    What it has seen is recorded where it is known, and :data:`UNKNOWN` where not, for students of the student.

    Raises:
        RunError: the teacher has no finished fold.
    """
    folds = sorted(model.teaching_folds, key=lambda f: (f != ALL, f != str(fold), f))
    if not folds:
        raise RunError(f"The teacher {model.path} has no finished fold; finish its training first.")
    try:
        seen = model.seen(folds[0], cases, raw)
    except RunError:
        seen = frozenset({UNKNOWN})
    return Teacher(model, folds[0], seen)


def allowed_folds(
    first: Teacher[T], split: Split, cases: Sequence[str], raw: Path, patients: Mapping[str, str] | None = None
) -> list[Teacher[T]]:
    """``first``, and every other fold of the same model that has seen none of the cases on which the student is judged,
    nor other scans of their patients.

    For a fold that holds out cases this is seldom more than one; a student of all cases, judged on a test set, may
    learn from all. The arguments are those of :func:`choose_teacher`.
    """
    allowed = [first]
    for fold in first.model.teaching_folds:
        if fold == first.fold:
            continue
        seen = first.model.seen(fold, cases, raw)
        if not leaks(seen, split, patients):
            allowed.append(Teacher(first.model, fold, seen))
    return allowed


def write_split(
    folder: Path, split: Split, taught_by: frozenset[str] = frozenset(), teacher_weights: Sequence[str] = ()
) -> None:
    """Record in a fold folder what the network is trained on; the guard of later students reads it.

    Args:
        folder: fold folder.
        split: training and validation cases.
        taught_by: the cases its teacher has seen.
        teacher_weights: a hash of each network that teaches.
    """
    content = {"train": list(split.train), "val": list(split.val), "teacher_train": sorted(taught_by)}
    if split.unlabelled:
        content["unlabelled"] = list(split.unlabelled)
    if teacher_weights:
        content["teacher_weights"] = sorted(teacher_weights)
    write_json(folder / SPLIT_FILE, content)


def seen_by(folder: Path) -> frozenset[str]:
    """Every case that the network of a fold folder, or a teacher of its own, was trained on.

    Raises:
        RunError: the folder does not say.
    """
    path = folder / SPLIT_FILE
    if not path.exists():
        raise RunError(
            f"{path} is missing, so nobody can say which cases this teacher has seen; train it again with medkd_train."
        )
    known = FoldRecord.load(path)
    if UNKNOWN in known.teacher_train:
        raise RunError(
            f"{path}: the network was taught on scans without labels by a teacher of which nobody can say what it has "
            "seen, so it may not teach where students are judged by labels; take another teacher."
        )
    return frozenset(known.train) | frozenset(known.teacher_train) | frozenset(known.unlabelled)
