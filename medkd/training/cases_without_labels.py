"""Cases without labels in a training of any task: which of them a method learns from, and which it must not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from medkd.core.dataset import unlabelled_cases
from medkd.core.errors import DataError, LeakError, RunError
from medkd.core.limits import option_name
from medkd.core.splits import Split
from medkd.training.job import FoldData, Job
from medkd.training.options import LABELLING, TAUGHT, TaughtOptions, refuse_taught
from medkd.training.plausibility import doubt

NO_LABELS = "none"  # value of ``--labels``
_log = logging.getLogger(__name__)
T = TypeVar("T", bound=TaughtOptions)


def split_with_unlabelled(
    data: FoldData[Any, Any, T],
    method: str | None,
    found: Sequence[str],
    *,
    learns: bool,
    digests: Callable[[], Mapping[str, str]],
    noun: str = "scan",
) -> Split:
    """The fold's split, with the cases without labels from which the method learns.

    Args:
        data: of the fold.
        method: with which a teacher teaches; None for a network alone.
        found: the preprocessed cases without labels.
        learns: whether the method follows a teacher where there are no labels.
        digests: case → hash of what is seen in it.
        noun: what a case is.

    Raises:
        LeakError: a case without labels equals one on which the fold is judged.
        RunError: there is nothing to learn from, or options about such cases have nothing to act on.
    """
    split = data.split
    if not learns:
        _refuse_alone(data, method)
        if found:
            _log.info(
                "the %d %ss without labels of %s are left out: a network alone learns from labels only",
                len(found),
                noun,
                data.dataset,
            )
        return replace(split, unlabelled=())
    if data.options.unlabelled_share and not found and data.options.labels != NO_LABELS:
        raise RunError(
            f"{data.dataset} has no preprocessed {noun}s without labels, so that {option_name('unlabelled_share')} has "
            f"nothing to draw from; put {noun}s into imagesUn of the raw data set and run medkd_plan_and_preprocess "
            f"-d {data.dataset}."
        )
    _refuse_share_of_all(data, noun)
    if data.options.unlabelled_share != 0:
        _warn_of_unprepared(data, found, noun)
    if not split.train:
        _refuse_twins(data, split.unlabelled, digests, noun)
        return split
    if data.options.unlabelled_share == 0:
        return split
    chosen = _without_patients_of(data, found, noun)
    _refuse_twins(data, chosen, digests, noun)
    return replace(split, unlabelled=tuple(chosen))


def unlabelled_of(job: Job[Any, Any, Any]) -> tuple[str, ...]:
    """The training cases whose labels are not known, or not used."""
    own = job.split.train if job.run.labels == NO_LABELS else ()
    return (*own, *job.split.unlabelled)


def share_of(job: Job[Any, Any, Any]) -> float:
    """The share of the samples that are drawn without labels: what was asked for, else by number of cases."""
    cases = unlabelled_of(job)
    labelled = 0 if job.run.labels == NO_LABELS else len(job.split.train)
    if not cases:
        return 0.0
    if not labelled:
        return 1.0
    share = job.run.unlabelled_share
    return len(cases) / (len(cases) + labelled) if share is None else share


def _refuse_alone(data: FoldData[Any, Any, T], method: str | None) -> None:
    """Refuse to train without a teacher where labels are missing, or with options that need one."""
    who = "a network alone" if method is None else f"the method {method}"
    if not data.split.train:
        raise RunError(
            f"{data.dataset} has no labelled case for fold {data.fold}, and {who} learns from labels only; train with "
            "a teacher and a method (medkd_train_distill), or add labels."
        )
    refuse_taught(data.options, who, TAUGHT if method is None else LABELLING)


def _warn_of_unprepared(data: FoldData[Any, Any, T], found: Sequence[str], noun: str) -> None:
    """Say what lies in ``imagesUn`` and takes no part, as far as the raw data are there."""
    try:
        raw = data.root.raw_dataset(data.dataset)
        there = {files.case for files in unlabelled_cases(raw, data.description)}
    except DataError:  # whoever prepares them says what is wrong
        return
    missing = sorted(there - set(found))
    if missing:
        doubt(
            f"{len(missing)} of {len(there)} {noun}s in imagesUn of {data.dataset} are not preprocessed for "
            f"{data.configuration} and take no part, for example {missing[0]}; run medkd_plan_and_preprocess -d "
            f"{data.dataset}",
            strict=data.options.strict,
        )


def _refuse_share_of_all(data: FoldData[Any, Any, T], noun: str) -> None:
    """Where no sample has labels, only one share is possible; 0 still leaves ``imagesUn`` out beside other cases."""
    share, labelled = data.options.unlabelled_share, bool(data.split.train)
    if share in (None, 1) or (labelled and (share == 0 or data.options.labels != NO_LABELS)):
        return
    why = (
        f"{option_name('labels')} none looks at none"
        if labelled
        else f"{data.dataset} has no labelled {noun} to train on"
    )
    raise RunError(
        f"{option_name('unlabelled_share')} {share:g} asks for samples with labels, but {why}, so that all come "
        "without; leave it out."
    )


def _without_patients_of(data: FoldData[Any, Any, T], cases: Sequence[str], noun: str) -> list[str]:
    """The cases that show no patient on whose scans the fold is judged."""
    patients = data.description.patients
    judged = {patients[case] for case in data.split.val if case in patients}
    kept = [case for case in cases if patients.get(case) not in judged]
    if len(kept) < len(cases):
        _log.info(
            "%d %ss without labels are left out of fold %s: they show patients on whom it is judged",
            len(cases) - len(kept),
            noun,
            data.fold,
        )
    return kept


def _refuse_twins(
    data: FoldData[Any, Any, T], cases: Sequence[str], digests: Callable[[], Mapping[str, str]], noun: str
) -> None:
    if not cases or not data.split.val:
        return
    known = digests()
    judged = {known[case]: case for case in data.split.val if known.get(case)}
    element = "pixel" if noun == "image" else "voxel"
    for case in cases:
        twin = judged.get(known.get(case, ""))
        if twin is not None:
            raise LeakError(
                f"The {noun} {case} without labels equals {twin}, a case on which fold {data.fold} is judged, "
                f"{element} by {element}; remove it from imagesUn and run medkd_plan_and_preprocess."
            )
