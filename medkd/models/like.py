"""Data sets that are prepared the way a model that was trained elsewhere expects them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkd.core.dataset import DatasetDescription, labelled_cases, unlabelled_cases
from medkd.core.errors import PlanError, RunError
from medkd.core.paths import Root
from medkd.core.plan import Plan
from medkd.core.run import DATASET_FILE, PLANS_FILE
from medkd.core.serial import save
from medkd.core.splits import SPLITS_FILE, Split, load_splits, save_splits
from medkd.models.base import ModelFolder, kind_of, model_kinds
from medkd.preprocessing.prepare import plan_and_preprocess

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
) -> Plan:
    """Make a raw data set ready for the students of an imported teacher: its preprocessing, its splits, its
    architecture and batch.

    nnU-Net's own preprocessed folder is not needed. Afterwards everything is as after
    :func:`medkd.preprocessing.prepare.plan_and_preprocess`.

    Args:
        dataset: number or full name.
        model: the teacher, or its folder.
        root: medkd's folder.
        configurations: which to preprocess; the teacher has one only.
        workers: largest number of cases at a time.
        overwrite_plan: replace a plan and splits that differ.
        verify: check the raw data first.
        strict: refuse raw data that raise a warning.

    Returns:
        The plan.

    Raises:
        RunError: the folder is no such model, or its labels, channels or cases are not the data set's.
        PlanError: there is another plan or there are other splits already.
    """
    teacher = model if isinstance(model, ModelFolder) else open_imported(model)
    place = Root.resolve(root)
    name = place.dataset_name(dataset)
    raw, folder = place.raw_dataset(name), place.preprocessed / name
    description = DatasetDescription.load(raw / DATASET_FILE)
    cases = [files.case for files in labelled_cases(raw, description)]
    described = teacher.describe()
    plan = replace(described.plan, dataset=name)
    teacher.check_fits(plan, described.configuration.name, description)
    splits = _labelled_splits(teacher, cases, raw, description)
    differs = _differing(folder, plan, splits)
    if differs and not overwrite_plan:
        raise PlanError(
            f"{folder} has another {' and '.join(differs)} than {teacher.path}; give --overwrite-plan to replace it."
        )
    save(folder / PLANS_FILE, plan)
    if splits is not None:
        save_splits(folder / SPLITS_FILE, splits)
    _log.info(
        "%s is prepared like %s: spacing, normalisation, resampling, architecture and folds are the teacher's",
        name,
        teacher.path,
    )
    return plan_and_preprocess(
        name, root=root, configurations=configurations, workers=workers, verify=verify, strict=strict
    )


def _labelled_splits(
    teacher: ModelFolder[Any], cases: Sequence[str], raw: Path, description: DatasetDescription
) -> list[Split] | None:
    """The teacher's folds over labelled cases; None where it has none, or where nothing is labelled to judge by."""
    splits = teacher.splits(cases, raw) if cases else None
    if splits is None:
        return None
    plain = {files.case for files in unlabelled_cases(raw, description)}
    return [_without(split, plain) for split in splits] if plain else splits


def prepare_if_new(
    dataset: str | int, model: ModelFolder[Any], root: str | Path | None, workers: int | None = None
) -> None:
    """Prepare a data set that has no plan yet like a teacher that was trained elsewhere; anything else is left as it
    is.
    """
    place = Root.resolve(root)
    if model.prepares and not (place.preprocessed / place.dataset_name(dataset) / PLANS_FILE).exists():
        plan_like(dataset, model, root=root, workers=workers)


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


def _without(split: Split, cases: set[str]) -> Split:
    """The split, of the cases that have labels in this data set."""
    train = tuple(case for case in split.train if case not in cases)
    return Split(train, tuple(case for case in split.val if case not in cases))


def _differing(folder: Path, plan: Plan, splits: list[Split] | None) -> list[str]:
    """The files of a preprocessed data set that say something else."""
    differs = []
    if (folder / PLANS_FILE).exists() and Plan.load(folder / PLANS_FILE) != plan:
        differs.append(PLANS_FILE)
    if splits is not None and (folder / SPLITS_FILE).exists() and load_splits(folder / SPLITS_FILE) != splits:
        differs.append(SPLITS_FILE)
    return differs
