"""Finding a teacher of a segmentation network, and checking that it fits the student's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkd.core.errors import RunError
from medkd.core.labels import LabelSpec
from medkd.core.plan import Configuration, Plan
from medkd.core.run import RUN_FILE, RunFolder
from medkd.core.serial import nearest
from medkd.models.guard import Teacher, TeacherSource, choose_teacher, seen_by, short_name, write_split
from medkd.models.trained import TrainedModel, load_networks
from medkd.networks import SegmentationNetwork

__all__ = ["Candidate", "Teacher", "check_same_data", "choose_teacher", "find_run", "write_split"]


@dataclass(frozen=True)
class Candidate(TeacherSource[SegmentationNetwork]):
    """What a TEACHER argument names, before one of its folds is chosen.

    Attributes:
        model: what it is, with the names of its trained folds but without networks.
        remedy: what to do where its preprocessing is not the student's.
    """

    model: TrainedModel
    remedy: str


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
        f"Teacher '{text}' is neither a model folder (of medkd, of nnU-Net v2, or with a teacher.json) nor a network "
        "trained for "
        f"{results.name} with {configuration}.{nearest(text, known)} Runs found: {', '.join(known) or 'none'}; train "
        "it with medkd_train "
        "first."
    )


def _of_run(run: RunFolder) -> Candidate:
    described = run.run
    configuration = run.plan.configuration(described.configuration)
    folds = tuple(run.trained_folds())
    model = TrainedModel(
        (), run.plan, configuration, run.dataset.labels, described.network.patch_size, described.mirror_axes, folds
    )  # fmt: skip
    name = short_name(run.path)
    return Candidate(
        name,
        name,
        run.path,
        folds,
        lambda fold: seen_by(run.fold(fold)),
        lambda fold: load_networks(run, [fold])[0],
        model,
        "train the teacher with this data set's plan",
    )


def check_same_data(
    candidate: Candidate, plan: Plan, configuration: Configuration, labels: LabelSpec, channels: int
) -> None:
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
            raise RunError(
                f"The teacher {candidate.path.name} does not fit: its {what} {found} differs from the data set's "
                f"{expected}."
            )
    preprocessing: list[tuple[str, Any, Any]] = [("axis order", model.plan.transpose, plan.transpose)]
    for key in ("spacing", "normalization", "use_mask_for_norm", "resampling", "crop"):
        preprocessing.append((f"preprocessing ({key})", getattr(theirs, key), getattr(configuration, key)))
    if "ct" in configuration.normalization:
        preprocessing.append(("intensity statistics", model.plan.intensities, plan.intensities))
    for what, found, expected in preprocessing:
        if found != expected:
            raise RunError(
                f"The teacher {candidate.path.name} does not fit: its {what} {found} differs from the student's "
                f"{expected}; "
                f"{candidate.remedy}."
            )


def _meaning(labels: LabelSpec) -> Any:
    """What outputs mean, whatever the case of the letters; values, order and painting count."""
    named = {name.casefold(): values if len(values) > 1 else values[0] for name, values in labels.entries}
    return list(named.items()), labels.regions, labels.order, labels.ignore
