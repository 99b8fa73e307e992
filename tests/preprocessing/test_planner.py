from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import PlanError
from medkd.core.labels import LabelSpec
from medkd.core.plan import IntensityStatistics, Plan
from medkd.preprocessing.fingerprint import Fingerprint
from medkd.preprocessing.planner import make_plan, target_spacing

from .builders import STATISTICS

# name: spacings, shapes after the crop, cases, foreground labels, median relative size after the crop
DATASETS: dict[str, tuple[list, list, int, int, float]] = {
    "cardiac": ([(10, 1.5625, 1.5625)] * 6 + [(5, 1.4, 1.4)] * 2, [(9, 256, 216)] * 8, 200, 3, 0.99),
    "brain": ([(1, 1, 1)] * 3, [(140, 171, 137)] * 3, 484, 3, 0.4),
    "abdomen": (
        [(1, 0.77, 0.77), (0.8, 0.7, 0.7), (2.5, 0.8, 0.8)],
        [(432, 512, 512), (500, 512, 512), (120, 512, 512)],
        131,
        2,
        1.0,
    ),
    "sagittal": ([(0.5, 0.5, 3.0), (0.6, 0.6, 3.0), (0.5, 0.5, 4.0)], [(300, 320, 40)] * 3, 30, 1, 1.0),
}

# What nnU-Net 2.8.1's own planners plan for them: spacing, patch, batch, whole stride
NNUNET = [
    ("cardiac", "plain_unet", "2d", (1.5625, 1.5625), (256, 224), 56, (32, 32)),
    ("cardiac", "plain_unet", "3d_fullres", (5.0, 1.5625, 1.5625), (20, 256, 224), 4, (4, 32, 32)),
    ("cardiac", "resenc_unet_m", "2d", (1.5625, 1.5625), (256, 224), 57, (32, 32)),
    ("cardiac", "resenc_unet_m", "3d_fullres", (5.0, 1.5625, 1.5625), (20, 256, 224), 3, (4, 32, 32)),
    ("cardiac", "resenc_unet_l", "2d", (1.5625, 1.5625), (256, 224), 161, (32, 32)),
    ("cardiac", "resenc_unet_xl", "3d_fullres", (5.0, 1.5625, 1.5625), (20, 256, 224), 17, (4, 32, 32)),
    ("brain", "plain_unet", "2d", (1.0, 1.0), (192, 160), 105, (32, 32)),
    ("brain", "plain_unet", "3d_fullres", (1.0, 1.0, 1.0), (128, 128, 128), 2, (32, 32, 32)),
    ("brain", "resenc_unet_m", "3d_fullres", (1.0, 1.0, 1.0), (128, 128, 128), 2, (32, 32, 32)),
    ("brain", "resenc_unet_l", "3d_fullres", (1.0, 1.0, 1.0), (160, 192, 160), 3, (32, 32, 32)),
    ("brain", "resenc_unet_xl", "2d", (1.0, 1.0), (192, 160), 444, (32, 32)),
    ("abdomen", "plain_unet", "2d", (0.77, 0.77), (512, 512), 12, (128, 128)),
    ("abdomen", "plain_unet", "3d_lowres", (2.2879, 1.7617, 1.7617), (112, 160, 128), 2, (16, 32, 32)),
    ("abdomen", "plain_unet", "3d_fullres", (1.0, 0.77, 0.77), (112, 160, 128), 2, (16, 32, 32)),
    ("abdomen", "resenc_unet_l", "3d_fullres", (1.0, 0.77, 0.77), (160, 224, 192), 2, (32, 32, 32)),
    ("abdomen", "resenc_unet_xl", "2d", (0.77, 0.77), (512, 512), 52, (128, 128)),
    ("abdomen", "resenc_unet_xl", "3d_fullres", (1.0, 0.77, 0.77), (192, 256, 256), 2, (32, 64, 64)),
    ("sagittal", "plain_unet", "2d", (0.5, 0.5), (320, 320), 32, (64, 64)),
    ("sagittal", "plain_unet", "3d_fullres", (3.0, 0.5, 0.5), (32, 224, 256), 2, (8, 32, 32)),
    ("sagittal", "resenc_unet_m", "3d_fullres", (3.0, 0.5, 0.5), (28, 224, 224), 2, (4, 32, 32)),
    ("sagittal", "resenc_unet_xl", "3d_fullres", (3.0, 0.5, 0.5), (40, 320, 320), 4, (8, 64, 64)),
]


def fingerprint_of(spacings: list, shapes: list, relative: float = 1.0) -> Fingerprint:
    cases = tuple(str(i) for i in range(len(shapes)))
    return Fingerprint(
        cases=cases,
        spacings=tuple(tuple(map(float, s)) for s in spacings),
        shapes_after_crop=tuple(map(tuple, shapes)),
        intensities=(STATISTICS,),
        median_relative_size_after_crop=relative,
    )


def description_of(cases: int, labels: int, channel: str = "MR", **extra: Any) -> DatasetDescription:
    return DatasetDescription(
        channel_names=(channel,),
        labels=LabelSpec.from_names([f"l{i}" for i in range(labels)]),
        num_training=cases,
        extra=extra,
    )


def plan_for(name: str, **options: Any) -> Plan:
    spacings, shapes, cases, labels, relative = DATASETS[name]
    return make_plan(
        "Dataset001_X", fingerprint_of(spacings, shapes, relative), description_of(cases, labels), **options
    )


@pytest.mark.parametrize(("name", "network", "configuration", "spacing", "patch", "batch", "stride"), NNUNET)
def test_plans_equal_those_of_nnunet(
    name: str, network: str, configuration: str, spacing: tuple, patch: tuple, batch: int, stride: tuple
) -> None:
    planned = plan_for(name).configuration(configuration)
    shape = planned.architectures[network]
    assert tuple(round(v, 4) for v in planned.spacing) == spacing
    assert (shape.patch_size, shape.batch_size) == (patch, batch)
    assert tuple(prod(s[axis] for s in shape.strides) for axis in range(len(patch))) == stride


def test_in_2d_the_plain_batch_shrinks_before_the_patch_and_the_residual_patch_before_the_batch() -> None:
    """Just above the references; nnU-Net 2.8.1 plans a plain (512, 512) with batch 12 here, its version 2.2 (448, 512)
    with 14.
    """
    shapes, labels = [(160, 496, 497)], 14
    planned = make_plan(
        "Dataset001_X", fingerprint_of([(2.5, 0.82, 0.82)], shapes), description_of(3918, labels)
    ).configurations["2d"]
    plain, residual = planned.architectures["plain_unet"], planned.architectures["resenc_unet_m"]
    assert (plain.patch_size, plain.batch_size) == ((512, 512), 12)
    assert prod(residual.patch_size) <= prod(plain.patch_size) and residual.batch_size >= 12


def test_low_resolution_only_where_patches_see_little() -> None:
    assert [name for name in DATASETS if "3d_lowres" in plan_for(name).configurations] == ["abdomen"]
    for name in DATASETS:
        configurations = plan_for(name).configurations
        assert configurations["2d"].batch_dice
        assert configurations["3d_fullres"].batch_dice == ("3d_lowres" in configurations)
    assert not plan_for("abdomen").configurations["3d_lowres"].batch_dice


def test_the_coarsest_axis_comes_first() -> None:
    plan = plan_for("sagittal")
    assert plan.transpose == (2, 0, 1)
    assert plan.configurations["2d"].median_shape == (300, 320)


def test_a_coarse_axis_with_few_slices_takes_the_tenth_percentile() -> None:
    assert target_spacing(fingerprint_of([(10, 1, 1)] * 9 + [(4, 1, 1)] * 2, [(9, 200, 200)] * 11)) == (4.0, 1.0, 1.0)
    assert target_spacing(fingerprint_of([(10, 1, 1)] * 9 + [(4, 1, 1)] * 2, [(100, 200, 200)] * 11)) == (
        10.0,
        1.0,
        1.0,
    )
    assert target_spacing(fingerprint_of([(10, 1, 1)] * 4 + [(0.5, 1, 1)] * 2, [(9, 200, 200)] * 6)) == pytest.approx(
        (1.00001, 1, 1)
    )


def test_single_slices_get_2d_only() -> None:
    plan = make_plan("Dataset001_X", fingerprint_of([(1, 1, 1)] * 4, [(1, 300, 200)] * 4), description_of(4, 1))
    assert list(plan.configurations) == ["2d"]
    with pytest.raises(PlanError, match="no use for the configuration '3d_fullres'"):
        make_plan(
            "Dataset001_X",
            fingerprint_of([(1, 1, 1)], [(1, 300, 200)]),
            description_of(1, 1),
            configurations=["3d_fullres"],
        )


def test_masked_zscore_when_the_crop_removes_much() -> None:
    assert plan_for("brain").configurations["3d_fullres"].use_mask_for_norm == (True,)
    assert plan_for("abdomen").configurations["3d_fullres"].use_mask_for_norm == (False,)
    spacings, shapes, *_ = DATASETS["brain"]
    ct = make_plan("Dataset001_X", fingerprint_of(spacings, shapes, 0.4), description_of(3, 1, "CT")).configurations[
        "2d"
    ]
    assert (ct.normalization, ct.use_mask_for_norm) == (("ct",), (False,))
    wanted = make_plan(
        "Dataset001_X", fingerprint_of(spacings, shapes), description_of(3, 1, use_mask_for_norm=True)
    ).configurations["2d"]
    assert wanted.use_mask_for_norm == (True,)


def test_less_memory_gives_smaller_patches() -> None:
    small, usual = (plan_for("abdomen", gpu_memory_gb=gb).configurations["3d_fullres"] for gb in (4, None))
    for network in usual.architectures:
        assert prod(small.architectures[network].patch_size) < prod(usual.architectures[network].patch_size)


def test_only_the_wanted_configurations() -> None:
    assert list(plan_for("brain", configurations=["3d_fullres"]).configurations) == ["3d_fullres"]
    with pytest.raises(PlanError, match="Did you mean '3d_fullres'"):
        plan_for("brain", configurations=["3d_fulres"])


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    from medkd.core.serial import save

    plan = plan_for("abdomen")
    save(tmp_path / "plans.json", plan)
    assert Plan.load(tmp_path / "plans.json") == plan


def nnunet_fingerprint(path: Path) -> Fingerprint:
    data = json.loads(path.read_text())
    statistics = tuple(IntensityStatistics(**v) for v in data["foreground_intensity_properties_per_channel"].values())
    shapes = tuple(map(tuple, data["shapes_after_crop"]))
    spacings = tuple(map(tuple, data["spacings"]))
    relative = data["median_relative_size_after_cropping"]
    return Fingerprint(
        cases=tuple(str(i) for i in range(len(shapes))),
        spacings=spacings,
        shapes_after_crop=shapes,
        intensities=statistics,
        median_relative_size_after_crop=relative,
    )


def plan_both(folder: Path) -> tuple[Plan, dict[str, Any]]:
    description = DatasetDescription.load(folder / "dataset.json")
    plan = make_plan("Dataset001_X", nnunet_fingerprint(folder / "dataset_fingerprint.json"), description)
    return plan, json.loads((folder / "plans.json").read_text())["configurations"]


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["2d", "3d_fullres"])
def test_the_hippocampus_plan_equals_nnunets(real_data: Path, name: str) -> None:
    """Its 3D batch size was set to 2 by hand afterwards, so that it is compared in 2D only."""
    plan, reference = plan_both(real_data / "nnunet_model" / "model")
    found, expected = plan.configuration(name), reference[name]
    unet, shape = expected["architecture"]["arch_kwargs"], found.architectures["plain_unet"]
    assert list(found.spacing) == expected["spacing"]
    assert list(found.median_shape) == expected["median_image_size_in_voxels"]
    assert list(shape.patch_size) == expected["patch_size"]
    assert shape.batch_size == (expected["batch_size"] if name == "2d" else 7)
    assert np.array_equal(shape.strides, unet["strides"]) and np.array_equal(shape.kernel_sizes, unet["kernel_sizes"])
    assert list(shape.features_per_stage) == unet["features_per_stage"]
    assert (
        list(shape.blocks_encoder) == unet["n_conv_per_stage"]
        and list(shape.blocks_decoder) == unet["n_conv_per_stage_decoder"]
    )


@pytest.mark.real_data
def test_the_flare_plan_equals_nnunets_where_it_was_not_edited(real_data: Path) -> None:
    """3918 CT scans, planned by nnU-Net 2.2.

    The low resolution agrees in everything. The full resolution was edited by hand (its spacing is not the median that
    its own file states, with the median shape of the unedited one), but strides and kernels agree. In 2D that version
    shrank the patch to keep a batch of 12; later ones let the batch shrink first.
    """
    plan, reference = plan_both(real_data / "nnunet_model_description")
    low, expected = plan.configuration("3d_lowres"), reference["3d_lowres"]
    shape = low.architectures["plain_unet"]
    assert list(low.spacing) == pytest.approx(expected["spacing"], abs=1e-12)
    assert list(low.median_shape) == expected["median_image_size_in_voxels"]
    assert (list(shape.patch_size), shape.batch_size) == (expected["patch_size"], expected["batch_size"])
    for name in ("3d_lowres", "3d_fullres"):
        shape, expected = plan.configuration(name).architectures["plain_unet"], reference[name]
        assert np.array_equal(shape.strides, expected["pool_op_kernel_sizes"])
        assert np.array_equal(shape.kernel_sizes, expected["conv_kernel_sizes"])
        assert plan.configuration(name).batch_dice == expected["batch_dice"]
    assert list(plan.configuration("2d").spacing) == reference["2d"]["spacing"]
