"""A synthetic CT with 14 structures, and two models with random weights for it: a teacher on a fine grid, and a student
on a coarse one. Their times and memory are those of trained ones; their label maps mean nothing.

    python -m benchmarks.big_ct FOLDER --shape 300 512 512
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from medkd.core.checkpoint import save_checkpoint
from medkd.core.dataset import DatasetDescription
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.plan import Architecture, Configuration, IntensityStatistics, Plan
from medkd.core.run import DATASET_FILE, FINAL, PLANS_FILE, RUN_FILE, Budget, NetworkSpec, RunDescription
from medkd.core.serial import save
from medkd.io.volumes import write_volume
from medkd.networks import build_network

STRUCTURES = 14
SPACING = (1.0, 0.8, 0.8)  # mm, of the scan
CT = IntensityStatistics(
    mean=80.0, median=75.0, std=140.0, min=-1024.0, max=3000.0, percentile_00_5=-950.0, percentile_99_5=320.0
)


def main() -> None:
    """Write ``scans``, ``teacher`` and ``student``."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--shape", type=int, nargs=3, default=(300, 512, 512))
    options = arguments.parse_args()
    shape = tuple(options.shape)
    (options.folder / "scans").mkdir(parents=True, exist_ok=True)
    write_volume(options.folder / "scans" / "ct_0000.nii.gz", body(shape), Geometry.from_spacing(shape, SPACING))
    teacher = architecture((96, 160, 160), (32, 64, 128, 256, 320))
    write_run(options.folder / "teacher", "plain_unet", 1.5, teacher)
    write_run(options.folder / "student", "unet_tiny", 3.0, architecture((96, 128, 128), (32, 64, 128, 256, 320)))


def body(shape: tuple[int, ...]) -> np.ndarray:
    """Air, a body, and an ellipsoid per structure, with noise, in Hounsfield units."""
    noise = np.random.default_rng(0)
    axes = [np.linspace(-1, 1, side, dtype=np.float32) for side in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = (x / 0.8) ** 2 + (y / 0.6) ** 2 + 0 * z < 1
    scan = np.where(inside, 40, -1000).astype(np.int16)
    for structure in range(STRUCTURES):
        centre = noise.uniform(-0.4, 0.4, 3)
        radii = noise.uniform(0.08, 0.2, 3)
        distance = ((z - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2
        scan[distance + ((x - centre[2]) / radii[2]) ** 2 < 1] = 80 + 15 * structure
    return scan + noise.integers(-25, 25, shape, dtype=np.int16)


def architecture(patch: tuple[int, ...], features: tuple[int, ...]) -> Architecture:
    """A planned U-Net with isotropic strides."""
    stages = len(features)
    return Architecture(
        patch_size=patch,
        batch_size=2,
        features_per_stage=features,
        kernel_sizes=((3, 3, 3),) * stages,
        strides=((1, 1, 1), *((2, 2, 2),) * (stages - 1)),
        blocks_encoder=(2,) * stages,
        blocks_decoder=(2,) * (stages - 1),
    )


def write_run(folder: Path, network: str, spacing: float, shape: Architecture) -> None:
    """A run folder with random weights."""
    configuration = Configuration(
        name="3d_fullres",
        spacing=(spacing,) * 3,
        median_shape=tuple(int(side) for side in np.array([300, 410, 410]) / spacing),
        normalization=("ct",),
        use_mask_for_norm=(False,),
        batch_dice=False,
        architectures={"plain_unet": shape, network: shape},
    )
    plan = Plan(
        dataset="Dataset900_CT",
        transpose=(0, 1, 2),
        intensities=(CT,),
        configurations={"3d_fullres": configuration},
    )
    labels = LabelSpec.from_names([f"structure_{number}" for number in range(1, STRUCTURES + 1)])
    spec = NetworkSpec(
        name=network,
        in_channels=1,
        num_outputs=labels.num_outputs,
        patch_size=shape.patch_size,
        architecture=shape,
    )
    save(folder / PLANS_FILE, plan)
    DatasetDescription(channel_names=("CT",), labels=labels, num_training=0).save(folder / DATASET_FILE)
    described = RunDescription(
        dataset=plan.dataset,
        configuration="3d_fullres",
        network=spec,
        budget=Budget(1, 1, 1, 0.01, 0),
        mirror_axes=(0, 1, 2),
    )
    save(folder / RUN_FILE, described)
    torch.manual_seed(0)
    save_checkpoint(folder / "fold_0" / FINAL, {"network": build_network(spec).state_dict()})


if __name__ == "__main__":
    main()
