"""How far a student follows its teacher on scans that neither has labels for; this says nothing about who is right."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from medkd.core.agreements import AGREEMENT
from medkd.core.files import write_json
from medkd.core.made_with import KnownPredictions
from medkd.evaluation.segmentation.folder import evaluate_folder
from medkd.inference.export import logits_to_labels
from medkd.inference.inputs import writable_ending
from medkd.inference.predictor import Predictor
from medkd.io.volumes import write_volume
from medkd.training.segmentation_lesson import merged_predictor, merged_teachers
from medkd.training.targets import source_of

if TYPE_CHECKING:
    from medkd.training.segmentation_task import SegmentationJob

_WHAT = "agreement with the teacher (overlap of both predictions; no reference was involved)"
_log = logging.getLogger(__name__)


def write_agreement(job: SegmentationJob, cases: tuple[str, ...]) -> Path:
    """Predict held-out scans with student and teacher, in their native grid, and write ``agreement/agreement.json``.

    Args:
        job: what was trained.
        cases: the held-out scans.

    Returns:
        The file.
    """
    file, teacher = job.folder / AGREEMENT, job.teacher
    folder = file.parent
    assert teacher is not None  # narrowed for the type checker: without labels there is no training without a teacher
    ending = writable_ending(job.description.file_ending)
    student = Predictor.from_run(job.folder.parent, [job.fold], job.device)
    ours = _Side(predict=_own(job, student), weights=student.digests(), settings=student.circumstances())
    for name, side in (("student", ours), ("teacher", _theirs(job, ours.settings))):
        known = KnownPredictions(folder / name, side.weights, side.settings)
        for case in tqdm(cases, unit="case", desc=f"agreement, {name}", disable=None):
            path, source = folder / name / f"{case}{ending}", source_of(job.store.record(case))
            if not known.has(path, source):
                _write(job, side.predict(case), case, path)
                known.add(path, source)
    others = {case: folder / "teacher" / f"{case}{ending}" for case in cases}
    found = evaluate_folder(folder / "student", others, job.description.labels, prediction_ending=ending)
    _log.info("fold %s: agreement with the teacher %.4f on %d scans", job.fold, found.mean_dice, len(cases))
    content: dict[str, Any] = {
        "what": _WHAT,
        "teacher": teacher.model.recorded,
        "teacher_fold": teacher.fold,
        "cases": list(cases),
        "agreement": found.mean_dice,
    }
    write_json(file, content)
    return file


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One of the two that are compared.

    Attributes:
        predict: case → logits on the student's grid.
        weights: a hash of each network.
        settings: whatever else the label maps depend on, by name.
    """

    predict: Callable[[str], Tensor]
    weights: tuple[str, ...]
    settings: Mapping[str, str]


def _own(job: SegmentationJob, predictor: Predictor) -> Callable[[str], Tensor]:
    """Case → logits on the student's grid, by a network that shares its preprocessing."""
    return lambda case: predictor.predict_preprocessed(job.store.open(case).image)


def _theirs(job: SegmentationJob, grid: Mapping[str, str]) -> _Side:
    """The teacher, or several, whose logits are decoded on the student's ``grid``."""
    teacher = job.teacher
    assert teacher is not None  # narrowed for the type checker
    if merged_teachers(job) is not None:
        merged = merged_predictor(job)
        return _Side(
            predict=lambda case: merged.logits(case, job.store.record(case)),
            weights=merged.described.weights,
            settings={**grid, "teachers": merged.described.key},
        )
    checkpoint = teacher.model.checkpoint_of(teacher.fold)
    predictor = Predictor.of(teacher.model, [teacher.fold], job.device, checkpoint=checkpoint)
    return _Side(predict=_own(job, predictor), weights=predictor.digests(), settings=predictor.circumstances())


def _write(job: SegmentationJob, logits: Tensor, case: str, path: Path) -> None:
    properties, configuration = job.store.record(case).properties, job.plan.configuration(job.configuration)
    labels = logits_to_labels(logits, properties, job.plan, configuration, job.description.labels)
    write_volume(path, labels, properties.geometry)
