"""Scans without labels in a training: which of them a method learns from, and how the loader draws them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.core.errors import DataError, RunError
from medkd.core.serial import load
from medkd.core.splits import Split
from medkd.distillation import METHODS
from medkd.preprocessing.fingerprint import FINGERPRINT_FILE, Fingerprint, contents_of
from medkd.training import cases_without_labels as shared
from medkd.training.job import method_names
from medkd.training.loader import Unlabelled

if TYPE_CHECKING:
    from medkd.training.segmentation_task import SegmentationFold, SegmentationJob

_VOXELWISE = frozenset({"kd", "ensemble"})


def split_with_unlabelled(data: SegmentationFold, method: str | None) -> Split:
    """The fold's split, with the scans without labels from which the method learns.

    See :func:`medkd.training.cases_without_labels.split_with_unlabelled`.
    """
    learns = method is not None and learns_without_labels(method)
    digests = partial(_digests, data.store.folder.parent / FINGERPRINT_FILE)
    return shared.split_with_unlabelled(data, method, data.store.unlabelled.cases(), learns=learns, digests=digests)


def learns_without_labels(method: str) -> bool:
    """Whether one of the joined methods follows a teacher, which it can on scans without labels, too."""
    return any(METHODS[name].needs_teacher for name in method_names(method))


def drawn_from(job: SegmentationJob, places: Path | None) -> Unlabelled | None:
    """What the loader draws without labels; None where every sample has labels.

    Args:
        job: what is trained.
        places: folder that says where the teacher sees structures.
    """
    cases = shared.unlabelled_of(job)
    return Unlabelled(cases, shared.share_of(job), places) if cases and places is not None else None


def voxelwise_sentence(job: SegmentationJob) -> str:
    """What to say of methods that learn small structures late or never where labels are missing; empty for others."""
    names = method_names(job.run.method or "")
    if not shared.unlabelled_of(job) or not _VOXELWISE.issuperset(names):
        return ""
    return (
        f"{' + '.join(names)} compares voxel by voxel, most of them background, so that where labels are missing small "
        "structures are learnt late or never; dml compares structures as wholes (see docs/unlabelled.md)."
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
    return contents_of(found)
