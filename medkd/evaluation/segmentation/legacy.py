"""The metric of ACF-BCKD's published tables, with its defects, to compare with them; every other score of medkd is the
correct one.

HD95 counts voxels instead of millimetres. A structure that is absent from the reference has no Dice, even if it was
predicted; a structure that is absent from either map has no HD95, so that missing it costs nothing there. A case's
score is the mean over its structures, rounded to two decimals; the mean over the cases leaves out cases without a
score.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import nan
from pathlib import Path

import numpy as np

from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.evaluation.segmentation.metrics import hausdorff95
from medkd.io.volumes import read_label

KEY = "legacy"
"""Of the scores in ``summary.json``, under ``"medkd"``."""


@dataclass(frozen=True, kw_only=True)
class LegacyScores:
    """Scores of a set of cases.

    Attributes:
        dice: mean over cases in per cent, None where no case has a score.
        hd95: mean over cases in voxels, likewise.
        dice_dropped: pairs of case and structure that have no Dice.
        hd95_dropped: pairs of case and structure that have no HD95.
        pairs: all pairs of case and structure.
        voxel_mm: the voxel that HD95 counts along ``(z, y, x)``; None counts each file's own voxels.
    """

    dice: float | None
    hd95: float | None
    dice_dropped: int
    hd95_dropped: int
    pairs: int
    voxel_mm: tuple[float, ...] | None = None

    def text(self) -> str:
        """One line for people."""
        return (
            f"legacy metric: Dice {_shown(self.dice)} %, HD95 {_shown(self.hd95)} voxels; of {self.pairs} structures, "
            f"{self.dice_dropped} had no Dice and {self.hd95_dropped} no HD95 and were dropped"
        )


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def legacy_case(
    prediction: np.ndarray, reference: np.ndarray, labels: LabelSpec, voxels: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Dice in per cent and HD95 in voxels of every structure of a case; NaN where the original has none.

    Args:
        prediction: label values ``(z, y, x)``.
        reference: likewise.
        labels: the structures.
        voxels: length of this grid's voxel in counted voxels, per axis (1 where its own voxels are counted).
    """
    dice, hd95 = [], []
    for _, values in labels.foreground:
        ours, theirs = np.isin(prediction, values), np.isin(reference, values)
        our_size, size = int(np.count_nonzero(ours)), int(np.count_nonzero(theirs))
        common = int(np.count_nonzero(ours & theirs))
        dice.append(200 * common / (our_size + size) if size else nan)
        hd95.append(hausdorff95(ours, theirs, voxels) if our_size and size else nan)
    return dice, hd95


def legacy_scores(
    predictions: Path,
    references: Path,
    labels: LabelSpec,
    cases: Sequence[str],
    *,
    file_ending: str = ".nii.gz",
    voxel_mm: Sequence[float] | None = None,
    workers: int = 1,
) -> LegacyScores:
    """Score ``predictions/CASE.nii.gz`` against ``references/CASE.nii.gz`` on the references' own grid.

    Args:
        predictions: folder of predicted label maps.
        references: folder of reference label maps.
        labels: the structures.
        cases: the cases to score.
        file_ending: of both.
        voxel_mm: size in mm along ``(z, y, x)`` of the voxels in which HD95 is counted, for example of the grid that a
            protocol resamples to; None counts the voxels of each file.
        workers: threads.

    Raises:
        DataError: a file cannot be read, or prediction and reference differ in shape.
    """

    def one(case: str) -> tuple[list[float], list[float]]:
        prediction = read_label(predictions / f"{case}{file_ending}")
        reference = read_label(references / f"{case}{file_ending}")
        if prediction.array.shape != reference.array.shape:
            raise DataError(
                f"{case}: prediction {prediction.array.shape} and reference {reference.array.shape} differ in shape."
            )
        own = np.array(reference.geometry.spacing)
        counted = own if voxel_mm is None else np.array(voxel_mm)
        return legacy_case(prediction.array, reference.array, labels, tuple(own / counted))

    with ThreadPoolExecutor(max(1, workers)) as pool:
        scores = np.array(list(pool.map(one, cases)), dtype=np.float64)  # (cases, 2, structures)
    dice, hd95 = scores[:, 0], scores[:, 1]
    return LegacyScores(
        dice=_mean_of_cases(dice),
        hd95=_mean_of_cases(hd95),
        dice_dropped=int(np.isnan(dice).sum()),
        hd95_dropped=int(np.isnan(hd95).sum()),
        pairs=dice.size,
        voxel_mm=None if voxel_mm is None else tuple(voxel_mm),
    )


def _mean_of_cases(table: np.ndarray) -> float | None:
    scores = []
    for row in table:
        known = row[np.isfinite(row)]
        if known.size:
            scores.append(round(float(known.mean()), 2))
    return round(float(np.mean(scores)), 2) if scores else None
