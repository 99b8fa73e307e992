"""nnU-Net's plans, current and old, as medkd plans."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from medkd.core.errors import PlanError
from medkd.models.nnunet.plans import load_plans, network_of, plan_from_nnunet
from medkd.networks import NETWORKS

pytestmark = pytest.mark.real_data


@pytest.fixture
def current(real_data: Path) -> dict[str, Any]:
    return json.loads((real_data / "nnunet_model" / "model" / "plans.json").read_text())


@pytest.fixture
def old(real_data: Path) -> dict[str, Any]:
    return json.loads((real_data / "nnunet_model_description" / "plans.json").read_text())


def test_current_plans_are_understood(current: dict[str, Any]) -> None:
    plan = plan_from_nnunet(current, "3d_fullres", "plans.json")
    configuration = plan.configuration("3d_fullres")
    assert configuration.normalization == ("zscore",) and configuration.spacing == (1.0, 1.0, 1.0)
    architecture = configuration.architecture("plain_unet")
    assert architecture.patch_size == (40, 56, 40) and architecture.features_per_stage == (32, 64, 128, 256)
    assert plan.intensities[0].percentile_00_5 == 28.0 and plan.origin == "nnunet:nnUNetPlans"
    assert network_of(current, "3d_fullres", "plans.json") == ("plain_unet", False)


def test_old_plans_are_understood(old: dict[str, Any]) -> None:
    architecture = (
        plan_from_nnunet(old, "3d_fullres", "plans.json").configuration("3d_fullres").architecture("plain_unet")
    )
    assert architecture.features_per_stage == (32, 64, 128, 256, 320, 320)
    assert architecture.kernel_sizes[0] == (1, 3, 3) and architecture.strides[1] == (1, 2, 2)
    assert architecture.blocks_encoder == (2,) * 6 and architecture.blocks_decoder == (2,) * 5
    assert network_of(old, "2d", "plans.json") == ("plain_unet", False)


def test_inherited_keys_are_filled_in(current: dict[str, Any]) -> None:
    current["configurations"]["own"] = {"inherits_from": "3d_fullres", "batch_size": 7}
    found = plan_from_nnunet(current, "own", "plans.json").configuration("own").architecture("plain_unet")
    assert found.batch_size == 7 and found.patch_size == (40, 56, 40)
    current["configurations"]["own"]["inherits_from"] = "own"
    with pytest.raises(PlanError, match="inherits from itself"):
        plan_from_nnunet(current, "own", "plans.json")


def residual(plans: dict[str, Any]) -> None:
    """Turn the plan of a plain U-Net into that of a residual encoder."""
    shape = plans["configurations"]["3d_fullres"]["architecture"]
    shape["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    shape["arch_kwargs"]["n_blocks_per_stage"] = [1, 3, 4, 6]
    del shape["arch_kwargs"]["n_conv_per_stage"]
    shape["arch_kwargs"]["n_conv_per_stage_decoder"] = [1, 1, 1]


def test_a_residual_encoder_is_understood(current: dict[str, Any]) -> None:
    residual(current)
    name, _ = network_of(current, "3d_fullres", "plans.json")
    found = plan_from_nnunet(current, "3d_fullres", "plans.json").configuration("3d_fullres").architecture(name)
    assert name == "resenc_unet_l" and found.blocks_encoder == (1, 3, 4, 6) and found.blocks_decoder == (1, 1, 1)


def test_a_residual_encoder_of_every_size_can_be_its_student(current: dict[str, Any]) -> None:
    residual(current)
    architectures = plan_from_nnunet(current, "3d_fullres", "plans.json").configuration("3d_fullres").architectures
    sizes = {name for name in NETWORKS if name.startswith("resenc_unet_")}
    assert len(sizes) > 1 and set(architectures) == {"plain_unet", *sizes}
    assert all(architectures[size].blocks_encoder == (1, 3, 4, 6) for size in sizes)
    assert architectures["plain_unet"].blocks_encoder == (2, 2, 2, 2)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("architecture", "network_class_name"), "os.system", "'os.system' is not supported"),
        (("architecture", "arch_kwargs", "nonlin"), "torch.nn.ReLU", "nonlin"),
        (("architecture", "arch_kwargs", "conv_bias"), False, "conv_bias"),
        (("architecture", "arch_kwargs", "nonlin_first"), True, "nonlin_first"),
        (("architecture", "arch_kwargs", "pool"), "max", "pool"),
        (("preprocessor_name",), "MyPreprocessor", "MyPreprocessor"),
        (("normalization_schemes",), ["MyNorm"], "MyNorm"),
        (("resampling_fn_data",), "no_resampling", "no_resampling"),
        (("previous_stage",), "3d_lowres", "cascade"),
    ],
)
def test_what_medkd_cannot_reproduce_is_refused_by_name(
    current: dict[str, Any], path: tuple[str, ...], value: object, text: str
) -> None:
    plans = copy.deepcopy(current)
    place = plans["configurations"]["3d_fullres"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(PlanError, match=text):
        network_of(plans, "3d_fullres", "plans.json")
        plan_from_nnunet(plans, "3d_fullres", "plans.json")


def test_a_missing_key_names_the_file(current: dict[str, Any]) -> None:
    del current["transpose_forward"]
    with pytest.raises(PlanError, match=r"plans\.json: the key 'transpose_forward'"):
        plan_from_nnunet(current, "3d_fullres", "plans.json")


@pytest.mark.parametrize("reader", ["WSIReader", "OwnReader"])
def test_readers_of_other_formats_are_refused(current: dict[str, Any], reader: str) -> None:
    with pytest.raises(
        PlanError, match=rf"plans\.json: the model was trained on scans as nnU-Net's {reader} reads them"
    ):
        plan_from_nnunet({**current, "image_reader_writer": reader}, "3d_fullres", "plans.json")


@pytest.mark.parametrize("reader", ["", None, "SimpleITKIO", "NibabelIO", "NaturalImage2DIO", "Tiff3DIO"])
def test_readers_that_take_scans_as_they_are_stored_are_accepted(current: dict[str, Any], reader: str | None) -> None:
    plan = plan_from_nnunet({**current, "image_reader_writer": reader}, "3d_fullres", "plans.json")
    assert plan == plan_from_nnunet(current, "3d_fullres", "plans.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("architecture", "arch_kwargs", "strides"), None),
        (("architecture", "arch_kwargs", "strides"), [[1, 1, 1], [2, 2, 2]]),
        (("architecture", "arch_kwargs", "features_per_stage"), [32, 64]),
        (("architecture", "arch_kwargs"), ["n_stages"]),
        (("architecture",), "PlainConvUNet"),
        (("spacing",), None),
        (("batch_size",), "two"),
    ],
)
def test_values_of_another_form_name_the_file(current: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    place = current["configurations"]["3d_fullres"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(PlanError, match=r"plans\.json: a value has another form than nnU-Net writes"):
        plan_from_nnunet(current, "3d_fullres", "plans.json")


def test_a_file_that_holds_no_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "plans.json").write_text("[1]")
    with pytest.raises(PlanError, match=r"plans\.json: expected an object, found list"):
        load_plans(tmp_path / "plans.json")
