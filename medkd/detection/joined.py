"""A teacher and a method, put together for a student; what cannot be is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from medkd.detection.base import Detector
from medkd.detection.distiller import DetectorDistiller
from medkd.detection.layers import chart_pair
from medkd.detection.methods import DETECTION_METHODS
from medkd.detection.methods.scores import check_scores
from medkd.distillation import Context, build_method
from medkd.training.job import HELPER_SEED
from medkd.training.options import INIT_FROM_TEACHER


def check_start_of(student: Detector, teacher: Detector, init: str) -> bool:
    """Whether a student starts from its teacher.

    Raises:
        RunError: it is to, and cannot.
    """
    if init != INIT_FROM_TEACHER:
        return False
    chart_pair(student, teacher)
    return True


def joined(
    student: Detector, teacher: Detector, method: str, parameters: Mapping[str, Any], seed: int
) -> DetectorDistiller:
    """Teacher and method, built for a student; equal for equal seeds.

    Raises:
        MethodError: the method does not exist, is not defined for these detectors, or has no such parameter.
    """
    classes, size = len(student.spec.categories), student.spec.image_size
    context = Context(
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        num_outputs=classes + 1 if student.two_stage else classes,
        regions=not student.two_stage,
        spacing=(1.0, 1.0),
        patch_size=(size, size),
        task="detection",
    )
    torch.manual_seed(seed + HELPER_SEED)
    built = build_method(method, context, parameters, own=DETECTION_METHODS)
    check_scores(student, teacher, built)
    return DetectorDistiller(teacher, built, student.anchors)
