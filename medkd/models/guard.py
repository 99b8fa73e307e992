"""The guard against leaks, for every kind of network: a teacher must never have seen a case on which its student is
judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from medkd.core.errors import LeakError, RunError
from medkd.core.files import read_json, write_json
from medkd.core.run import SPLIT_FILE
from medkd.core.splits import ALL, Split

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class TeacherSource(Generic[N]):
    """What a TEACHER argument names, before one of its folds is chosen.

    Attributes:
        name: short name for the student's run name.
        recorded: what the student's ``run.json`` says of it: its name, or the folder of a model that was trained
            elsewhere.
        path: its folder.
        folds: the names of its trained folds.
        seen: fold → every case that this fold, or a teacher of its own, was trained on.
        load: fold → its network, on the CPU and in evaluation mode.
    """

    name: str
    recorded: str
    path: Path
    folds: tuple[str, ...]
    seen: Callable[[str], frozenset[str]]
    load: Callable[[str], N]


S = TypeVar("S", bound=TeacherSource)


@dataclass(frozen=True)
class Teacher(Generic[S]):
    """A trained network that is allowed to teach one fold.

    Attributes:
        candidate: where it comes from.
        fold: the fold whose weights teach.
        seen: every case that it, or a teacher of its own, was trained on.
    """

    candidate: S
    fold: str
    seen: frozenset[str]

    def network(self) -> Any:
        """Load it, on the CPU and in evaluation mode; of the candidate's kind."""
        return self.candidate.load(self.fold)


def choose_teacher(candidate: S, fold: int | str, split: Split) -> Teacher[S]:
    """The teacher's fold that may teach a student of ``fold``.

    A teacher must never have seen a case that its student is judged on, neither itself nor through a teacher of its
    own. The teacher's own fold of the same number comes first, then any other.

    Raises:
        RunError: the teacher has no finished fold, or does not say what it was trained on.
        LeakError: every finished fold has seen some of the student's validation cases.
    """
    folds = sorted(candidate.folds, key=lambda f: (f != str(fold), f != ALL if str(fold) == ALL else f))
    if not folds:
        raise RunError(
            f"The teacher {candidate.path} has no finished fold (no checkpoint_final.pt); finish its training first."
        )
    overlaps: list[tuple[str, list[str]]] = []
    for name in folds:
        seen = candidate.seen(name)
        overlap = sorted(seen & set(split.val))
        if not overlap:
            return Teacher(candidate, name, seen)
        overlaps.append((name, overlap))
    name, overlap = overlaps[0]
    raise LeakError(
        f"The teacher {candidate.path.name} was trained (fold {name}) on {len(overlap)} of the {len(split.val)} cases "
        f"on which fold {fold} "
        f"of the student is judged, for example {overlap[0]}; train the teacher for fold {fold} with the same splits, "
        "or train the student "
        f"as fold '{ALL}' and judge it on a test set."
    )


def write_split(folder: Path, split: Split, taught_by: frozenset[str] = frozenset()) -> None:
    """Record in a fold folder what the network is trained on; the guard of later students reads it.

    Args:
        folder: fold folder.
        split: training and validation cases.
        taught_by: the cases its teacher has seen.
    """
    write_json(
        folder / SPLIT_FILE, {"train": list(split.train), "val": list(split.val), "teacher_train": sorted(taught_by)}
    )


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
    data = read_json(path)
    return frozenset(data["train"]) | frozenset(data.get("teacher_train", []))


def short_name(run: Path) -> str:
    """Name of a teacher in the names of its students' runs: its network, and how it was distilled if it was."""
    network, *rest = run.name.split("__")
    return network if len(rest) < 2 else "-".join([network, *rest[1:2]])
