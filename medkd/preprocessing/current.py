"""Whether preprocessed cases are still those that the plan, the labels and the raw scans of today would give."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.core.plan import Configuration, Plan
from medkd.core.run import DATASET_FILE
from medkd.preprocessing.store import CaseRecord, CaseStore, is_unchanged, recipe_of

_log = logging.getLogger(__name__)


def check_store(
    store: CaseStore, plan: Plan, configuration: Configuration, description: DatasetDescription, raw: Path
) -> None:
    """See that every stored case, with labels or without, was made as plan and labels say now.

    A plan may have been edited since, or a preparation was refused, killed, or was one of another configuration: cases
    of two preparations must not be learnt from together, nor by a network that is said to expect one of them.

    Args:
        store: of the configuration.
        plan: of the data set.
        configuration: one of the plan's.
        description: the preprocessed ``dataset.json``.
        raw: the raw data set; where it is not there, or damaged, the preprocessed one is believed.

    Raises:
        DataError: a case was made otherwise; the text says what to run.
    """
    name = store.folder.parent.name
    command = f"run medkd_plan_and_preprocess -d {name} -c {configuration.name}"
    if _labels_of(raw, description) != description.labels:
        raise DataError(
            f"{raw / DATASET_FILE} states other labels than the preprocessed cases of {name} were made with; {command}."
        )
    stale = stale_cases(store, plan, configuration, description.labels)
    if stale:
        raise DataError(
            f"{store.folder}: {len(stale)} preprocessed cases, for example {stale[0]}, were made by another plan, or "
            f"with other labels, than plans.json and dataset.json state now; {command}."
        )


def stale_cases(store: CaseStore, plan: Plan, configuration: Configuration, labels: LabelSpec) -> list[str]:
    """The stored cases, with labels or without, that were made otherwise than plan and labels say now.

    Of cases whose record does not say how they were made nobody knows; they are believed, with a warning.
    """
    wanted = recipe_of(plan, configuration, labels)
    found, silent = [], 0
    for part in (store, store.unlabelled):
        for case in part.cases():
            recipe = part.recipe(case)
            silent += not recipe
            if recipe and recipe != wanted:
                found.append(case)
    if silent:
        _tell_of_silent(store.folder, silent)
    return found


def check_scan(record: CaseRecord, images: Sequence[Path], dataset: str) -> None:
    """See that raw images are those from which a case was preprocessed, compared as the preparation compares them.

    Args:
        record: of the stored case; where it names no files, nobody knows.
        images: the case's raw images of today, channels in order.
        dataset: full name.

    Raises:
        DataError: they were exchanged, changed or renamed since.
    """
    made_from = record.files[: len(images)]
    if not record.files:
        return
    if len(made_from) < len(images) or not all(map(is_unchanged, made_from, images)):
        raise DataError(
            f"{images[0].parent}: the scan of {record.properties.case} is not the one any more from which the case was "
            f"preprocessed; put that back, or run medkd_plan_and_preprocess -d {dataset}, which takes this one."
        )


@cache
def _tell_of_silent(folder: Path, count: int) -> None:
    """Once, however often the store is opened."""
    _log.warning(
        "%s: %d cases do not say how they were preprocessed; medkd_plan_and_preprocess makes them anew", folder, count
    )


def _labels_of(raw: Path, stored: DatasetDescription) -> LabelSpec:
    """What the raw data set's values mean today."""
    path = raw / DATASET_FILE
    try:
        return DatasetDescription.load(path).labels if path.exists() else stored.labels
    except DataError:  # whoever prepares them says what is wrong
        return stored.labels
