"""Many small 2D images, and a 2D U-Net as nnU-Net plans it for them, with random weights: as a run of medkd and a model
of nnU-Net. Times and memory are those of trained ones; label maps mean little.

    python -m benchmarks.many_images FOLDER --images 250
    python -m benchmarks.bench_against_nnunet FOLDER/nnunet FOLDER/scans --nnunet-python … --output …
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from medkd.core.checkpoint import save_checkpoint
from medkd.core.dataset import DatasetDescription
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.plan import Architecture, Configuration, IntensityStatistics, Plan
from medkd.core.run import DATASET_FILE, FINAL, PLANS_FILE, RUN_FILE, Budget, NetworkSpec, RunDescription
from medkd.core.serial import save
from medkd.exporting.export import export_model
from medkd.io.volumes import write_volume
from medkd.networks import build_network

SIDE = 500
FEATURES = (32, 64, 128, 256, 512, 512, 512, 512)


def main() -> None:
    """Write ``scans``, ``run`` and ``nnunet``."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--images", type=int, default=250)
    options = arguments.parse_args()
    scans = options.folder / "scans"
    scans.mkdir(parents=True, exist_ok=True)
    for number in range(options.images):
        noise = np.random.default_rng(number).normal(size=(1, SIDE, SIDE))
        image = sum(gaussian_filter(noise, (0, width, width)) * width for width in (2, 8, 24))
        grid = Geometry.from_spacing(image.shape, (1.0, 1.0, 1.0))
        write_volume(scans / f"image_{number:04d}_0000.nii.gz", (1000 * image).astype(np.int16), grid)
    write_run(options.folder / "run")
    export_model(options.folder / "run", options.folder / "nnunet", format="nnunet", overwrite=True)


def write_run(folder: Path) -> None:
    """A run folder with random weights."""
    stages = len(FEATURES)
    shape = Architecture(
        patch_size=(512, 512),
        batch_size=12,
        features_per_stage=FEATURES,
        kernel_sizes=((3, 3),) * stages,
        strides=((1, 1), *((2, 2),) * (stages - 1)),
        blocks_encoder=(2,) * stages,
        blocks_decoder=(2,) * (stages - 1),
    )
    configuration = Configuration(
        name="2d",
        spacing=(1.0, 1.0),
        median_shape=(SIDE, SIDE),
        normalization=("zscore",),
        use_mask_for_norm=(False,),
        batch_dice=True,
        architectures={"plain_unet": shape},
    )
    statistics = IntensityStatistics(mean=0, median=0, std=1, min=-9, max=9, percentile_00_5=-3, percentile_99_5=3)
    plan = Plan(
        dataset="Dataset902_Images",
        transpose=(0, 1, 2),
        intensities=(statistics,),
        configurations={"2d": configuration},
    )
    labels = LabelSpec.from_names(["vessel", "lesion"])
    spec = NetworkSpec(
        name="plain_unet",
        in_channels=1,
        num_outputs=labels.num_outputs,
        patch_size=shape.patch_size,
        architecture=shape,
    )
    save(folder / PLANS_FILE, plan)
    DatasetDescription(channel_names=("image",), labels=labels, num_training=0).save(folder / DATASET_FILE)
    run = RunDescription(
        dataset=plan.dataset, configuration="2d", network=spec, budget=Budget(1, 1, 1, 0.01, 0), mirror_axes=(0, 1)
    )
    save(folder / RUN_FILE, run)
    torch.manual_seed(0)
    save_checkpoint(folder / "fold_0" / FINAL, {"network": build_network(spec).state_dict()})


if __name__ == "__main__":
    main()
