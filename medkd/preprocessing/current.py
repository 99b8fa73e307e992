"""Whether preprocessed cases are still those that the plan, the labels and the raw scans of today would give."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.core.plan import Configuration, Plan
from medkd.preprocessing.store import CaseRecord, CaseStore, is_unchanged, recipe_of

_log = logging.getLogger(__name__)


def check_store(store: CaseStore, plan: Plan, configuration: Configuration, labels: LabelSpec) -> None:
    """See that every stored case, with labels or without, was made as plan and labels say now.

    A plan may have been edited since, or a preparation was refused, killed, or was one of another configuration: cases
    of two preparations must not be learnt from together, nor by a network that is said to expect one of them.

    Args:
        store: of the configuration.
        plan: of the data set.
        configuration: one of the plan's.
        labels: of the preprocessed ``dataset.json``, see :func:`~medkd.core.meaning.check_meaning`.

    Raises:
        DataError: a case was made otherwise; the text says what to run.
    """
    check_finished(store)
    stale = stale_cases(store, plan, configuration, labels)
    if stale:
        raise DataError(
            f"{store.folder}: {len(stale)} preprocessed cases, for example {stale[0]}, were made by another plan, or "
            f"with other labels, than plans.json and dataset.json state now; {_command(store)}."
        )


def check_finished(store: CaseStore) -> None:
    """See that no preparation is at work on a store, nor was killed at it.

    Raises:
        DataError: cases may be missing, or be of two states of the raw data; the text says what to run.
    """
    if store.unfinished:
        raise DataError(
            f"{store.folder}: the last preparation was killed, or is at work, so that cases may be missing; "
            f"{_command(store)}."
        )


def _command(store: CaseStore) -> str:
    """What to do about a store."""
    return f"run medkd_plan_and_preprocess -d {store.folder.parent.name} -c {store.folder.name}"


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
        DataError: they were exchanged or changed since.
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
