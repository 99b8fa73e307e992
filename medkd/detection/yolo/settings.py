"""ultralytics' arguments for a job, and what its own distillation needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from medkd.core.errors import MethodError
from medkd.detection.job import DetectionJob
from medkd.detection.yolo.detectors import YoloDetector


def settings_of(job: DetectionJob, data: Path, folder: Path) -> dict[str, Any]:
    """ultralytics' arguments for a job.

    The optimiser is named, because ``auto`` ignores the learning rate; hue and saturation stay, since radiographs are
    grey; there is no early stopping, so that runs have equal budgets. Every batch is one optimiser step, as it is for
    all other networks of medkd. ultralytics gathers 64 images for a step; since its loss is a sum over images, the same
    learning rate moves the weights equally far per image either way. The warm-up is at most a tenth of the run.
    """
    augmentation, budget, device = job.plan.augmentation, job.budget, job.device
    return {
        "task": "detect",
        "model": f"{job.detector.spec.name}.yaml",
        "data": str(data),
        "save_dir": str(folder),
        "exist_ok": True,
        "pretrained": False,
        "plots": False,
        "epochs": budget.epochs,
        "batch": budget.batch_size,
        "imgsz": job.detector.spec.image_size,
        "optimizer": "SGD",
        "lr0": budget.learning_rate,
        "nbs": budget.batch_size,
        "warmup_epochs": min(3.0, 0.1 * budget.epochs),
        "seed": budget.seed,
        "deterministic": True,
        "patience": 0,
        "device": str(device.index or 0) if device.type == "cuda" else device.type,
        "workers": job.workers,
        "amp": device.type == "cuda" and {"fp32": False, "bf16": "bf16", "fp16": True}[job.precision],
        "mosaic": augmentation.mosaic,
        "close_mosaic": augmentation.close_mosaic,
        "fliplr": augmentation.fliplr,
        "flipud": augmentation.flipud,
        "scale": augmentation.scale,
        "translate": augmentation.translate,
        "degrees": augmentation.degrees,
        "hsv_h": 0.0,
        "hsv_s": 0.0,
        "hsv_v": augmentation.brightness,
        **_schedule(job),
        **_own_distillation(job),
    }


def _own_distillation(job: DetectionJob) -> dict[str, float]:
    """The weight of ultralytics' own distillation, where that is the method."""
    if job.distiller is None or not is_builtin(job):
        return {}
    return {"dis": float(getattr(job.distiller.method, "weight", 6.0))}


def _schedule(job: DetectionJob) -> dict[str, float]:
    """What the plan says of the optimiser, where it does; ultralytics' decay is linear by itself."""
    plan, rate = job.plan, job.budget.learning_rate
    last = None if plan.final_learning_rate is None else plan.final_learning_rate / rate
    said = {"momentum": plan.momentum, "weight_decay": plan.weight_decay, "lrf": last}
    return {name: value for name, value in said.items() if value is not None}


def is_builtin(job: DetectionJob) -> bool:
    """Whether the method is the one that ultralytics brings along."""
    return job.distiller is not None and bool(getattr(job.distiller.method, "builtin", False))


def builtin_teacher(job: DetectionJob) -> nn.Module:
    """The teacher's network, for ultralytics' own distillation.

    Raises:
        MethodError: it cannot use the teacher.
    """
    distiller: Any = job.distiller
    teacher, student = distiller.teacher, job.detector
    if not isinstance(teacher, YoloDetector):
        name = "none" if teacher is None else teacher.spec.name
        raise MethodError(
            f"'ultralytics' distils between ultralytics' detectors only; expected a YOLO teacher, found {name}."
        )
    strides = [[t.stride[0] for t in detector.taps if t.stage == "neck"] for detector in (teacher, student)]
    if strides[0] != strides[1]:
        raise MethodError(
            f"'ultralytics' needs equal levels; the teacher has the strides {strides[0]}, the student {strides[1]}."
        )
    network: nn.Module = teacher.network.float().eval()
    return network
