"""The end of a fold: predict its validation cases in their native grid, score them, and describe the network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from medkd.core.errors import MedkdError
from medkd.core.files import write_json
from medkd.core.run import FINAL, RunFolder
from medkd.core.serial import to_data
from medkd.evaluation import legacy
from medkd.evaluation.summary import Summary, evaluate_folder
from medkd.inference.export import logits_to_labels
from medkd.inference.predictor import Predictor
from medkd.io.volumes import write_volume
from medkd.networks.complexity import count_macs, count_parameters, latency_ms
from medkd.preprocessing.store import CaseStore

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
    weights: Path | None = None,
) -> Summary | None:
    """Write ``model.json``, ``validation/CASE.nii.gz`` and ``validation/summary.json`` of a trained fold.

    Predictions are made with the final weights, Gaussian blending and mirroring, from the stored cases; those that exist are
    kept, so that an interrupted validation continues.

    Args:
        run: the run.
        folder: its fold folder.
        store: the preprocessed cases.
        raw: raw data set, for the reference labels.
        cases: the fold's validation cases; none for fold ``all``.
        device: where to predict.
        predictor: what predicts; None is the run's own fold.
        weights: the file of its weights, since predictions that are older are made anew; None is the fold's final checkpoint.

    Returns:
        The summary, or None where there is nothing to score.
    """
    fold = folder.name.removeprefix("fold_")
    predictor = predictor or Predictor.from_run(run.path, [fold], device)
    changed = (weights or folder / FINAL).stat().st_mtime
    _describe(predictor, run.run.network.in_channels, folder)
    if not cases:
        _log.info("fold %s holds out no cases, so there is nothing to score; evaluate its predictions on a test set", fold)
        return None
    target = folder / VALIDATION
    if not (raw / "labelsTr").is_dir():
        raise MedkdError(
            f"{raw / 'labelsTr'} does not exist, so fold {fold} cannot be scored; restore the raw data set and use --continue."
        )
    for case in tqdm(cases, unit="case", desc="validation", disable=None):
        path = target / f"{case}{run.dataset.file_ending}"
        if not path.exists() or path.stat().st_mtime < changed:
            stored = store.open(case)
            logits = predictor.predict_preprocessed(stored.image)
            labels = logits_to_labels(logits, stored.properties, predictor.plan, predictor.configuration, predictor.labels)
            write_volume(path, labels, stored.properties.geometry)
    summary = evaluate_folder(target, raw / "labelsTr", run.dataset.labels, file_ending=run.dataset.file_ending, cases=list(cases))
    summary = _with_legacy(summary, run, target, raw / "labelsTr", cases)
    summary.save(target / SUMMARY)
    _log.info("fold %s: mean foreground Dice %.4f on %d validation cases, see %s", fold, summary.mean_dice, len(cases), target / SUMMARY)
    return summary


def _with_legacy(summary: Summary, run: RunFolder, predictions: Path, references: Path, cases: Sequence[str]) -> Summary:
    """The summary, with the original's metric beside the correct one where the plan follows a protocol that has it."""
    protocol, labels, ending = run.plan.protocol, run.dataset.labels, run.dataset.file_ending
    if protocol is None or not protocol.legacy_metric:
        return summary
    grid = protocol.preprocessing.spacing
    scores = legacy.legacy_scores(predictions, references, labels, list(cases), file_ending=ending, voxel_mm=grid)
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
