"""Which structures gain from keeping their largest component alone: found on predictions of unseen cases."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.core.postprocessing import (
    POSTPROCESSING_FILE,
    LargestComponent,
    Postprocessing,
    Trial,
    candidates,
    joined_box,
    keep_largest,
)
from medkd.core.run import DATASET_FILE, VALIDATION_SUMMARY
from medkd.core.run_files import scored_teachers
from medkd.core.serial import save
from medkd.evaluation.scored_from import sources_in, weights_now
from medkd.evaluation.segmentation.cases import confusion, dice_of
from medkd.evaluation.segmentation.folder import workers_for
from medkd.evaluation.segmentation.results import Summary
from medkd.evaluation.statistics import finite
from medkd.io.volumes import read_label

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """A prediction of a case that its network had not seen.

    Attributes:
        case: its name.
        prediction: label map.
        reference: label map.
    """

    case: str
    prediction: Path
    reference: Path


def find_postprocessing(
    run: Path, folds: Sequence[int], folder: Path, *, weights: Sequence[str] | None = None
) -> Postprocessing:
    """Find what helps over all validation predictions of some folds, and write ``postprocessing.json``.

    Args:
        run: folder with ``dataset.json`` and ``fold_K/validation``.
        folds: that were validated.
        folder: where to write.
        weights: a hash of each network that predicted; None is what the folds' scores say.

    Raises:
        DataError: predictions or references are not there any more, or do not fit together.
    """
    labels = DatasetDescription.load(run / DATASET_FILE).labels
    judged = judged_cases(run, folds)
    trials, before, after = try_components(judged, labels)
    found = Postprocessing(
        folds=tuple(str(fold) for fold in folds),
        cases=len(judged),
        trials=tuple(trials),
        dice_before=finite(before),
        dice_after=finite(after),
        weights=tuple(sorted(_weights(run, folds) if weights is None else weights)),
    )
    save(folder / POSTPROCESSING_FILE, found)
    _log.info("%s; see %s", found.text(), folder / POSTPROCESSING_FILE)
    for teacher in list(scored_teachers(run).values())[:1]:
        _log.info(
            "%s was trained elsewhere and does not know of this file; predict with it by -m %s --postprocessing %s",
            run.name,
            teacher.path,
            folder / POSTPROCESSING_FILE,
        )
    return found


def _weights(run: Path, folds: Sequence[int]) -> list[str]:
    """A hash of each network that predicted, as the folds' scores say; where earlier versions' do not, of the weights
    that are there now.
    """
    found: list[str] = []
    for fold in folds:
        file = run / f"fold_{fold}" / VALIDATION_SUMMARY
        sources = sources_in(Summary.load(file).extra, str(file))
        found += (weights_now(file.parents[1]) or ()) if sources is None else sources.weights
    return found


def judged_cases(run: Path, folds: Sequence[int]) -> list[Judged]:
    """The validation predictions of some folds with their references, as the folds' scores name them.

    Raises:
        DataError: one is not there any more.
    """
    found = []
    for fold in folds:
        scores = run / f"fold_{fold}" / VALIDATION_SUMMARY
        for case in Summary.load(scores).cases:
            prediction = scores.parent / Path(case.prediction_file).name  # the run may have been moved
            found.append(Judged(case.name, prediction, Path(case.reference_file)))
    for one in found:
        for path in (one.prediction, one.reference):
            if not path.exists():
                raise DataError(f"{path} is not there any more; restore it, or validate its fold anew.")
    return found


def try_components(judged: Sequence[Judged], labels: LabelSpec) -> tuple[list[Trial], float, float]:
    """Try every step in turn, on top of those that were kept.

    A step is kept where the mean Dice over the cases of its structure rises (for all structures together: the mean
    over them), and that of no structure falls.

    Returns:
        The trials, and the mean foreground Dice before and after.
    """
    kept: list[LargestComponent] = []
    trials: list[Trial] = []
    first: np.ndarray | None = None
    means = np.empty(0)
    for steps in candidates(labels):
        before, after = _dice_of_cases(judged, labels, kept, steps)
        means = _mean_over_cases(before)
        first = means if first is None else first
        for index, step in enumerate(steps):
            changed = _mean_over_cases(after[:, index])
            place = _place(step, labels)
            old, new = (_mean(row if place is None else row[place : place + 1]) for row in (means, changed))
            helps = new > old and not bool((changed < means).any())
            trials.append(Trial(step.name, step.values, finite(old), finite(new), helps))
            if helps:
                kept.append(step)
    last = _mean_over_cases(_dice_of_cases(judged, labels, kept, [])[0])
    return trials, _mean(first if first is not None else means), _mean(last)


def _place(step: LargestComponent, labels: LabelSpec) -> int | None:
    """Position of a step's structure; None for all together."""
    structures = [values for _, values in labels.foreground]
    return structures.index(step.values) if step.values in structures else None


def _dice_of_cases(
    judged: Sequence[Judged], labels: LabelSpec, kept: Sequence[LargestComponent], steps: Sequence[LargestComponent]
) -> tuple[np.ndarray, np.ndarray]:
    """Dice with the kept steps ``(cases, structures)``, and with each further one ``(cases, steps, structures)``."""
    work = partial(_dice_of_case, labels=labels, kept=kept, steps=steps)
    with ThreadPoolExecutor(workers_for([case.reference for case in judged])) as pool:
        rows = list(pool.map(work, judged))
    before, after = zip(*rows, strict=True)
    return np.stack(before), np.stack(after)


def _dice_of_case(
    case: Judged, labels: LabelSpec, kept: Sequence[LargestComponent], steps: Sequence[LargestComponent]
) -> tuple[np.ndarray, np.ndarray]:
    reference, prediction = read_label(case.reference).array, read_label(case.prediction).array
    if reference.shape != prediction.shape:
        raise DataError(
            f"{case.prediction} has the shape {prediction.shape}, its reference {reference.shape}; validate its fold "
            "anew."
        )
    array = keep_largest(prediction, kept, labels)
    counts = confusion(array, reference, labels, case.case)
    boxes = ndimage.find_objects(array, max_label=max(labels.values))
    before = _dice(counts, labels)
    after = np.tile(before, (len(steps), 1))
    for index, step in enumerate(steps):
        box = joined_box([boxes[value - 1] for value in step.values])
        if box is None:
            continue
        old, truth = array[box], reference[box]
        new = keep_largest(old, [step], labels)
        if new is not old:  # outside of the box nothing changes
            difference = confusion(new, truth, labels, case.case) - confusion(old, truth, labels, case.case)
            after[index] = _dice(counts + difference, labels)
    return before, after


def _dice(counts: np.ndarray, labels: LabelSpec) -> np.ndarray:
    """Of each structure; NaN where it is absent."""
    found = np.full(len(labels.foreground), np.nan)
    for index, (_, values) in enumerate(labels.foreground):
        dice = dice_of(counts, values)
        found[index] = np.nan if dice is None else dice
    return found


def _mean_over_cases(table: np.ndarray) -> np.ndarray:
    """Of each structure over the cases that have it; NaN where none has."""
    known = ~np.isnan(table)
    count = known.sum(0)
    total = np.where(known, table, 0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    """Of the values that are numbers; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
