"""The names of ultralytics that medkd builds on, imported the careful way; import this module inside functions only."""

from __future__ import annotations

from medkd.detection.yolo.offline import quiet, require, unchanged_process

require()

with unchanged_process():
    import ultralytics.engine.trainer as engine
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import InfiniteDataLoader, seed_worker
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.nn import tasks
    from ultralytics.nn.distill_model import DistillationModel
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import YAML
    from ultralytics.utils.torch_utils import unwrap_model

    version = engine.__version__

__all__ = [
    "YAML",
    "DetectionModel",
    "DetectionTrainer",
    "DistillationModel",
    "InfiniteDataLoader",
    "YOLODataset",
    "engine",
    "get_cfg",
    "quiet",
    "seed_worker",
    "tasks",
    "unwrap_model",
    "version",
]
