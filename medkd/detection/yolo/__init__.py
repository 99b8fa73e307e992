"""The ultralytics family. Importing it registers the detectors; ultralytics itself is imported when one is built or
trained.
"""

from __future__ import annotations

from medkd.detection.job import DetectionJob
from medkd.detection.yolo.detectors import YoloDetector

__all__ = ["YoloDetector", "fit"]


def fit(job: DetectionJob) -> None:
    """Train one fold; see :func:`medkd.detection.yolo.trainer.fit`."""
    from medkd.detection.yolo.trainer import fit as train

    train(job)
