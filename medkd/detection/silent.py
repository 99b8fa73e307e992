"""Terms of a method that cannot teach a detector, found in one step on random pixels; see
:mod:`medkd.distillation.gradient_check`.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from medkd.core.errors import MethodError
from medkd.detection.base import Detector, DetectorOutputs
from medkd.detection.distiller import DetectorDistiller
from medkd.distillation.gradient_check import sentence, silent_among

_IMAGES = 2
_SEED = 20
_BOXES = ((0.1, 0.1, 0.5, 0.5), (0.4, 0.5, 0.9, 0.95))  # of every image, as shares of its side


def silence_of(distiller: DetectorDistiller, student: Detector) -> str:
    """A sentence about the terms that :func:`silent_terms` finds; empty where there are none, or nobody can say."""
    try:
        return sentence(silent_terms(distiller, student))
    except (MethodError, NotImplementedError):
        # of random outputs, or a detector without losses; what is refused in earnest is said then
        return ""


def silent_terms(distiller: DetectorDistiller, student: Detector) -> tuple[str, ...]:
    """The terms of a detector's method that have no gradient to the student's outputs or features.

    Args:
        distiller: teacher and method, on the CPU; not changed.
        student: as it starts, on the CPU; not changed.

    Returns:
        Their names, in the order of the terms; empty where every term teaches.

    Raises:
        MethodError: the method refuses such outputs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        size, classes = student.spec.image_size, len(student.spec.categories)
        images = torch.rand(_IMAGES, 3, size, size)
        boxes = [torch.tensor(_BOXES) * size for _ in range(_IMAGES)]
        named = [torch.arange(len(_BOXES)) % classes for _ in range(_IMAGES)]
        tried = copy.deepcopy(student)  # it takes statistics of the batch
        _, outputs, target = tried.losses(images, boxes, named)
        compared = distiller.compared(images, outputs, target, vary=_varied)
        return silent_among(distiller.method, *compared)


def _varied(outputs: DetectorOutputs) -> DetectorOutputs:
    """The outputs with random scores and maps: an untrained detector is sure of nothing, and no term should depend on
    that.
    """
    features = {name: torch.randn_like(value) for name, value in outputs.features.items()}
    return replace(outputs, logits=_random_scores(outputs.logits), features=features)


def _random_scores(logits: Tensor) -> Tensor:
    return 2 * torch.randn_like(logits)
