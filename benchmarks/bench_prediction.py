"""Where the time and the peak memory of a prediction go: load, preprocess, tiles, export, write.

    python -m benchmarks.bench_prediction                         a synthetic CT-like volume, a small planned U-Net
    python -m benchmarks.bench_prediction --run RUN --data SCANS  a trained run on real scans

Writes benchmarks/results/prediction.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import RESULTS, Phases, machine
from medkd.core.files import write_json
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.plan import Architecture, Configuration, IntensityStatistics, Plan
from medkd.core.run import NetworkSpec
from medkd.inference.export import logits_to_labels
from medkd.inference.inputs import find_cases
from medkd.inference.predictor import Predictor, Settings
from medkd.io.volumes import read_image, write_volume
from medkd.networks import build_network
from medkd.preprocessing.pipeline import preprocess_case


def small_predictor(classes: int, patch: int, spacing: float, mirror: bool) -> Predictor:
    """A planned U-Net of four stages (8 to 64 channels) with random weights."""
    shape = Architecture(
        patch_size=(patch,) * 3,
        batch_size=2,
        features_per_stage=(8, 16, 32, 64),
        kernel_sizes=((3,) * 3,) * 4,
        strides=((1,) * 3, *((2,) * 3,) * 3),
        blocks_encoder=(2,) * 4,
        blocks_decoder=(2,) * 3,
    )
    configuration = Configuration(
        name="3d_fullres",
        spacing=(spacing,) * 3,
        median_shape=(patch,) * 3,
        normalization=("ct",),
        use_mask_for_norm=(False,),
        batch_dice=False,
        architectures={"plain_unet": shape},
    )
    plan = Plan(
        dataset="Dataset999_Bench",
        transpose=(0, 1, 2),
        intensities=(
            IntensityStatistics(
                mean=60, median=60, std=80, min=-200, max=400, percentile_00_5=-150, percentile_99_5=300
            ),
        ),
        configurations={"3d_fullres": configuration},
    )
    labels = LabelSpec.from_names([f"organ {i}" for i in range(1, classes)])
    network = build_network(
        NetworkSpec(name="plain_unet", in_channels=1, num_outputs=classes, patch_size=(patch,) * 3, architecture=shape)
    ).eval()
    return Predictor(
        [network], plan, configuration, labels, (patch,) * 3, mirror_axes=(0, 1, 2), settings=Settings(mirror=mirror)
    )


def synthetic_scan(folder: Path, size: int) -> None:
    """A body of tissue in air, in HU, with 0.8 x 0.8 x 1.6 mm voxels."""
    z, y, x = np.ogrid[-1 : 1 : (size // 2) * 1j, -1 : 1 : size * 1j, -1 : 1 : size * 1j]  # type: ignore[misc]
    body = (x / 0.8) ** 2 + (y / 0.6) ** 2 + 0 * z < 1
    noise = np.random.default_rng(0).normal(0, 20, body.shape)
    image = np.where(body, 50 + noise, -1000).astype(np.float32)
    write_volume(folder / "case_0000.nii.gz", image, Geometry.from_spacing(image.shape, (1.6, 0.8, 0.8)))


def measure(predictor: Predictor, data: Path, output: Path) -> Phases:
    """Predict every case of ``data`` phase by phase, without overlap."""
    phases = Phases()
    for case in find_cases(data, len(predictor.configuration.normalization)):
        with phases("load"):
            image, geometry = read_image(case.images, case.case)
        with phases("preprocess"):
            prepared = preprocess_case(
                case.case, image, geometry, predictor.plan, predictor.configuration, overwrite=True
            )
        with phases("tiles"):
            logits = predictor.predict_preprocessed(prepared.image)
        with phases("export"):
            labels = logits_to_labels(
                logits, prepared.properties, predictor.plan, predictor.configuration, predictor.labels
            )
        with phases("write"):
            write_volume(output / f"{case.case}.nii.gz", labels, geometry)
    return phases


def forwards(predictor: Predictor) -> dict[str, float]:
    """Seconds per tile of the network alone, by batch size, memory format and precision."""
    network, found = predictor.networks[0], {}

    def best(run: Callable[[], Any]) -> float:
        run()
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        return min(times)

    channels = len(predictor.configuration.normalization)
    with torch.inference_mode():
        for batch in (1, 2, 4):
            x = torch.randn(batch, channels, *predictor.patch_size)
            found[f"batch {batch}"] = best(lambda x=x: network(x)) / batch  # type: ignore[misc]
        x = torch.randn(1, channels, *predictor.patch_size)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found["bf16"] = best(lambda: network(x))
        layout = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
        network.to(memory_format=layout)
        found["channels last"] = best(lambda: network(x.to(memory_format=layout)))
        network.to(memory_format=torch.contiguous_format)
    return found


def main() -> None:
    """Run the benchmark and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run folder; default: a small random U-Net")
    parser.add_argument("--data", type=Path, help="folder of scans; default: one synthetic volume")
    parser.add_argument("--size", type=int, default=256, help="in-plane voxels of the synthetic volume")
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument(
        "--spacing", type=float, default=1.6, help="network's voxel size in mm for the synthetic volume"
    )
    parser.add_argument("--tta", action=argparse.BooleanOptionalAction, default=False)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictor = (
            Predictor.from_run(options.run, mirror=options.tta)
            if options.run
            else small_predictor(options.classes, options.patch, options.spacing, options.tta)
        )
        if not options.data:
            synthetic_scan(folder / "in", options.size)
        phases = measure(predictor, options.data or folder / "in", folder / "out")
    print(phases.table())
    tiles = forwards(predictor) if predictor.device.type == "cpu" else {}
    print("\n".join(f"forward, {n:13s} {s:8.4f} s per tile" for n, s in tiles.items()))
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    content = {"machine": machine("monai"), "settings": settings, **phases.results(), "seconds_per_tile": tiles}
    write_json(RESULTS / "prediction.json", content)


if __name__ == "__main__":
    main()
