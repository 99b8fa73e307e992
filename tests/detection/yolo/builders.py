"""Tiny jobs for the ultralytics family."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medkd.core.run import Budget
from medkd.detection.base import DETECTORS, DetectionTarget, DetectorOutputs, DetectorSpec
from medkd.detection.job import DetectionJob
from medkd.detection.plan import DetectionPlan
from medkd.detection.yolo import YoloDetector
from tests.detection.builders import make_dataset, make_store

SIZE = 64


def make(name: str = "yolov8n", seed: int = 0, categories: tuple[str, ...] = ("fracture",)) -> YoloDetector:
    """A detector with random weights."""
    torch.manual_seed(seed)
    detector = DETECTORS[name].build(DetectorSpec(name, categories, SIZE))
    assert isinstance(detector, YoloDetector)
    return detector


def calibrated(name: str = "yolov8n", seed: int = 0, categories: tuple[str, ...] = ("fracture",)) -> YoloDetector:
    """A detector whose running statistics fit its random weights, with class scores that differ between places."""
    return copy.deepcopy(_calibrated(name, seed, categories))


@cache
def _calibrated(name: str, seed: int, categories: tuple[str, ...]) -> YoloDetector:
    detector = make(name, seed, categories)
    torch.manual_seed(seed + 1)
    for branch in [*detector.head.cv3, *getattr(detector.head, "one2one_cv3", ())]:
        nn.init.normal_(branch[-1].weight, std=0.3)
        nn.init.constant_(branch[-1].bias, -2.0)
    for norm in (m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 0.1
    detector.train()
    with torch.no_grad():
        for _ in range(30):  # momentum 0.1
            detector.observe(torch.rand(2, 3, SIZE, SIZE), DetectorOutputs(logits=torch.zeros(1)))
    return detector.eval()


def batch(categories: int = 1) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Two images, the second one without boxes."""
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    boxes = [torch.tensor([[4.0, 6.0, 44.0, 40.0], [30.0, 30.0, 62.0, 63.0]]), torch.zeros(0, 4)]
    return images, boxes, [torch.tensor([0, categories - 1]), torch.zeros(0, dtype=torch.int64)]


def make_job(
    folder: Path, detector: YoloDetector, distiller: Any = None, *, negatives: int = 2, **changes: Any
) -> DetectionJob:
    """Two epochs of two steps on four images of 64 pixels, two more to validate."""
    categories = detector.spec.categories
    raw = make_dataset(folder, images=6, size=SIZE, negatives=negatives, categories=categories)
    store = make_store(raw, folder / "store", SIZE)
    cases = store.cases()
    job = DetectionJob(
        detector=detector,
        distiller=distiller,
        plan=DetectionPlan(dataset="Dataset502_Tiny", categories=categories, image_size=SIZE, batch_size=2),
        store=folder / "store",
        train=tuple(cases[:2] + cases[4:]),
        val=tuple(cases[2:4]),
        budget=Budget(2, 2, 2, 0.01, 0),
        folder=folder / "fold_0",
        device=torch.device("cpu"),
    )
    return replace(job, **changes)


class ToyDistiller:
    """Lets the student's finest map imitate a constant through a trainable 1x1 convolution.

    Attributes:
        calls: progress of every call, and the helper's weight as it was then.
        stop_at: epoch in which a call is interrupted.
    """

    def __init__(self, teacher: YoloDetector | None = None, stop_at: int | None = None, frozen: bool = False) -> None:
        torch.manual_seed(9)
        self.method = nn.Sequential(nn.Conv2d(64, 4, 1), nn.BatchNorm2d(4))
        self.method[0].bias.requires_grad_(not frozen)
        self.teacher = teacher
        self.stop_at = stop_at
        self.calls: list[tuple[int, int, Tensor]] = []

    def terms(self, images: Tensor, student: DetectorOutputs, target: DetectionTarget) -> dict[str, Tensor]:
        """Two terms, the second one only in some batches."""
        if target.progress.epoch == self.stop_at:
            raise InterruptedError
        self.calls.append((target.progress.epoch, target.progress.step, self.method[0].weight.detach().clone()))
        terms = {"imitation": (self.method(student.features["p3"].float()) - 1).square().mean()}
        return terms if len(self.calls) % 2 == 0 else {**terms, "sometimes": student.logits.square().mean()}
