"""YOLOv8 detectors that are smaller than ultralytics' own, for tests."""

from __future__ import annotations

import torch

from medkd.detection.base import DetectorSpec
from medkd.detection.yolo import YoloDetector


def tiny_yolo(width: float, depth: float = 0.33, seed: int = 0, size: int = 64, name: str = "yolov8n") -> YoloDetector:
    """A YOLOv8 of any width and depth, with random weights."""
    from medkd.detection.yolo.library import DetectionModel, tasks, unchanged_process

    torch.manual_seed(seed)
    with unchanged_process():
        layout = tasks.yaml_model_load("yolov8n.yaml")
        layout |= {"scales": {"n": [depth, width, 1024]}, "nc": 2}
        network = DetectionModel(layout, ch=3, verbose=False)
    return YoloDetector(DetectorSpec(name, ("fracture", "metal"), size), network)
