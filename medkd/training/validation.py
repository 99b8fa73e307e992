"""The end of a fold: predict its validation cases in their native grid, score them, and describe the network."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from medkd.core.dataset import DatasetDescription, training_cases
from medkd.core.errors import DataError, MedkdError
from medkd.core.files import write_json
from medkd.core.made_with import KnownPredictions
from medkd.core.run import DATASET_FILE, RunFolder
from medkd.core.serial import to_data
from medkd.evaluation.segmentation import legacy
from medkd.evaluation.segmentation.folder import Summary, evaluate_folder
from medkd.evaluation.segmentation.scored_from import with_sources
from medkd.inference.inputs import writable_ending
from medkd.inference.predictor import Predictor
from medkd.io.volumes import write_volume
from medkd.networks.complexity import count_macs, count_parameters, latency_ms
from medkd.preprocessing.store import CaseStore
from medkd.training.targets import source_of

VALIDATION = "validation"
SUMMARY = "summary.json"
MODEL_FILE = "model.json"
_log = logging.getLogger(__name__)


def finish_fold(
    run: RunFolder,
    folder: Path,
    store: CaseStore,
    raw: Path,
    cases: Sequence[str],
    device: torch.device,
    *,
    predictor: Predictor | None = None,
) -> Summary | None:
    """Write ``model.json``, ``validation/CASE.nii.gz`` (or the data set's ending, where medkd can write it) and
    ``validation/summary.json`` of a trained fold.

    Predictions are made with the final weights, Gaussian blending and mirroring, from the stored cases; those that
    these weights have made of them in the same way are kept, so that an interrupted validation continues.

    Args:
        run: the run.
        folder: its fold folder.
        store: the preprocessed cases.
        raw: raw data set, for the reference labels: those in ``labelsTr``, or those that its ``dataset.json`` lists.
        cases: the fold's validation cases; none for fold ``all``.
        device: where to predict.
        predictor: what predicts; None is the run's own fold.

    Returns:
        The summary, or None where there is nothing to score.

    Raises:
        MedkdError: the reference labels are not there any more, or cannot be compared with the predictions.
    """
    fold = folder.name.removeprefix("fold_")
    predictor = predictor or Predictor.from_run(run.path, [fold], device)
    _describe(predictor, run.run.network.in_channels, folder)
    if not cases:
        _log.info(
            "fold %s holds out no cases, so there is nothing to score; evaluate its predictions on a test set", fold
        )
        return None
    target = folder / VALIDATION
    described = _described(run.dataset, raw, fold)
    references, ending = _references(described, raw, fold, cases), writable_ending(run.dataset.file_ending)
    known = KnownPredictions(target, predictor.digests(), predictor.circumstances())
    for case in tqdm(cases, unit="case", desc="validation", disable=None):
        path, source = target / f"{case}{ending}", source_of(store.record(case))
        if not known.has(path, source):
            stored = store.open(case)
            write_volume(path, predictor.label_map(stored.image, stored.properties), stored.properties.geometry)
            known.add(path, source)
    patients = {**run.dataset.patients, **described.patients}
    summary = evaluate_folder(target, references, run.dataset.labels, prediction_ending=ending, patients=patients)
    summary = _with_legacy(summary, run, target, references, ending)
    summary = with_sources(summary, predictor.digests(), predictor.circumstances())
    summary.save(target / SUMMARY)
    _log.info(
        "fold %s: mean foreground Dice %.4f on %d validation cases, see %s",
        fold,
        summary.mean_dice,
        len(cases),
        target / SUMMARY,
    )
    return summary


def _described(dataset: DatasetDescription, raw: Path, fold: str) -> DatasetDescription:
    """The raw data set as it is now, else as it was preprocessed."""
    try:
        return DatasetDescription.load(raw / DATASET_FILE) if (raw / DATASET_FILE).exists() else dataset
    except DataError as error:
        raise _not_scored(fold, error) from error


def _not_scored(fold: str, error: DataError) -> MedkdError:
    return MedkdError(f"Fold {fold} cannot be scored; restore the raw data set and use --continue: {error}")


def _references(described: DatasetDescription, raw: Path, fold: str, cases: Sequence[str]) -> dict[str, Path]:
    """Case id → reference label map of the fold's validation cases."""
    try:
        labels = {files.case: files.label for files in training_cases(raw, described)}
    except DataError as error:
        raise _not_scored(fold, error) from error
    found = {case: path for case in cases if (path := labels.get(case)) is not None and path.exists()}
    missing = [case for case in cases if case not in found]
    if missing:
        raise MedkdError(
            f"{raw}: fold {fold} cannot be scored, since the label maps of {len(missing)} of its {len(cases)} "
            "validation cases are not "
            f"there ({', '.join(missing)}); restore the raw data set and use --continue."
        )
    return found


def _with_legacy(
    summary: Summary, run: RunFolder, predictions: Path, references: Mapping[str, Path], ending: str
) -> Summary:
    """The summary, with the original's metric beside the correct one where the plan follows a protocol that has it."""
    protocol, labels = run.plan.protocol, run.dataset.labels
    if protocol is None or not protocol.legacy_metric:
        return summary
    folder = next(iter(references.values())).parent
    if any(path != folder / f"{case}{ending}" for case, path in references.items()):
        _log.warning("the legacy metric is left out: it needs the references as CASE%s in one folder", ending)
        return summary
    grid = protocol.preprocessing.spacing
    scores = legacy.legacy_scores(predictions, folder, labels, list(references), file_ending=ending, voxel_mm=grid)
    _log.info("%s", scores.text())
    return replace(summary, extra={**summary.extra, legacy.KEY: to_data(scores)})


def _describe(predictor: Predictor, channels: int, folder: Path) -> None:
    """``model.json``: size, cost and speed of the network on its patch, on this machine."""
    network, patch = predictor.networks[0], predictor.patch_size
    shape = (1, channels, *patch)
    content = {
        "parameters": count_parameters(network),
        "macs": count_macs(network, shape),
        "latency_ms": latency_ms(network, shape, predictor.device),
        "patch_size": list(patch),
        "device": str(predictor.device),
        "threads": torch.get_num_threads(),
    }
    write_json(folder / MODEL_FILE, content)
