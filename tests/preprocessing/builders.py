"""Small plans and raw data sets for the preprocessing tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from medkd.core.geometry import Geometry
from medkd.core.plan import Architecture, Configuration, IntensityStatistics, Plan
from medkd.io.volumes import write_volume

STATISTICS = IntensityStatistics(
    mean=1.0, median=1.0, std=2.0, min=-5.0, max=9.0, percentile_00_5=-3.0, percentile_99_5=5.0
)


def make_configuration(
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0), scheme: str = "zscore", mask: bool = False, channels: int = 1
) -> Configuration:
    rank = len(spacing)
    unet = Architecture(
        patch_size=(16,) * rank,
        batch_size=2,
        features_per_stage=(8, 16),
        kernel_sizes=((3,) * rank,) * 2,
        strides=((1,) * rank, (2,) * rank),
        blocks_encoder=(2, 2),
        blocks_decoder=(2,),
    )
    name = "2d" if rank == 2 else "3d_fullres"
    return Configuration(
        name=name,
        spacing=spacing,
        median_shape=(16,) * rank,
        normalization=(scheme,) * channels,
        use_mask_for_norm=(mask,) * channels,
        batch_dice=False,
        architectures={"plain_unet": unet},
    )


def plan_of(configuration: Configuration, transpose: tuple[int, ...] = (0, 1, 2)) -> Plan:
    return Plan(
        dataset="Dataset001_Test",
        transpose=transpose,
        intensities=(STATISTICS,) * len(configuration.normalization),
        configurations={configuration.name: configuration},
    )


def make_raw(root: Path, cases: int = 4, shape: tuple[int, int, int] = (10, 14, 12)) -> Path:
    """A raw data set with two box-shaped structures below ``root/raw``."""
    folder = root / "raw" / "Dataset001_Test"
    rng = np.random.default_rng(0)
    geometry = Geometry.from_spacing(shape, (2.0, 1.0, 1.0))
    for i in range(cases):
        label = np.zeros(shape, dtype=np.uint8)
        label[2:6, 3:8, 3:8] = 1
        label[6:8, 5:11, 4:9] = 2
        image = (rng.normal(0, 1, shape) + 10 * label + 3).astype(np.float32)
        write_volume(folder / f"imagesTr/c{i}_0000.nii.gz", image, geometry)
        write_volume(folder / f"labelsTr/c{i}.nii.gz", label, geometry)
    labels = {"background": 0, "a": 1, "b": 2}
    description = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
