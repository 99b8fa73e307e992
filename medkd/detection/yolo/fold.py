"""Trains one fold of a YOLO detector, from the start or from where it was left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from medkd.core.errors import RunError
from medkd.core.run import BEST, FINAL
from medkd.detection.job import DetectionJob
from medkd.detection.yolo import checkpoints as saved
from medkd.detection.yolo.data import write_data
from medkd.detection.yolo.detectors import YoloDetector
from medkd.detection.yolo.library import check_single, quiet, unchanged_process
from medkd.detection.yolo.settings import builtin_teacher, is_builtin, settings_of
from medkd.detection.yolo.trainer import YoloTrainer
from medkd.training.ranks import Ranks, current
from medkd.training.speed import switched
from medkd.training.trainer import OTHER_FILES

FOLDER = "ultralytics"
"""In the fold folder: everything that ultralytics writes, among it ``weights/best.pt`` and ``weights/last.pt``."""


def fit(job: DetectionJob) -> None:
    """Train one fold.

    Writes ``checkpoint_final.pt`` and ``checkpoint_best.pt`` (``{"schema", "network", "epoch", "score"}``, the moving
    average of the weights), ``log.jsonl``, and in ``ultralytics/`` what its trainer writes. Its ``weights/best.pt`` and
    ``last.pt`` can be opened with ``YOLO(path)`` where medkd is not installed (``yolov8_efficientnet_es`` needs timm
    there). A training that was killed goes on from its last epoch with ``job.resume``, with the same images, weights,
    helpers, momentum and average; a finished one is left alone. ultralytics is silent but for warnings unless medkd is
    to say more.

    Raises:
        RunError: the detector is not of this family, ultralytics is not installed, memory does not suffice, or the loss
            becomes infinite.
        MethodError: ultralytics' own distillation is asked of a teacher that it cannot use.
        DataError: an image of the store cannot be read.
    """
    if not isinstance(job.detector, YoloDetector):
        raise RunError(f"{job.detector.spec.name} is not a YOLO detector; its family is {job.detector.family}.")
    weights = job.folder / FOLDER / "weights"
    if job.resume and (job.folder / FINAL).exists():
        saved.forget_states(weights)
        return
    state = saved.read_state(weights) if job.resume and saved.can_continue(weights) else None
    ranks = current()
    check_single()
    ranks.agree(str(state and state["epoch"]), job.device, OTHER_FILES)  # and nobody writes before all have read
    if state is None and ranks.first:
        _clear(job.folder)
    if is_builtin(job):
        builtin_teacher(job)
    with _own_folder(job.folder / FOLDER, ranks) as folder, unchanged_process(), quiet(), switched(job.speed):
        threads = torch.get_num_threads()
        trainer = YoloTrainer(job, settings_of(job, write_data(job, folder), folder), state)
        torch.set_num_threads(threads)  # ultralytics takes all cores when it picks the CPU
        try:
            trainer.train()
        finally:
            trainer.close()


@contextmanager
def _own_folder(folder: Path, ranks: Ranks) -> Iterator[Path]:
    """Where ultralytics writes: of several processes all but the first one have a folder that is thrown away."""
    if ranks.first:
        yield folder
        return
    with TemporaryDirectory(prefix="medkd_") as temporary:
        yield Path(temporary)


def _clear(folder: Path) -> None:
    """Remove what an earlier training of this fold left."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    for name in (BEST, FINAL):
        (folder / name).unlink(missing_ok=True)
