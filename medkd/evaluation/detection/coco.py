"""COCO's scores by its own tool, pycocotools, so that they can be compared with anybody's."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from medkd.core.errors import MedkdError
from medkd.evaluation.detection.predictions import Boxes

COCO_METRICS = (
    "AP",
    "AP50",
    "AP75",
    "AP small",
    "AP medium",
    "AP large",
    "AR@1",
    "AR@10",
    "AR@100",
    "AR small",
    "AR medium",
    "AR large",
)
"""The twelve numbers of COCO in its order; small is below 32², large above 96² pixels of the original image."""


def coco_scores(
    found: Sequence[Boxes], truths: Sequence[Boxes], categories: Sequence[str]
) -> dict[tuple[str, str], float]:
    """COCO's twelve numbers, averaged over the classes that have reference boxes, and the same of every class.

    Args:
        found: detections per image; at most 1, 10 and 100 per class and image count.
        truths: reference boxes per image, in the same order and pixels.
        categories: names of the classes.

    Returns:
        (class or empty for the mean, metric) → value; NaN where there is no reference box.

    Raises:
        MedkdError: pycocotools is not installed.
    """
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MedkdError(
            "Scoring boxes as COCO does needs pycocotools, which is not installed; install it with: pip install "
            "'medkd[detection]'."
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        judge = COCOeval(_as_coco(truths, categories), _as_coco(found, categories), "bbox")
        judge.evaluate()
        judge.accumulate()
    precision, recall = judge.eval["precision"], judge.eval["recall"]
    values = dict(zip([("", m) for m in COCO_METRICS], _twelve(precision, recall), strict=True))
    for k, name in enumerate(categories):
        one = _twelve(precision[:, :, k : k + 1], recall[:, k : k + 1])
        values |= {(name, metric): value for metric, value in zip(COCO_METRICS, one, strict=True)}
    return values


def _as_coco(images: Sequence[Boxes], categories: Sequence[str]) -> Any:
    from pycocotools.coco import COCO

    boxes: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        for box, kind, score in zip(image.boxes, image.classes, image.scores, strict=True):
            left, top, right, bottom = (float(v) for v in box)
            sides = [left, top, right - left, bottom - top]
            entry = {
                "id": len(boxes) + 1,
                "image_id": number,
                "category_id": int(kind) + 1,
                "bbox": sides,
                "iscrowd": 0,
            }
            boxes.append({**entry, "area": sides[2] * sides[3], "score": float(score)})
    result = COCO()
    result.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(1, len(images) + 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, start=1)],
        "annotations": boxes,
    }
    result.createIndex()
    return result


def _twelve(precision: np.ndarray, recall: np.ndarray) -> list[float]:
    """COCO's numbers from its tables ``[T, R, K, area, most]`` and ``[T, K, area, most]``, where −1 means undefined."""
    parts = [
        precision[..., 0, 2],
        precision[0, ..., 0, 2],
        precision[5, ..., 0, 2],
        *(precision[..., area, 2] for area in (1, 2, 3)),
    ]
    parts += [recall[..., 0, most] for most in (0, 1, 2)] + [recall[..., area, 2] for area in (1, 2, 3)]
    return [float(part[part > -1].mean()) if (part > -1).any() else float("nan") for part in parts]
