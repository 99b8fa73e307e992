"""Data sets that are prepared the way a model that was trained elsewhere expects them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkd.core.dataset import DatasetDescription, labelled_cases
from medkd.core.dataset_keys import check_meant
from medkd.core.errors import PlanError, RunError
from medkd.core.kind_of_splits import made_without_labels
from medkd.core.labels import LabelSpec
from medkd.core.paths import Root
from medkd.core.plan import Plan
from medkd.core.run import DATASET_FILE, PLANS_FILE
from medkd.core.splits import SPLITS_FILE, Split, load_splits
from medkd.models.base import ModelFolder, kind_of, model_kinds
from medkd.models.run import SegmentationRun
from medkd.models.segmentation import SegmentationFolder
from medkd.models.several import SeveralTeachers
from medkd.preprocessing.prepare import TakenOver, plan_and_preprocess

_log = logging.getLogger(__name__)


def plan_like(
    dataset: str | int,
    model: ModelFolder[Any] | Path,
    *,
    root: str | Path | None = None,
    configurations: Sequence[str] | None = None,
    workers: int | None = None,
    overwrite_plan: bool = False,
    verify: bool = True,
    strict: bool = False,
    whole: bool = False,
) -> Plan:
    """Make a raw data set ready for the students of a teacher that was trained elsewhere: its preprocessing, its
    splits, its architecture and batch.

    nnU-Net's own preprocessed folder is not needed. Afterwards everything is as after
    :func:`medkd.preprocessing.prepare.plan_and_preprocess`.

    Args:
        dataset: number or full name.
        model: the teacher, or its folder.
        root: medkd's folder.
        configurations: which to preprocess; the teacher has one only.
        workers: largest number of cases at a time.
        overwrite_plan: replace a plan and splits that differ, once the raw data are found in order.
        verify: check the raw data first.
        strict: refuse raw data that raise a warning.
        whole: refuse a teacher that knows some of the structures only, since no other will teach beside it.

    Returns:
        The plan.

    Raises:
        RunError: the folder is no such model, or its labels, channels or cases are not the data set's.
        PlanError: there is another plan or there are other splits already.
    """
    teacher = model if isinstance(model, ModelFolder) else _open_planned(model)
    place = Root.resolve(root)
    name = place.dataset_name(dataset)
    raw, folder = place.raw_dataset(name), place.preprocessed / name
    description = DatasetDescription.load(raw / DATASET_FILE)
    check_meant(raw / DATASET_FILE)
    cases = [files.case for files in labelled_cases(raw, description)]
    described = teacher.describe()
    plan = replace(described.plan, dataset=name)
    _check_fits(teacher, plan, description, whole)
    splits = _own_splits(teacher, cases, raw)
    differs = _differing(folder, plan, splits)
    if differs and not overwrite_plan:
        raise PlanError(
            f"{folder} has another {' and '.join(differs)} than {teacher.path}; medkd_plan_and_preprocess --like "
            f"{teacher.path} --overwrite-plan replaces it."
        )
    shared = "architecture" if splits is None else "architecture and folds"
    text = "%s is prepared like %s: spacing, normalisation, resampling, %s are the teacher's"
    _log.info(text, name, teacher.path, shared)
    if not teacher.prepares and configurations is None:  # a run's plan holds what it was not trained on, too
        configurations = [described.configuration.name]
    return plan_and_preprocess(
        name,
        root=root,
        configurations=configurations,
        workers=workers,
        verify=verify,
        strict=strict,
        taken=TakenOver(plan, splits),
    )


def _check_fits(teacher: ModelFolder[Any], plan: Plan, description: DatasetDescription, whole: bool) -> None:
    """Structures and channels are the data set's, or of one among several teachers some of the structures."""
    described = teacher.describe()
    part = not whole and not teacher.merges and _knows_a_part(described.labels, description.labels)
    if part and isinstance(teacher, SegmentationFolder):
        teacher.check_gives_weights(plan, described.configuration.name, description)
        text = "%s knows some structures of %s only; the others need further teachers"
        _log.info(text, teacher.path, plan.dataset)
        return
    teacher.check_fits(plan, described.configuration.name, description)


def _knows_a_part(theirs: LabelSpec, ours: LabelSpec) -> bool:
    """Whether a teacher is one of several: its structures are some of the data set's, by their names."""
    own, wanted = ({name.casefold() for name, _ in spec.foreground} for spec in (theirs, ours))
    return own < wanted and not theirs.regions and not ours.regions


def _open_planned(path: Path) -> ModelFolder[Any]:
    """The model of a folder that was trained elsewhere: by others, as a run of medkd on another data set, or several
    in a list, of which the first one gives the plan.
    """
    kind = kind_of(path)
    return kind(path) if kind in (SegmentationRun, SeveralTeachers) else open_imported(path)


def _own_splits(teacher: ModelFolder[Any], cases: Sequence[str], raw: Path) -> list[Split] | None:
    """The teacher's folds over those of its cases that have labels in this data set.

    Returns:
        None where the teacher has no folds, nothing is labelled to judge by, or a fold is left without training cases.
    """
    splits = teacher.splits(cases, raw) if cases else None
    if splits is None:
        return None
    known = set(cases)
    kept = [_of_these(split, known) for split in splits]
    if kept == splits:
        return splits
    _say_what_is_left(splits, kept, known)
    return kept if all(split.train for split in kept) else None


def _say_what_is_left(splits: Sequence[Split], kept: Sequence[Split], known: set[str]) -> None:
    named: set[str] = set()
    for split in splits:
        named.update(split.train, split.val)
    _log.info("%d cases of the teacher's folds have no labels in this data set and are left out", len(named - known))
    unjudged = [str(number) for number, split in enumerate(kept) if not split.val]
    if unjudged:
        _log.warning(
            "none of the labelled cases is one that the teacher's fold %s held out, so that its students cannot be "
            "judged by them",
            ", ".join(unjudged),
        )


def prepare_if_new(
    dataset: str | int,
    model: ModelFolder[Any],
    root: str | Path | None,
    workers: int | None = None,
    *,
    strict: bool = False,
) -> None:
    """Prepare a data set that has no plan yet like a teacher that was trained elsewhere; anything else is left as it
    is.
    """
    place = Root.resolve(root)
    if model.prepares and not (place.preprocessed / place.dataset_name(dataset) / PLANS_FILE).exists():
        plan_like(dataset, model, root=root, workers=workers, strict=strict, whole=True)


def open_imported(path: Path) -> ModelFolder[Any]:
    """The model of a folder that was trained elsewhere, so that data sets can be prepared like it.

    Raises:
        RunError: it is no such model.
    """
    kind = kind_of(path)
    if kind is None or not kind.prepares:
        titles = ", nor ".join(kind.title for kind in model_kinds() if kind.prepares)
        raise RunError(f"{path} is no model that was trained elsewhere: neither {titles}.")
    return kind(path)


def _of_these(split: Split, cases: set[str]) -> Split:
    """The split, of the cases that have labels in this data set."""
    train = tuple(case for case in split.train if case in cases)
    return Split(train, tuple(case for case in split.val if case in cases))


def _differing(folder: Path, plan: Plan, splits: list[Split] | None) -> list[str]:
    """The files of a preprocessed data set that say something else."""
    differs = []
    # what its cases look like is added to a plan when they are read
    if (folder / PLANS_FILE).exists() and replace(Plan.load(folder / PLANS_FILE), ranges=plan.ranges) != plan:
        differs.append(PLANS_FILE)
    file = folder / SPLITS_FILE
    kept = file.exists() and not made_without_labels(file)
    if splits is not None and kept and load_splits(file) != splits:
        differs.append(SPLITS_FILE)
    return differs
