"""Training steps and predictions on a CUDA device: time, memory, kernels, and where the host waits for the device.

    python -m benchmarks.bench_cuda -o benchmarks/results/cuda.json --minutes 3

A step is that of the training loop with its batch on the host: copy, student, loss, method, gradients, clipping, SGD.
The student is ``unet_tiny``, the teacher ``res_unet``, both with random weights; 96³ voxels, batch 2, 14 classes. The
floor of a method is the step of the student alone plus a forward pass of the teacher. Detectors are those of the
torchvision family, eight images of 320 × 320 pixels. Predictions are of a volume of 160 × 256 × 256 with and without
mirroring. What there is no time for is left out; the file is written after every row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench_distillation_step import organs
from benchmarks.cuda_clock import launches, milliseconds, peak_mib, waits
from benchmarks.measure import machine
from medkd.core.features import Progress, Target
from medkd.core.files import write_json
from medkd.core.labels import LabelSpec
from medkd.core.run import Budget
from medkd.core.splits import Split
from medkd.detection.base import DETECTORS, Detector, DetectorSpec
from medkd.detection.distiller import DetectorDistiller
from medkd.detection.methods import DETECTION_METHODS
from medkd.distillation import METHODS, Context, Distiller, build_method
from medkd.inference.sliding_window import predict_logits
from medkd.networks import build_network
from medkd.networks.reference import reference_spec
from medkd.training.distillation import DistillationTrainer
from medkd.training.segmentation import SegmentationData
from medkd.training.trainer import LoopSettings

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # the CPU only to see that the script works
_FIRST = ("none", "kd", "bckd", "acf_bckd")
_DETECTORS = (("retinanet_r18", "retinanet_r50"), ("atss_r18", "gfl_r18"), ("faster_rcnn_r18", "faster_rcnn_r50"))


class StepTrainer(DistillationTrainer):
    """The training loop with a batch that is at hand, and neither files nor augmentation."""

    def _augmentation(self) -> Any:
        return None, self.data.patch_size

    def use(self, batch: tuple[Tensor, ...]) -> StepTrainer:
        """Ready for steps on this batch, past the epoch in which gradients are watched."""
        self.hooks = []
        self.batch = batch
        self.start(resume=False)
        self.epoch = 1
        self.begin_epoch()
        return self

    def once(self) -> None:
        """A step."""
        self.step(self.batch)


def trainer_for(name: str, options: argparse.Namespace, precision: str, folder: Path) -> StepTrainer:
    """The loop of a method."""
    torch.manual_seed(0)
    patch = tuple(options.patch)
    student, teacher = (build_network(spec_of(network, options)) for network in ("unet_tiny", "res_unet"))
    context = Context(
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        num_outputs=options.classes,
        regions=False,
        spacing=(2.0, 1.5, 1.5),
        patch_size=patch,
    )
    image, target = batch_of(patch, options.classes, options.batch)
    method = build_method(name, context)
    distiller = Distiller(teacher.to(DEVICE), method.to(DEVICE))
    if distiller.needs_preparation:
        distiller.prepare([(image.to(DEVICE), Target(target.labels.to(DEVICE)))] * 2)
    names = [f"organ{k}" for k in range(1, options.classes)]
    data = SegmentationData(
        store=folder,
        split=Split((), ()),
        labels=LabelSpec.from_names(names),
        configuration=SimpleNamespace(batch_dice=False, use_mask_for_norm=[False]),  # type: ignore[arg-type]
        patch_size=patch,
        mirror_axes=(),
        workers=0,
    )
    budget = Budget(100, 250, options.batch, 0.01, 0)
    settings = LoopSettings(budget=budget, device=DEVICE, precision=precision)  # type: ignore[arg-type]
    loop = StepTrainer(student, distiller, data, settings, folder)
    labels = target.labels.to(torch.int16)
    return loop.use((pinned(image), pinned(labels)))


@cache
def batch_of(patch: tuple[int, ...], classes: int, batch: int) -> tuple[Tensor, Target]:
    """The same images and labels for all."""
    return organs(patch, classes, batch, False)


def pinned(tensor: Tensor) -> Tensor:
    """Where CUDA copies fast, as the loader gives it."""
    return tensor.pin_memory() if DEVICE.type == "cuda" else tensor


def spec_of(network: str, options: argparse.Namespace) -> Any:
    """A network's specification at the patch and the classes that were asked for."""
    return replace(reference_spec(network, 3), patch_size=tuple(options.patch), num_outputs=options.classes)


def step_row(name: str, options: argparse.Namespace, precision: str, folder: Path) -> dict[str, Any]:
    """A method's step."""
    loop = trainer_for(name, options, precision, folder)
    row: dict[str, Any] = {"milliseconds": milliseconds(loop.once, options.repeats)}
    row |= {"peak_mib": peak_mib(loop.once), "waits": waits(loop.once), "launches": launches(loop.once)}
    losses = [float(torch.stack(list(loop.step(loop.batch).values())).sum()) for _ in range(2)]
    row["losses"] = losses
    if name == "kd":
        row["teacher_milliseconds"] = milliseconds(lambda: _look(loop), options.repeats)
    return row


@torch.no_grad()
def _look(loop: StepTrainer) -> None:
    """The teacher's forward pass alone."""
    image = loop.batch[0].to(DEVICE, non_blocking=True)
    with loop.autocast():
        loop.distiller.run_teacher(image, Progress())


def steps(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Methods and precisions in the order of their worth."""
    for precision in options.precisions:
        for name in _FIRST:
            yield from _tried(f"{name} {precision}", lambda n=name, p=precision: step_row(n, options, p, folder))
    for name in METHODS:
        if name not in _FIRST:
            yield from _tried(f"{name} bf16", lambda n=name: step_row(n, options, "bf16", folder))


def _tried(key: str, make: Callable[[], dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A row, or the sentence that says why there is none."""
    try:
        row = make()
    except Exception as error:
        row = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    torch.cuda.empty_cache()
    yield key, row


def ways(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What torch's own switches do to the student's step alone: exact fp32, channels last, cuDNN's search."""
    for key, exact, last, search in (
        ("fp32, TF32 off", True, False, False),
        ("fp32, TF32 on", False, False, False),
        ("bf16", False, False, False),
        ("bf16, channels last", False, True, False),
        ("bf16, cudnn.benchmark", False, False, True),
        ("bf16, channels last, cudnn.benchmark", False, True, True),
    ):
        torch.backends.cudnn.allow_tf32 = not exact
        torch.backends.cudnn.benchmark = search
        loop = trainer_for("none", options, key.split(",")[0], folder)
        if last:
            loop.network.to(memory_format=torch.channels_last_3d)
            image, labels = loop.batch
            loop.batch = (pinned(image.contiguous(memory_format=torch.channels_last_3d)), labels)
        yield from _tried(key, lambda it=loop: {"milliseconds": milliseconds(it.once, options.repeats)})
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False


def detectors(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Training steps of detectors with methods, the optimiser left out."""
    import medkd.detection.tv  # noqa: F401 - enters its detectors into the registry

    names = [n for n in METHODS if METHODS[n].detection] + list(DETECTION_METHODS)
    for student, teacher in _DETECTORS:
        pair = [_detector(name, options.image) for name in (student, teacher)]
        for name in dict.fromkeys(("none", *names)):
            yield from _tried(f"{student} from {teacher}, {name}", lambda n=name, p=pair: detector_row(n, *p, options))


def _detector(name: str, size: int) -> Detector:
    torch.manual_seed(0)
    return DETECTORS[name].build(DetectorSpec(name, ("fracture",), size)).to(DEVICE)


def detector_row(name: str, student: Detector, teacher: Detector, options: argparse.Namespace) -> dict[str, Any]:
    """A method's step between two detectors: eight images with two boxes each."""
    size = options.image
    images = torch.rand(8, 3, size, size, device=DEVICE)
    corner = torch.rand(8, 2, 2, device=DEVICE) * 0.6 * size
    boxes = list(torch.cat([corner, corner + 0.2 * size], -1).unbind())
    classes = [torch.zeros(2, dtype=torch.long, device=DEVICE) for _ in range(8)]
    dense = not student.two_stage
    context = Context(
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        num_outputs=1 if dense else 2,
        regions=dense,
        spacing=(1.0, 1.0),
        patch_size=(size, size),
        task="detection",
    )
    teacher.eval().requires_grad_(False)
    distiller = DetectorDistiller(teacher, build_method(name, context, None, DETECTION_METHODS)).to(DEVICE)
    if distiller.needs_preparation:
        return {"error": "its first stage is not measured"}
    student.train()

    def step() -> None:
        student.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            losses, outputs, target = student.losses(images, boxes, classes)
            terms = losses | distiller.terms(images, outputs, target)
        torch.stack([term.float() for term in terms.values()]).sum().backward()

    return {"milliseconds": milliseconds(step, 5), "waits": waits(step), "launches": launches(step)}


def predictions(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sliding windows over a volume."""
    torch.manual_seed(0)
    volume = torch.randn(1, *options.volume)
    network = build_network(spec_of("res_unet", options)).to(DEVICE).eval()
    exact: list[Tensor] = []
    for mirror in ((), (0, 1, 2)):
        for precision in ("fp32", "fp16", "bf16"):
            key = f"{precision}{', mirrored' if mirror else ''}"
            yield from _tried(key, lambda m=mirror, p=precision: _predict(network, volume, options, m, p, exact))


def _predict(
    network: nn.Module,
    volume: Tensor,
    options: argparse.Namespace,
    mirror: tuple[int, ...],
    precision: str,
    exact: list[Tensor],
) -> dict[str, float]:
    """Seconds, and the share of voxels with the label that fp32 gives; the labels of fp32 are added to ``exact``."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)

    def predict() -> Tensor:
        with torch.inference_mode(), torch.autocast(DEVICE.type, dtype, enabled=dtype is not None):
            return predict_logits(
                network, volume.to(DEVICE), tuple(options.patch), options.classes, mirror_axes=mirror, device=DEVICE
            )

    seconds = milliseconds(predict, 3, warm=1)["median"] / 1000
    labels = predict().argmax(0)
    if precision == "fp32":
        exact.append(labels)
    return {"seconds": seconds, "same labels as fp32": round(float((labels == exact[-1]).float().mean()), 6)}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", nargs=3, type=int, default=[96, 96, 96])
    parser.add_argument("--volume", nargs=3, type=int, default=[160, 256, 256])
    parser.add_argument("--image", type=int, default=320, help="side of the detectors' images")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp16", "fp32"])
    parser.add_argument("--parts", nargs="+", default=["steps", "detectors", "ways", "predictions"])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    result: dict[str, Any] = {"schema": 1, "settings": settings, "machine": machine("monai", "torchvision")}
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "steps": steps(options, Path(folder)),
            "ways": ways(options, Path(folder)),
            "predictions": predictions(options),
            "detectors": detectors(options),
        }
        for part in options.parts:
            result[part] = {}
            for key, row in parts[part]:
                result[part][key] = row
                print(part, key, row, flush=True)
                write_json(options.output, result)
                if time.monotonic() > end:
                    return 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
