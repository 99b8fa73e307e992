"""Finding a teacher, checking that it fits the student's data, and the guard against leaks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from medkd.core.errors import LeakError, RunError
from medkd.core.files import read_json, write_json
from medkd.core.labels import LabelSpec
from medkd.core.plan import Configuration, Plan
from medkd.core.run import RUN_FILE, SPLIT_FILE, RunFolder
from medkd.core.serial import nearest
from medkd.training.splits import ALL, Split


@dataclass(frozen=True)
class Teacher:
    """A trained network that is allowed to teach one fold.

    Attributes:
        name: short name for the student's run name.
        run: its run folder.
        fold: the fold whose weights teach.
        seen: every case that it, or a teacher of its own, was trained on.
    """

    name: str
    run: RunFolder
    fold: str
    seen: frozenset[str]


def write_split(folder: Path, split: Split, taught_by: frozenset[str] = frozenset()) -> None:
    """Record in a fold folder what the network is trained on; the guard of later students reads it.

    Args:
        folder: fold folder.
        split: training and validation cases.
        taught_by: the cases its teacher has seen.
    """
    write_json(folder / SPLIT_FILE, {"train": list(split.train), "val": list(split.val), "teacher_train": sorted(taught_by)})


def find_run(text: str, results: Path, configuration: str) -> RunFolder:
    """The run that a TEACHER argument names: a run folder, a run's name, or a network trained with this configuration.

    Args:
        text: what the user wrote.
        results: results folder of the data set.
        configuration: of the student.

    Raises:
        RunError: there is no such run; the existing ones are named.
    """
    for folder in (Path(text), results / text, results / f"{text}__{configuration}"):
        if (folder / RUN_FILE).exists():
            return RunFolder.load(folder)
    known = sorted(p.parent.name for p in results.glob(f"*/{RUN_FILE}")) if results.is_dir() else []
    raise RunError(
        f"Teacher '{text}' is neither a run folder nor a network trained for {results.name} with {configuration}."
        f"{nearest(text, known)} Runs found: {', '.join(known) or 'none'}; train it with medkd_train first."
    )


def choose_teacher(run: RunFolder, fold: int | str, split: Split) -> Teacher:
    """The teacher's fold that may teach a student of ``fold``.

    A teacher must never have seen a case that its student is judged on, neither itself nor through a teacher of its own. The
    teacher's own fold of the same number comes first, then any other.

    Raises:
        RunError: the teacher has no finished fold, or does not say what it was trained on.
        LeakError: every finished fold has seen some of the student's validation cases.
    """
    folds = sorted(run.trained_folds(), key=lambda f: (f != str(fold), f != ALL if str(fold) == ALL else f))
    if not folds:
        raise RunError(f"The teacher {run.path} has no finished fold (no checkpoint_final.pt); finish its training first.")
    overlaps: list[tuple[str, list[str]]] = []
    for candidate in folds:
        seen = _seen(run.fold(candidate))
        overlap = sorted(seen & set(split.val))
        if not overlap:
            return Teacher(_short_name(run), run, candidate, seen)
        overlaps.append((candidate, overlap))
    candidate, overlap = overlaps[0]
    raise LeakError(
        f"The teacher {run.path.name} was trained (fold {candidate}) on {len(overlap)} of the {len(split.val)} cases on which fold {fold} "
        f"of the student is judged, for example {overlap[0]}; train the teacher for fold {fold} with the same splits, or train the student "
        f"as fold '{ALL}' and judge it on a test set."
    )


def check_same_data(run: RunFolder, plan: Plan, configuration: Configuration, labels: LabelSpec, channels: int) -> None:
    """Teacher and student must see the same input and mean the same by their outputs.

    Raises:
        RunError: the first thing that differs (labels, channels, transposition, spacing, normalisation, intensities).
    """
    theirs = run.plan.configuration(run.run.configuration)
    facts = [
        ("labels", run.dataset.labels, labels),
        ("number of input channels", run.run.network.in_channels, channels),
        ("axis order", run.plan.transpose, plan.transpose),
        ("preprocessing", _preprocessing(theirs), _preprocessing(configuration)),
    ]
    if "ct" in configuration.normalization:
        facts.append(("intensity statistics", run.plan.intensities, plan.intensities))
    for what, found, expected in facts:
        if found != expected:
            raise RunError(
                f"The teacher {run.path.name} does not fit: its {what} {found} differs from the student's {expected}; "
                "train the teacher with this data set's plan."
            )


def _preprocessing(configuration: Configuration) -> Configuration:
    return replace(configuration, name="", architectures={}, batch_dice=False, median_shape=())


def _seen(folder: Path) -> frozenset[str]:
    path = folder / SPLIT_FILE
    if not path.exists():
        raise RunError(f"{path} is missing, so nobody can say which cases this teacher has seen; train it again with medkd_train.")
    data = read_json(path)
    return frozenset(data["train"]) | frozenset(data.get("teacher_train", []))


def _short_name(run: RunFolder) -> str:
    network, *rest = run.path.name.split("__")
    return network if len(rest) < 2 else "-".join([network, *rest[1:2]])
