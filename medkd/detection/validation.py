"""The end of a fold: find boxes in its validation images, score them in original pixels, and describe the detector."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from medkd.core.boxes import LABEL_ENDING, BoxAnnotation
from medkd.core.checkpoint import weights_digest
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.files import write_json
from medkd.core.made_with import KnownPredictions
from medkd.core.patients import patients_now
from medkd.core.run import DATASET_FILE
from medkd.core.serial import to_data
from medkd.detection.base import Detector
from medkd.detection.detecting import DetectReport, Limits, Source, detect_images
from medkd.detection.journal import Journal
from medkd.detection.models import DetectorRun
from medkd.detection.store import DetectionStore
from medkd.evaluation.detection.folder import References, evaluate_detections
from medkd.evaluation.detection.predictions import PREDICTIONS_FILE, DetectionPredictions
from medkd.evaluation.detection.results import DetectionSummary
from medkd.evaluation.detection.scored_from import with_sources
from medkd.networks.complexity import count_macs, count_parameters, latency_ms

VALIDATION = "validation"
SUMMARY = "summary.json"
LIMITS = "limits"
"""In ``summary.json``: lowest score, overlap of non-maximum suppression and most boxes per image of the detections."""

MODEL_FILE = "model.json"
_log = logging.getLogger(__name__)


def finish_fold(
    folder: Path, store: DetectionStore, raw: Path, cases: Sequence[str], device: torch.device
) -> DetectionSummary | None:
    """Write ``model.json``, ``validation/predictions.json`` (and COCO's files) and ``validation/summary.json`` of a
    trained fold.

    The final weights are judged, on the stored images, against the raw annotations in their own pixels. Detections that
    were made with these weights before a kill are kept.

    Args:
        folder: fold folder in a run folder, with a ``checkpoint_final.pt``.
        store: the preprocessed images.
        raw: raw data set, for the reference boxes.
        cases: the fold's validation images; none for fold ``all``.
        device: where to predict.

    Returns:
        The summary, or None where the fold holds out no images.

    Raises:
        DataError: the raw annotations are missing, or an image could not be looked at (all are named).
        RunError: the checkpoint is missing or does not fit.
        MedkdError: pycocotools is not installed.
    """
    fold = folder.name.removeprefix("fold_")
    run = DetectorRun(folder.parent)
    detector, categories = run.network(fold).to(device), run.run.plan.categories
    describe_detector(detector, folder, device)
    if not cases:
        _log.info(
            "fold %s holds out no images, so there is nothing to score; evaluate its predictions on a test set", fold
        )
        return None
    target, references = folder / VALIDATION, _references(folder, categories, raw, cases)
    settings = {"weights": weights_digest(detector.state_dict()), LIMITS: json.dumps(_limits(detector))}
    settings |= {"network": json.dumps(to_data(detector.spec)), "images": _digest_of(store, cases)}
    known = KnownPredictions(target, [settings["weights"]], {**settings, "categories": json.dumps(categories)})
    journal = Journal(target, categories, settings, resume=True)
    if known.has(target / PREDICTIONS_FILE):
        journal.adopt(DetectionPredictions.load(target))
    _detect_missing(detector, store, journal, references.annotations, device)
    found = journal.finish(cases)
    known.add(target / PREDICTIONS_FILE)
    summary = evaluate_detections(found, references, classes=categories)
    summary = replace(summary, extra={**summary.extra, LIMITS: _limits(detector)})
    summary = with_sources(summary, folder, references.folder)
    summary.save(target / SUMMARY)
    ap, ap50 = summary.value("AP").mean, summary.value("AP50").mean
    _log.info(
        "fold %s: AP %.4f, AP50 %.4f on %d validation images, see %s", fold, ap, ap50, len(cases), target / SUMMARY
    )
    return summary


def describe_detector(detector: Detector, folder: Path, device: torch.device) -> None:
    """``model.json``: size, cost and speed of a detector on one black image, on this machine.

    The time holds all of prediction, non-maximum suppression too; the multiply-adds of a two-stage detector depend on
    how many regions it proposes.
    """
    side = detector.spec.image_size
    whole, shape = (
        _Detecting(detector).eval(),
        (1, 3, side, side),
    )  # counting leaves its parts in the mode that the whole has
    content = {
        "parameters": count_parameters(detector),
        "macs": count_macs(whole, shape),
        "latency_ms": latency_ms(whole, shape, device),
        "patch_size": [side, side],
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    write_json(folder / MODEL_FILE, content)


class _Detecting(nn.Module):
    """A detector whose forward pass is all that prediction does."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Sequence[object]:
        return self.detector.detect(images)


def _references(folder: Path, categories: Sequence[str], raw: Path, cases: Sequence[str]) -> References:
    labels = raw / "labelsTr"
    missing = [case for case in cases if not (labels / f"{case}{LABEL_ENDING}").exists()]
    if missing:
        raise DataError(
            f"{labels}: the boxes of {len(missing)} validation images are missing ({missing[0]}{LABEL_ENDING}, …), so "
            f"fold {folder.name.removeprefix('fold_')} cannot be scored; restore the raw data set and use --continue."
        )
    annotations = {case: BoxAnnotation.load(labels / f"{case}{LABEL_ENDING}") for case in cases}
    description = DatasetDescription.load(folder.parent / DATASET_FILE)
    patients = {**description.patients, **patients_now(raw)}
    return References(labels, annotations, tuple(categories), patients)


def _detect_missing(
    detector: Detector,
    store: DetectionStore,
    journal: Journal,
    annotations: Mapping[str, BoxAnnotation],
    device: torch.device,
) -> None:
    waiting = []
    for case, annotation in annotations.items():
        if case not in journal.images:
            size = annotation.width, annotation.height
            waiting.append(Source(case, f"{case}.png", partial(store.image, case), size))
    report: DetectReport = detect_images([detector], waiting, journal, device, limits=Limits())
    if report.failed:
        raise DataError(
            f"{len(report.failed)} of {len(annotations)} validation images failed: " + " ".join(report.failed.values())
        )


def _digest_of(store: DetectionStore, cases: Sequence[str]) -> str:
    """A hash of what images the stored ones were made of, and how large they are."""
    made = []
    for case in sorted(cases):
        entry = store.entry(case)
        made.append((case, entry.pixels or entry.source, store.size(case)))
    return hashlib.blake2b(json.dumps(made).encode(), digest_size=16).hexdigest()


def _limits(detector: Detector) -> dict[str, float]:
    return {**asdict(Limits()), "overlap": detector.overlap}
