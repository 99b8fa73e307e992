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
    values = _named_twelve("", precision, recall)
    for k, name in enumerate(categories):
        one = slice(k, k + 1)
        values |= _named_twelve(name, precision[:, :, one], recall[:, one])
    return values


def _as_coco(images: Sequence[Boxes], categories: Sequence[str]) -> Any:
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        annotations += _annotations(image, number, len(annotations), crowd=False)
        if image.ignored is not None:
            annotations += _annotations(image.ignored, number, len(annotations), crowd=True)
    result = COCO()
    result.dataset = {
        "info": {},
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories, start=1)],
        "annotations": annotations,
    }
    result.createIndex()
    return result


def _annotations(image: Boxes, number: int, before: int, *, crowd: bool) -> list[dict[str, Any]]:
    """Boxes in COCO's form; ids go on from those before."""
    annotations: list[dict[str, Any]] = []
    for box, kind, score in zip(image.boxes.tolist(), image.classes.tolist(), image.scores.tolist(), strict=True):
        left, top, right, bottom = box
        width, height = right - left, bottom - top
        annotation = {
            "id": before + len(annotations) + 1,
            "image_id": number,
            "category_id": kind + 1,
            "bbox": [left, top, width, height],
            "area": width * height,
            "iscrowd": int(crowd),
            "score": score,
        }
        annotations.append(annotation)
    return annotations


def _named_twelve(name: str, precision: np.ndarray, recall: np.ndarray) -> dict[tuple[str, str], float]:
    """COCO's numbers from its tables ``[T, R, K, area, most]`` and ``[T, K, area, most]``, where −1 means undefined.

    Of ``area`` the first is all sizes and the others are small, medium and large; of ``most`` the last is 100.
    """
    any_size, hundred = 0, 2
    at_fifty, at_seventy_five = 0, 5
    at_hundred = precision[..., any_size, hundred]
    parts = [at_hundred, at_hundred[at_fifty], at_hundred[at_seventy_five]]
    for area in (1, 2, 3):
        parts.append(precision[..., area, hundred])
    for most in (0, 1, 2):
        parts.append(recall[..., any_size, most])
    for area in (1, 2, 3):
        parts.append(recall[..., area, hundred])
    values = {}
    for metric, part in zip(COCO_METRICS, parts, strict=True):
        defined = part[part > -1]
        values[name, metric] = float(defined.mean()) if defined.size else float("nan")
    return values
