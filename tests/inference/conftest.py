"""A tiny run folder with two trained folds, and scans to predict with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
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

LABELS = LabelSpec.from_names(["liver", "spleen"])


def tiny_plan(rank: int = 3, spacing: float = 1.0) -> Plan:
    """A plan with one small planned U-Net of the given rank."""
    shape = Architecture(
        patch_size=(16,) * rank,
        batch_size=1,
        features_per_stage=(4, 8),
        kernel_sizes=((3,) * rank,) * 2,
        strides=((1,) * rank, (2,) * rank),
        blocks_encoder=(1, 1),
        blocks_decoder=(1,),
    )
    name = "2d" if rank == 2 else "3d_fullres"
    configuration = Configuration(
        name=name,
        spacing=(spacing,) * rank,
        median_shape=(16,) * rank,
        normalization=("zscore",),
        use_mask_for_norm=(False,),
        batch_dice=False,
        architectures={"plain_unet": shape},
    )
    return Plan(
        dataset="Dataset001_Tiny",
        transpose=(0, 1, 2),
        intensities=(
            IntensityStatistics(mean=0, median=0, std=1, min=-3, max=3, percentile_00_5=-3, percentile_99_5=3),
        ),
        configurations={name: configuration},
    )


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Make a run folder: ``make_run(rank=3, folds=2)``."""

    def make(rank: int = 3, folds: int = 2, spacing: float = 1.0) -> Path:
        folder = tmp_path / "results" / "Dataset001_Tiny" / f"plain_unet__{rank}d"
        plan = tiny_plan(rank, spacing)
        name, configuration = next(iter(plan.configurations.items()))
        spec = NetworkSpec(
            name="plain_unet",
            in_channels=1,
            num_outputs=LABELS.num_outputs,
            patch_size=(16,) * rank,
            architecture=configuration.architectures["plain_unet"],
        )
        save(folder / PLANS_FILE, plan)
        DatasetDescription(channel_names=("MRI",), labels=LABELS, num_training=0).save(folder / DATASET_FILE)
        save(
            folder / RUN_FILE,
            RunDescription(
                dataset=plan.dataset,
                configuration=name,
                network=spec,
                budget=Budget(1, 1, 1, 0.01, 0),
                mirror_axes=tuple(range(rank)),
            ),
        )
        for fold in range(folds):
            torch.manual_seed(fold)
            save_checkpoint(folder / f"fold_{fold}" / FINAL, {"network": build_network(spec).state_dict()})
        return folder

    return make


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with three scans of different shapes and orientations."""
    generator = np.random.default_rng(0)
    turn = np.array([[0.96, -0.28, 0, 5], [0.28, 0.96, 0, -7], [0, 0, -2.0, 3], [0, 0, 0, 1.0]])
    for i, shape in enumerate([(12, 20, 18), (17, 9, 21), (5, 16, 16)]):
        geometry = Geometry.from_affine(shape, turn * ([1 + i, 1, 1, 1]))
        write_volume(
            tmp_path / "scans" / f"case_{i}_0000.nii.gz", generator.normal(100, 20, shape).astype(np.float32), geometry
        )
    return tmp_path / "scans"
