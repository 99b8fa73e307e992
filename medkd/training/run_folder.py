"""The folder of a run: its name, when a fold in it may be started or continued, and what is written before training
starts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, OutdatedError, RunError
from medkd.core.made_from import note_inputs
from medkd.core.moved import all_lie_at, moved_teachers, names_of_teachers, note_moved
from medkd.core.run import BEST, DATASET_FILE, FINAL, LATEST, PLANS_FILE, RUN_FILE, SPLIT_FILE, RunDescription
from medkd.core.serial import load, save
from medkd.core.splits import SPLITS_FILE, FoldRecord, Split
from medkd.models.guard import write_split

TRACES = (LATEST, BEST, FINAL, "ultralytics/weights/last.pt")
"""Files by which a fold was trained before, whole or in part."""
_FROM = "__from_"  # before the teacher in the name of a run
_FREE = ("precision", "speed", "random_layers")  # of a run, in which its folds may differ


@dataclass(frozen=True)
class SharedFacts:
    """What all folds of one run have in common beside ``run.json``: how the input is made and what the output means.

    Attributes:
        now: name → value, of the data that a fold is going to be trained on.
        stored: run folder → the same of the data that its folds were trained on.
    """

    now: Mapping[str, Any]
    stored: Callable[[Path], Mapping[str, Any]]


def run_name(network: str, configuration: str, method: str | None, teacher: str | None, tag: str | None) -> str:
    """``student__configuration``, and ``__method__from_teacher`` where it is distilled, and the user's tag."""
    parts = [network, configuration, *([method] if method else [])]
    named = f"{'__'.join(parts)}{_FROM}{teacher}" if method else "__".join(parts)
    return f"{named}__{tag}" if tag else named


def open_fold(path: Path, fold: str, run: RunDescription, facts: SharedFacts, *, resume: bool, overwrite: bool) -> Path:
    """The fold folder of a run that may be started or continued; nothing is written yet.

    A run folder holds folds of one and the same run; another network, budget, method or preprocessing needs another
    name.

    Args:
        path: run folder, which need not exist.
        fold: 0-4 or ``all``.
        run: what is going to be trained.
        facts: of the data that it is going to be trained on.
        resume: an interrupted fold is continued.
        overwrite: what an earlier run left in the fold folder may be thrown away.

    Raises:
        RunError: the folder holds another run, or this fold was trained before.
    """
    folder = path / f"fold_{fold}"
    others = [p.name for p in sorted(path.glob("fold_*")) if p != folder and _was_trained(p)]
    kept = not overwrite and _was_trained(folder)
    differs = _difference_to(path, run, facts) if others or kept else None
    if differs:
        _refuse_other_settings(path, differs, others)
    if kept and not resume:
        raise RunError(
            f"{folder} was trained before; give --continue to go on, --overwrite to start anew, or --tag TEXT to keep "
            "both."
        )
    return folder


def _was_trained(folder: Path) -> bool:
    return any((folder / name).exists() for name in TRACES)


def _refuse_other_settings(path: Path, differs: str, others: Sequence[str]) -> NoReturn:
    if others:
        held, remedy = f"{', '.join(others)} of a run", f"delete {path}"
    else:
        held, remedy = "a run", "--overwrite to replace it"
    raise RunError(f"{path} holds {held} with other settings ({differs}); give --tag TEXT to keep both, or {remedy}.")


def check_cases(folder: Path, split: Split, taught_by: frozenset[str]) -> None:
    """See to it that a fold goes on with the cases with which it began, so that none on which it is judged was ever
    learnt from.

    Args:
        folder: fold folder; one without weights may begin with any cases.
        split: of the fold, now.
        taught_by: cases that the teacher has seen, now.

    Raises:
        RunError: the fold began with other cases, or with a teacher of other cases.
    """
    path = folder / SPLIT_FILE
    if not path.exists() or not any(folder.rglob("*.pt")):
        return
    known = FoldRecord.load(path)
    parts = (
        ("train", "training", split.train, f"restore {SPLITS_FILE} and the cases"),
        ("val", "validation", split.val, f"restore {SPLITS_FILE}"),
        ("unlabelled", "unlabelled training", split.unlabelled, "restore these scans"),
        ("teacher_train", "teacher's training", taught_by, "take the teacher with the folds that it had"),
    )
    for key, what, now, remedy in parts:
        other = sorted(set(getattr(known, key)) ^ set(now))
        if other:
            raise RunError(
                f"{folder} was trained with other splits: {len(other)} of its {what} cases differ, for example "
                f"{other[0]}; {remedy}, or "
                "give --overwrite to start anew, or --tag TEXT to keep both."
            )


def check_teachers(folder: Path, weights: Callable[[], Sequence[str]]) -> None:
    """See to it that a fold goes on with the teachers with which it began.

    Args:
        folder: fold folder; one without weights may begin with any.
        weights: gives a hash of each network that teaches, now.

    Raises:
        OutdatedError: a teacher was trained anew, or others of its folds teach.
    """
    path = folder / SPLIT_FILE
    if not path.exists() or not any(folder.rglob("*.pt")):
        return
    known = FoldRecord.load(path).teacher_weights
    now = set(weights()) if known else set()
    if now != set(known):
        kept = len(now & set(known))
        raise OutdatedError(
            f"{folder} was taught by {len(known)} networks, of which {kept} are among the {len(now)} that teach now "
            "(the teacher was trained anew, or has other folds); restore them, or give --overwrite to start anew, or "
            "--tag TEXT to keep both."
        )


def validation_cases(folder: Path) -> tuple[str, ...]:
    """The cases on which a trained fold is judged: those that it held out, whatever the data set's splits say by now.

    Raises:
        RunError: the folder does not say.
    """
    path = folder / SPLIT_FILE
    if not path.exists():
        raise RunError(
            f"{path} is missing, so nobody can say which cases this fold held out; train it again with --overwrite."
        )
    return FoldRecord.load(path).val


def start_fold(
    folder: Path,
    run: RunDescription,
    plan: Any,
    description: DatasetDescription,
    split: Split,
    taught_by: frozenset[str],
    overwrite: bool,
    teacher_weights: Sequence[str] = (),
    weights: Sequence[Path] = (),
) -> None:
    """Write what the run is, once everything about it is known to fit.

    Args:
        folder: fold folder.
        run: ``run.json``.
        plan: ``plans.json``, a dataclass.
        description: ``dataset.json``.
        split: of the fold.
        taught_by: cases that the teacher has seen.
        overwrite: throw away what an earlier run left in the fold folder.
        teacher_weights: a hash of each network that teaches.
        weights: files of the networks that teach, or that it starts from.

    Raises:
        RunError: the fold began with other cases, see :func:`check_cases`.
    """
    follow_teachers(folder.parent, run)
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    check_cases(folder, split, taught_by)
    save(folder.parent / RUN_FILE, _as_far_as_known(folder, run))
    save(folder.parent / PLANS_FILE, plan)
    description.save(folder.parent / DATASET_FILE)
    write_split(folder, split, taught_by, teacher_weights)
    note_inputs(folder, run.configuration, weights, (*split.train, *split.unlabelled))


def follow_teachers(path: Path, run: RunDescription) -> None:
    """Write into the records of a run where its teachers lie, if they were moved since its folds were trained.

    Args:
        path: run folder, which need not exist.
        run: what is going to be trained.
    """
    if (path / RUN_FILE).exists():
        for old, new in moved_teachers(path, load(RunDescription, path / RUN_FILE), run).items():
            note_moved(path, old, new)


def find_run(results: Path, name: str, tag: str | None, run: RunDescription, facts: SharedFacts) -> Path:
    """The folder of a run: that of its name, or where there is none that of the same run by a teacher whose folder was
    called otherwise before it was moved.

    Args:
        results: of the data set.
        name: see :func:`run_name`.
        tag: with which it ends.
        run: what is going to be trained.
        facts: of the data that it is going to be trained on.
    """
    if run.taught_by and not (results / name).exists():
        start, end = f"{name.partition(_FROM)[0]}{_FROM}", f"__{tag}" if tag else ""
        for file in sorted(results.glob(f"*/{RUN_FILE}")):
            teacher = file.parent.name.removeprefix(start).removesuffix(end)
            alike = file.parent.name == f"{start}{teacher}{end}"
            if alike and _was_moved(file, run, teacher) and _difference_to(file.parent, run, facts) is None:
                return file.parent
    return results / name


def _was_moved(file: Path, run: RunDescription, teacher: str) -> bool:
    """Whether the teachers of a run lie elsewhere by now, not where they lay, and were called as its name says."""
    try:
        known = load(RunDescription, file)
    except DataError:  # whoever works with that run says what is wrong
        return False
    moved = moved_teachers(file.parent, known, run)
    gone = bool(moved) and not any(Path(old).exists() for old in moved)
    return (gone or known.taught_by == run.taught_by) and teacher in names_of_teachers(file.parent, known)


def _as_far_as_known(folder: Path, run: RunDescription) -> RunDescription:
    """What all folds of a run have in common: those of an older version do not say which run taught them."""
    file = folder.parent / RUN_FILE
    others = [path for path in folder.parent.glob("fold_*") if path != folder and _was_trained(path)]
    if others and file.exists() and not load(RunDescription, file).taught_by:
        return replace(run, taught_by=())
    return run


def _difference_to(path: Path, run: RunDescription, facts: SharedFacts) -> str | None:
    """What a run folder holds otherwise than it is wanted now; precision and switches for speed may change, which
    layers have no counterpart in a teacher follows from the rest, and older files do not say which run taught.
    """
    if not (path / RUN_FILE).exists():
        return None
    known = load(RunDescription, path / RUN_FILE)
    kept = _FREE if known.taught_by else (*_FREE, "taught_by")
    free = {name: getattr(known, name) for name in (*kept, *_same_elsewhere(path, known, run))}
    differs = _difference(known, replace(run, **free))
    return differs or _difference(facts.stored(path), facts.now)


def _same_elsewhere(path: Path, known: RunDescription, run: RunDescription) -> Iterator[str]:
    """What names a teacher, or first weights, that only lie at another place by now."""
    if moved_teachers(path, known, run):
        yield from ("teacher", "taught_by")
    if known.weights is not None and run.weights is not None and known.weights.sha256 == run.weights.sha256:
        yield "weights"
    starts = (known.backbone_weights, run.backbone_weights)
    if starts[0] != starts[1] and None not in starts and all_lie_at(path, *map(str, starts)):
        yield "backbone_weights"


def _difference(known: Any, now: Any, name: str = "") -> str | None:
    """The first thing that differs, ``budget.epochs: 4 there, 9 now``; None where all is equal."""
    if known == now:
        return None
    there, here = _parts(known), _parts(now)
    if there is not None and here is not None and type(known) is type(now):
        for key in {**there, **here}:
            found = _difference(there.get(key), here.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
    return f"{name}: {known} there, {now} now"


def _parts(value: Any) -> Mapping[str, Any] | None:
    """The entries of a mapping or dataclass; None for a plain value."""
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return value if isinstance(value, Mapping) else None
