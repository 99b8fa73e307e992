"""What is scored, for both tasks: predictions, references, and how to read them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medkd.core.run import DATASET_FILE

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScoringRequest:
    """What a task's scoring gets, beside the options of its own.

    Attributes:
        predictions: folder with ``CASE.nii.gz``; for boxes ``predictions.json``, or the folder that holds it.
        references: folder with ``CASE.nii.gz``; for boxes with ``CASE.json``, or a raw data set.
        labels: names of the labels 1, 2, …; for boxes the classes to score. None takes those of ``dataset_json``.
        dataset_json: names labels and classes; None looks beside predictions and references, and in their parents.
        allow_missing: count a missing prediction as an empty one instead of refusing.
        workers: threads; None follows from cores and free memory. Boxes of all images are scored at once, without any.
        progress: show a progress bar, where it takes long.
    """

    predictions: Path
    references: Path
    labels: Sequence[str] | None = None
    dataset_json: Path | None = None
    allow_missing: bool = False
    workers: int | None = None
    progress: bool = False


def description_near(*folders: Path) -> Path | None:
    """The first ``dataset.json`` in some folders or their parents; None where there is none."""
    for folder in folders:
        for place in (folder, folder.absolute().parent):
            if (place / DATASET_FILE).exists():
                return place / DATASET_FILE
    return None


def warn_of_torn_patients(run: Path, judged: Mapping[int, Mapping[str, str]]) -> None:
    """Name a patient who is judged in several folds: new splits keep patients together, but a user's or another
    program's may not.

    Args:
        run: whose folds they are.
        judged: fold → case → patient.
    """
    owner: dict[str, int] = {}
    for fold, known in judged.items():
        patients = set(known.values())
        torn = sorted(patients & set(owner))
        if torn:
            _log.warning(
                "%s: patient %s (one of %d) is judged in fold %d and in fold %d, each of which has trained on the "
                "other's scans, so the scores flatter; train with splits that keep patients together",
                run.name,
                torn[0],
                len(torn),
                owner[torn[0]],
                fold,
            )
        owner |= dict.fromkeys(patients, fold)
