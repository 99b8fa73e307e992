"""Finding a teacher, checking that it fits the student's data, and the guard against leaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkd.core.errors import LeakError, RunError
from medkd.core.files import read_json, write_json
from medkd.core.labels import LabelSpec
from medkd.core.plan import Configuration, Plan
from medkd.core.run import RUN_FILE, SPLIT_FILE, RunFolder
from medkd.core.serial import nearest
from medkd.inference.model import TrainedModel, load_networks
from medkd.networks import SegmentationNetwork
from medkd.training.splits import ALL, Split


@dataclass(frozen=True)
class Candidate:
    """What a TEACHER argument names, before one of its folds is chosen.

    Attributes:
        name: short name for the student's run name.
        recorded: what the student's ``run.json`` says of it: its name, or the folder of a model that was trained elsewhere.
        path: its folder.
        model: what it is, with the names of its trained folds but without networks.
        seen: fold → every case that this fold, or a teacher of its own, was trained on.
        load: fold → its network, on the CPU and in evaluation mode.
        remedy: what to do where its preprocessing is not the student's.
    """

    name: str
    recorded: str
    path: Path
    model: TrainedModel
    seen: Callable[[str], frozenset[str]]
    load: Callable[[str], SegmentationNetwork]
    remedy: str


@dataclass(frozen=True)
class Teacher:
    """A trained network that is allowed to teach one fold.

    Attributes:
        candidate: where it comes from.
        fold: the fold whose weights teach.
        seen: every case that it, or a teacher of its own, was trained on.
    """

    candidate: Candidate
    fold: str
    seen: frozenset[str]

    def network(self) -> SegmentationNetwork:
        """Load it, on the CPU and in evaluation mode."""
        return self.candidate.load(self.fold)


def write_split(folder: Path, split: Split, taught_by: frozenset[str] = frozenset()) -> None:
    """Record in a fold folder what the network is trained on; the guard of later students reads it.

    Args:
        folder: fold folder.
        split: training and validation cases.
        taught_by: the cases its teacher has seen.
    """
    write_json(folder / SPLIT_FILE, {"train": list(split.train), "val": list(split.val), "teacher_train": sorted(taught_by)})


def find_run(text: str, results: Path, configuration: str) -> Candidate:
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
            return _of_run(RunFolder.load(folder))
    known = sorted(p.parent.name for p in results.glob(f"*/{RUN_FILE}")) if results.is_dir() else []
    raise RunError(
        f"Teacher '{text}' is neither a model folder (of medkd, of nnU-Net v2, or with a teacher.json) nor a network trained for "
        f"{results.name} with {configuration}.{nearest(text, known)} Runs found: {', '.join(known) or 'none'}; train it with medkd_train "
        "first."
    )


def _of_run(run: RunFolder) -> Candidate:
    described = run.run
    configuration = run.plan.configuration(described.configuration)
    folds = tuple(run.trained_folds())
    model = TrainedModel(
        (), run.plan, configuration, run.dataset.labels, described.network.patch_size, described.mirror_axes, folds
    )  # fmt: skip
    name = _short_name(run)
    return Candidate(
        name,
        name,
        run.path,
        model,
        lambda fold: _seen(run.fold(fold)),
        lambda fold: load_networks(run, [fold])[0],
        "train the teacher with this data set's plan",
    )


def choose_teacher(candidate: Candidate, fold: int | str, split: Split) -> Teacher:
    """The teacher's fold that may teach a student of ``fold``.

    A teacher must never have seen a case that its student is judged on, neither itself nor through a teacher of its own. The
    teacher's own fold of the same number comes first, then any other.

    Raises:
        RunError: the teacher has no finished fold, or does not say what it was trained on.
        LeakError: every finished fold has seen some of the student's validation cases.
    """
    folds = sorted(candidate.model.folds, key=lambda f: (f != str(fold), f != ALL if str(fold) == ALL else f))
    if not folds:
        raise RunError(f"The teacher {candidate.path} has no finished fold (no checkpoint_final.pt); finish its training first.")
    overlaps: list[tuple[str, list[str]]] = []
    for name in folds:
        seen = candidate.seen(name)
        overlap = sorted(seen & set(split.val))
        if not overlap:
            return Teacher(candidate, name, seen)
        overlaps.append((name, overlap))
    name, overlap = overlaps[0]
    raise LeakError(
        f"The teacher {candidate.path.name} was trained (fold {name}) on {len(overlap)} of the {len(split.val)} cases on which fold {fold} "
        f"of the student is judged, for example {overlap[0]}; train the teacher for fold {fold} with the same splits, or train the student "
        f"as fold '{ALL}' and judge it on a test set."
    )


def check_same_data(candidate: Candidate, plan: Plan, configuration: Configuration, labels: LabelSpec, channels: int) -> None:
    """Teacher and student must see the same input and mean the same by their outputs.

    Raises:
        RunError: the first thing that differs (labels, channels, transposition, spacing, normalisation, intensities).
    """
    model, theirs = candidate.model, candidate.model.configuration
    meaning: Sequence[tuple[str, Any, Any]] = [
        ("labels", _meaning(model.labels), _meaning(labels)),
        ("number of input channels", len(theirs.normalization), channels),
    ]
    for what, found, expected in meaning:
        if found != expected:
            raise RunError(f"The teacher {candidate.path.name} does not fit: its {what} {found} differs from the data set's {expected}.")
    preprocessing: list[tuple[str, Any, Any]] = [("axis order", model.plan.transpose, plan.transpose)]
    for key in ("spacing", "normalization", "use_mask_for_norm", "resampling", "crop"):
        preprocessing.append((f"preprocessing ({key})", getattr(theirs, key), getattr(configuration, key)))
    if "ct" in configuration.normalization:
        preprocessing.append(("intensity statistics", model.plan.intensities, plan.intensities))
    for what, found, expected in preprocessing:
        if found != expected:
            raise RunError(
                f"The teacher {candidate.path.name} does not fit: its {what} {found} differs from the student's {expected}; "
                f"{candidate.remedy}."
            )


def _meaning(labels: LabelSpec) -> Any:
    """What outputs mean, whatever the case of the letters; values, order and painting count."""
    named = {name.casefold(): values if len(values) > 1 else values[0] for name, values in labels.entries}
    return list(named.items()), labels.regions, labels.order, labels.ignore


def _seen(folder: Path) -> frozenset[str]:
    path = folder / SPLIT_FILE
    if not path.exists():
        raise RunError(f"{path} is missing, so nobody can say which cases this teacher has seen; train it again with medkd_train.")
    data = read_json(path)
    return frozenset(data["train"]) | frozenset(data.get("teacher_train", []))


def _short_name(run: RunFolder) -> str:
    network, *rest = run.path.name.split("__")
    return network if len(rest) < 2 else "-".join([network, *rest[1:2]])
