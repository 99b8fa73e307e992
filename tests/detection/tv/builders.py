"""Small detectors and batches of bright rectangles for the torchvision family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import medkd.detection.tv  # noqa: F401 - registers the detectors
from medkd.core.run import Budget
from medkd.detection.base import DETECTORS, Detector, DetectorSpec
from medkd.detection.job import DetectionJob
from medkd.detection.plan import DetectionAugmentation, DetectionPlan
from medkd.detection.store import DetectionStore
from tests.detection.builders import make_dataset, make_store

SIZE = 64
TOWERS = ("retinanet_r18", "fcos_r18", "gfl_r18", "atss_r18")  # heads with taps inside
DENSE = (*TOWERS, "reppoints_r18")
SMALL = (*DENSE, "faster_rcnn_r18")
Batch = tuple[Tensor, list[Tensor], list[Tensor]]


def make(name: str, classes: int = 2, size: int = SIZE, seed: int = 0) -> Detector:
    """A detector with random weights; a two-stage one looks at few proposals, which makes it quick."""
    torch.manual_seed(seed)
    spec = DetectorSpec(name, tuple(f"c{i}" for i in range(classes)), size, 2.0)
    detector = DETECTORS[name].build(spec)
    if detector.two_stage:
        few(detector)
    return detector


def few(detector: Any) -> None:
    """Let a two-stage detector look at few proposals."""
    detector.scorer.fg_bg_sampler.batch_size_per_image = 24
    detector.proposer._pre_nms_top_n = detector.proposer._post_nms_top_n = {"training": 40, "testing": 20}


def batch(size: int = SIZE, classes: int = 2, empty: bool = False) -> Batch:
    """Two images; the second has no boxes, the first neither where ``empty``."""
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(5)) * 0.3
    unit = size / 64
    boxes = torch.tensor([[8.0, 10, 40, 44], [30, 28, 60, 58]]) * unit
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    if empty:
        return images, [none[0], none[0]], [none[1], none[1]]
    return images, [boxes, none[0]], [torch.tensor([0, classes - 1]), none[1]]


def small_store(folder: Path, images: int = 4) -> DetectionStore:
    """Radiographs of 64 × 48 pixels with one rectangle each, the last without."""
    return make_store(make_dataset(folder, images=images, size=SIZE, negatives=1), folder / "store", SIZE)


def job(folder: Path, store: DetectionStore, detector: Detector, epochs: int = 2, **changes: object) -> DetectionJob:
    """Two steps of two images per epoch, and one validation image."""
    cases = tuple(store.cases())
    plan = DetectionPlan(
        dataset="Dataset502_Tiny",
        categories=store.categories,
        image_size=SIZE,
        batch_size=2,
        augmentation=DetectionAugmentation(degrees=5.0, flipud=0.5),
    )
    settings: dict = {
        "distiller": None,
        "budget": Budget(epochs, 0, 2, 1e-3, 3),
        "folder": folder,
        "device": torch.device("cpu"),
    }
    return DetectionJob(
        detector=detector, plan=plan, store=store.folder, train=cases[1:], val=cases[:1], **{**settings, **changes}
    )


class _Stem(nn.Module):
    """Four strided convolutions in place of a backbone."""

    def __init__(self, used: object) -> None:
        super().__init__()
        self.channels = (8, 8, 8, 8)
        layers = [nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.BatchNorm2d(8), nn.ReLU())]
        layers += [nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)]
        self.body = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for layer in self.body:
            maps.append(layer(maps[-1]))
        return maps[1:]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors are built with few channels and a toy backbone, so that their checkpoints are small."""
    build_narrow(monkeypatch)


def build_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What :func:`narrow` does."""
    from medkd.detection.tv import backbones, dense, faster_rcnn, head, points

    for module in (backbones, dense, faster_rcnn, head, points):
        monkeypatch.setattr(module, "CHANNELS", 64)
    monkeypatch.setattr(faster_rcnn, "_WIDTH", 32)
    monkeypatch.setitem(backbones._BACKBONES, "r18", _Stem)
