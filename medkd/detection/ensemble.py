"""The detections of several models put together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medkd.evaluation.detection.matching import overlaps
from medkd.evaluation.detection.predictions import Boxes

FUSION_OVERLAP = 0.55


def fuse(parts: Sequence[Boxes], overlap: float = FUSION_OVERLAP) -> Boxes:
    """Weighted boxes fusion: boxes of one class that lie on each other become their mean, weighted by score.

    A fused box has the mean score of its boxes times the share of the models that found it: ``mean(s) · min(n, N) / N``
    for ``n`` boxes of ``N`` models. Solovyev, Wang and Gabruseva, Image and Vision Computing 107, 2021,
    arXiv:1910.13302.

    Args:
        parts: detections of one image, one per model.
        overlap: intersection over union with a fused box from which a box belongs to it.

    Returns:
        The fused boxes by falling score; of a single model, its own.
    """
    if len(parts) == 1:
        return parts[0]
    boxes, classes, scores = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("boxes", "classes", "scores")
    )
    fused: list[tuple[np.ndarray, int, float]] = []
    for kind in np.unique(classes):
        chosen = np.flatnonzero(classes == kind)
        order = chosen[np.argsort(-scores[chosen], kind="stable")]
        fused += [(box, int(kind), score) for box, score in _clusters(boxes[order], scores[order], len(parts), overlap)]
    fused.sort(key=lambda entry: -entry[2])
    return Boxes.of([b for b, _, _ in fused], [k for _, k, _ in fused], [s for _, _, s in fused])


def _clusters(boxes: np.ndarray, scores: np.ndarray, models: int, overlap: float) -> list[tuple[np.ndarray, float]]:
    """Fused boxes and scores of one class; boxes come by falling score."""
    means = np.zeros((0, 4))
    sums: list[np.ndarray] = []
    weights: list[list[float]] = []
    for box, score in zip(boxes, scores, strict=True):
        iou = overlaps(box[None], means)[0] if len(means) else np.zeros(0)
        if len(iou) and iou.max() > overlap:
            place = int(iou.argmax())
            sums[place] = sums[place] + score * box
            weights[place].append(float(score))
            means[place] = sums[place] / max(sum(weights[place]), 1e-12)
        else:
            sums.append(score * box)
            weights.append([float(score)])
            means = np.concatenate([means, box[None]])
    return [(box, float(np.mean(w)) * min(len(w), models) / models) for box, w in zip(means, weights, strict=True)]
