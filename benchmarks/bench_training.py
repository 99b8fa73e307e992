"""Where the time and the peak memory of a training step go: load and augment, forward, loss, teacher and method,
backward, update.

    python -m benchmarks.bench_training                                 plain_unet alone, 40x56x40, batch 2, fp32 and
    bf16 python -m benchmarks.bench_training --network unet_tiny --teacher res_unet --method acf_bckd

Data is synthetic (random ellipsoids), so the script runs anywhere. Writes
benchmarks/results/training_<network>[_<method>].json.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import RESULTS, Phases, machine
from medkd.core.features import Progress, Target
from medkd.core.files import write_json
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.plan import Architecture, Configuration, IntensityStatistics, Plan
from medkd.core.run import NetworkSpec
from medkd.distillation import Distiller, build_method
from medkd.distillation.base import Context
from medkd.networks import build_network
from medkd.preprocessing.pipeline import preprocess_case
from medkd.preprocessing.store import CaseStore
from medkd.training.augmentation import Augmentation, read_size
from medkd.training.loader import PatchBatches
from medkd.training.losses import SegmentationLoss
from medkd.training.sampling import PatchSampler

_CASES = 8


def make_store(folder: Path, patch: tuple[int, ...], labels: LabelSpec) -> CaseStore:
    """A few cases of noise with one ellipsoid per class, a little larger than the patch."""
    configuration = Configuration(
        name="3d_fullres",
        spacing=(1.0,) * 3,
        median_shape=patch,
        normalization=("zscore",),
        use_mask_for_norm=(False,),
        batch_dice=False,
        architectures={},
    )
    plan = Plan(
        dataset="Dataset999_Bench",
        transpose=(0, 1, 2),
        intensities=(IntensityStatistics(mean=0, median=0, std=1, min=0, max=1, percentile_00_5=0, percentile_99_5=1),),
        configurations={"3d_fullres": configuration},
    )
    store, shape = CaseStore(folder), tuple(p + 8 for p in patch)
    for index in range(_CASES):
        rng = np.random.default_rng(index)
        label = np.zeros(shape, np.int16)
        grid = np.ogrid[tuple(slice(0, s) for s in shape)]
        for value in range(1, labels.num_outputs):
            centre = [rng.uniform(0.2, 0.8) * s for s in shape]
            distances = [((g - c) / (0.15 * s)) ** 2 for g, c, s in zip(grid, centre, shape, strict=True)]
            label[sum(distances) < 1] = value  # type: ignore[arg-type]
        image = (label + rng.normal(0, 1, shape))[None].astype(np.float32)
        prepared = preprocess_case(
            f"case_{index}", image, Geometry.from_spacing(shape, (1.0,) * 3), plan, configuration, label
        )
        store.write(f"case_{index}", prepared, labels, [], "bench")
    return store


def network_of(name: str, patch: tuple[int, ...], classes: int) -> torch.nn.Module:
    """A network; planned ones get the four stages that nnU-Net plans for small patches."""
    shape = Architecture(
        patch_size=patch,
        batch_size=2,
        features_per_stage=(32, 64, 128, 256),
        kernel_sizes=((3,) * 3,) * 4,
        strides=((1,) * 3, *((2,) * 3,) * 3),
        blocks_encoder=(2,) * 4,
        blocks_decoder=(2,) * 3,
    )
    planned = name.startswith(("plain", "resenc"))
    torch.manual_seed(0)
    return build_network(
        NetworkSpec(
            name=name,
            in_channels=1,
            num_outputs=classes,
            patch_size=patch,
            architecture=shape if planned else None,
            deep_supervision=planned,
        )
    )


def distiller_of(options: argparse.Namespace, network: torch.nn.Module) -> Distiller | None:
    """Teacher and method; None for a network alone."""
    if not options.teacher:
        return None
    patch = tuple(options.patch)
    teacher = network_of(options.teacher, patch, options.classes)
    context = Context(
        student_taps=network.taps,
        teacher_taps=teacher.taps,
        num_outputs=options.classes,
        regions=False,
        spacing=(1.0,) * 3,
        patch_size=patch,
    )  # type: ignore[arg-type]
    return Distiller(teacher, build_method(options.method, context))


class Steps:
    """Training steps, phase by phase.

    Args:
        options: of the command line.
        precision: ``fp32`` or ``bf16``.
        labels: of the synthetic data.
    """

    def __init__(self, options: argparse.Namespace, precision: str, labels: LabelSpec) -> None:
        self.labels = labels
        self.network = network_of(options.network, tuple(options.patch), options.classes).train()
        self.distiller = distiller_of(options, self.network)
        self.parameters = [*self.network.parameters()]
        if self.distiller:
            self.parameters += self.distiller.parameters()
        self.optimizer = torch.optim.SGD(self.parameters, 1e-3, 0.99, nesterov=True)
        self.loss = SegmentationLoss(regions=False, batch_dice=False)
        self.dtype = torch.bfloat16 if precision == "bf16" else None

    def autocast(self) -> torch.autocast:
        """The precision's context."""
        return torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype is not None)

    def prepare(self, batches: PatchBatches) -> None:
        """The first stage of the methods that have one; not measured."""
        if self.distiller:
            pairs = (batches[0], batches[1])
            self.distiller.prepare((images, Target(*self.labels.encode(raw))) for images, raw in pairs)

    def run(self, phases: Phases, images: torch.Tensor, raw: torch.Tensor, progress: Progress) -> None:
        """One step."""
        target, valid = self.labels.encode(raw)
        captured = self.distiller.student_capture(self.network) if self.distiller else nullcontext()
        with phases("forward"), self.autocast(), captured:
            logits = self.network(images)
        with phases("loss"):
            terms = self.loss(logits, target, valid)
        if self.distiller:
            with phases("distillation"), self.autocast():
                terms |= self.distiller.terms(images, logits, Target(target, valid, progress))
        with phases("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()
        with phases("update"):
            torch.nn.utils.clip_grad_norm_(self.parameters, 12.0)
            self.optimizer.step()


def measure(options: argparse.Namespace, precision: str) -> Phases:
    """Run the steps phase by phase; the first step of each phase warms up and is not counted."""
    patch, labels = tuple(options.patch), LabelSpec.from_names([f"class {i}" for i in range(1, options.classes)])
    steps = Steps(options, precision, labels)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), patch, labels)
        sampler, augment = PatchSampler(read_size(patch), patch), Augmentation(patch, (0, 1, 2))
        batches = PatchBatches(store.folder, store.cases(), sampler, options.batch, 10_000, 0, augment)
        steps.prepare(batches)
        phases = Phases()
        for step in range(options.steps + 1):
            if step == 1:
                phases = Phases()
            with phases("load+augment"):
                images, raw = batches[step]
            steps.run(phases, images, raw, Progress(step, options.steps + 1, step))
    return phases


def main() -> None:
    """Run the benchmark and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="plain_unet")
    parser.add_argument("--teacher", help="teacher network; without it the network is trained alone")
    parser.add_argument("--method", default="kd")
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    content: dict = {
        "settings": vars(options),
        "machine": machine("dynamic-network-architectures", "monai", "batchgeneratorsv2"),
    }
    for precision in ("fp32", "bf16"):
        phases = measure(options, precision)
        print(f"\n{precision}, {options.steps} steps\n{phases.table()}")
        content[precision] = phases.results()
    name = f"training_{options.network}" + (f"_{options.method}" if options.teacher else "")
    write_json(RESULTS / f"{name}.json", content)


if __name__ == "__main__":
    main()
