"""Scans without labels in a training: which of them a method learns from, and which it must not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.core.errors import DataError, LeakError, RunError
from medkd.core.limits import option_name
from medkd.core.serial import load
from medkd.core.splits import Split
from medkd.distillation import METHODS
from medkd.preprocessing.fingerprint import FINGERPRINT_FILE, Fingerprint
from medkd.training.job import method_names
from medkd.training.loader import Unlabelled

if TYPE_CHECKING:
    from medkd.training.segmentation_task import SegmentationFold, SegmentationJob

NO_LABELS = "none"  # value of ``--labels``
_OPTIONS = {"unlabelled_share": None, "labels": "given", "confidence": 0.0}  # what they are where nothing is set
_log = logging.getLogger(__name__)


def split_with_unlabelled(data: SegmentationFold, method: str | None) -> Split:
    """The fold's split, with the scans without labels from which the method learns.

    Args:
        data: of the fold.
        method: with which a teacher teaches; None for a network alone.

    Raises:
        LeakError: a scan without labels is, voxel by voxel, a case on which the fold is judged.
        RunError: there is nothing to learn from, or options about such scans have nothing to act on.
    """
    found, split = data.store.unlabelled.cases(), data.split
    learns = method is not None and any(METHODS[name].needs_teacher for name in method_names(method))
    if not learns:
        _refuse_alone(data, method)
        if found:
            _log.info(
                "the %d scans without labels of %s are left out: a network alone learns from labels only",
                len(found),
                data.dataset,
            )
        return replace(split, unlabelled=())
    if data.options.unlabelled_share is not None and not found and data.options.labels != NO_LABELS:
        raise RunError(
            f"{data.dataset} has no preprocessed scans without labels, so that {option_name('unlabelled_share')} has "
            f"nothing to draw from; put scans into imagesUn of the raw data set and run medkd_plan_and_preprocess "
            f"-d {data.dataset}."
        )
    if not split.train:
        return split
    if data.options.unlabelled_share == 0:
        return split
    chosen = _without_patients_of(data, found)
    _refuse_twins(data, chosen)
    return replace(split, unlabelled=tuple(chosen))


def drawn_from(job: SegmentationJob, places: Path | None) -> Unlabelled | None:
    """What the loader draws without labels; None where every sample has labels.

    Args:
        job: what is trained.
        places: folder that says where the teacher sees structures.
    """
    cases = unlabelled_of(job)
    if not cases or places is None:
        return None
    labelled = 0 if job.run.labels == NO_LABELS else len(job.split.train)
    if not labelled:
        return Unlabelled(cases, 1.0, places)
    share = job.run.unlabelled_share
    return Unlabelled(cases, len(cases) / (len(cases) + labelled) if share is None else share, places)


def unlabelled_of(job: SegmentationJob) -> tuple[str, ...]:
    """The training cases whose labels are not known, or not used."""
    own = job.split.train if job.run.labels == NO_LABELS else ()
    return (*own, *job.split.unlabelled)


def _refuse_alone(data: SegmentationFold, method: str | None) -> None:
    """Refuse to train without a teacher where labels are missing, or with options that need one."""
    who = "a network alone" if method is None else f"the method {method}"
    if not data.split.train:
        raise RunError(
            f"{data.dataset} has no labelled case for fold {data.fold}, and {who} learns from labels only; train with "
            "a teacher and a method (medkd_train_distill), or add labels."
        )
    for name, default in _OPTIONS.items():
        if getattr(data.options, name) != default:
            raise RunError(
                f"{option_name(name)} is about what a teacher teaches, but {who} has no teacher to follow; leave it "
                "out, or train with a method that follows a teacher."
            )


def _without_patients_of(data: SegmentationFold, cases: list[str]) -> list[str]:
    """The cases that show no patient on whose scans the fold is judged."""
    patients = data.description.patients
    judged = {patients[case] for case in data.split.val if case in patients}
    kept = [case for case in cases if patients.get(case) not in judged]
    if len(kept) < len(cases):
        _log.info(
            "%d scans without labels are left out of fold %s: they show patients on whom it is judged",
            len(cases) - len(kept),
            data.fold,
        )
    return kept


def _refuse_twins(data: SegmentationFold, cases: list[str]) -> None:
    if not cases or not data.split.val:
        return
    digests = _digests(data.store.folder.parent / FINGERPRINT_FILE)
    judged = {digests[case]: case for case in data.split.val if digests.get(case)}
    for case in cases:
        twin = judged.get(digests.get(case, ""))
        if twin is not None:
            raise LeakError(
                f"The scan {case} without labels equals {twin}, a case on which fold {data.fold} is judged, voxel by "
                "voxel; remove it from imagesUn and run medkd_plan_and_preprocess."
            )


def _digests(path: Path) -> Mapping[str, str]:
    """Case → hash of its voxels, of all cases of a data set."""
    try:
        found = load(Fingerprint, path)
    except DataError as error:
        raise RunError(
            f"{path} cannot be read, so nobody can say whether scans without labels are also cases on which students "
            f"are judged ({error}); run medkd_plan_and_preprocess again."
        ) from error
    every = [*found.facts, *(scan.facts for scan in found.unlabelled)]
    return {facts.case: facts.digest for facts in every}
