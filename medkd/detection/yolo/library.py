"""The names of ultralytics that medkd builds on, imported the careful way; import this module inside functions only."""

from __future__ import annotations

from medkd.core.errors import RunError
from medkd.detection.yolo.offline import quiet, require, unchanged_process

require()

with unchanged_process():
    import ultralytics.engine.trainer as engine
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import InfiniteDataLoader, build_dataloader, seed_worker
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
    from ultralytics.nn import tasks
    from ultralytics.nn.distill_model import DistillationModel
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import YAML
    from ultralytics.utils.torch_utils import unwrap_model

    version = engine.__version__


def check_single() -> None:
    """See that ultralytics leaves it to medkd to share a training with other processes.

    Raises:
        RunError: it was imported before medkd, and wants to do so itself.
    """
    if engine.RANK != -1:
        raise RunError(
            "ultralytics was imported before medkd in a process of torchrun, and would share the training in its own "
            "way; import medkd first."
        )


__all__ = [
    "YAML",
    "DetectionModel",
    "DetectionTrainer",
    "DetectionValidator",
    "DistillationModel",
    "InfiniteDataLoader",
    "YOLODataset",
    "build_dataloader",
    "check_single",
    "engine",
    "get_cfg",
    "quiet",
    "seed_worker",
    "tasks",
    "unwrap_model",
    "version",
]
