"""The ultralytics family. Importing it registers the detectors; ultralytics itself is imported when one is built or
trained.
"""

from __future__ import annotations

from medkd.core.run import FINAL
from medkd.detection.job import DetectionJob
from medkd.detection.yolo.detectors import YoloDetector

__all__ = ["YoloDetector", "can_continue", "fit"]


def fit(job: DetectionJob) -> None:
    """Train one fold; see :func:`medkd.detection.yolo.fold.fit`."""
    from medkd.detection.yolo.fold import fit as train

    train(job)


def can_continue(job: DetectionJob) -> bool:
    """Whether an earlier training left something to go on from."""
    from medkd.detection.yolo import checkpoints
    from medkd.detection.yolo.fold import FOLDER

    return (job.folder / FINAL).exists() or checkpoints.can_continue(job.folder / FOLDER / "weights")
