"""nnU-Net v2's ``plans.json``, current and before version 2.4, as a medkd plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkd.core.errors import PlanError
from medkd.core.files import read_json
from medkd.core.plan import Architecture, Configuration, IntensityStatistics, Plan, Resampling
from medkd.models.limits import MOST_STAGES
from medkd.preprocessing.wishes import READERS

NETWORK_CLASSES = {"PlainConvUNet": "plain_unet", "ResidualEncoderUNet": "resenc_unet_l"}
# networks of one class, whose shape is the plan's alone: one architecture serves them all
_SIZES = {"resenc_unet_l": ("resenc_unet_m", "resenc_unet_l", "resenc_unet_xl")}
NORMALIZATIONS = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_0_1",
    "RGBTo01Normalization": "rgb_0_1",
}
# what medkd's planned networks are made of; another value would change the network without changing its weights' names
_EXPECTED = {
    "conv_op": ("Conv2d", "Conv3d"),
    "norm_op": ("InstanceNorm2d", "InstanceNorm3d", "BatchNorm2d", "BatchNorm3d"),
    "nonlin": ("LeakyReLU",),
    "conv_bias": (True,),
    "dropout_op": (None,),
    "norm_op_kwargs": ({"eps": 1e-5, "affine": True},),
    "nonlin_kwargs": ({"inplace": True}, {}),
    "nonlin_first": (False,),
    "pool": ("conv",),
}
_SPLINE, _TORCH = "resample_data_or_seg_to_shape", "resample_torch_fornnunet"


def load_plans(path: Path) -> dict[str, Any]:
    """Read a ``plans.json``.

    Raises:
        DataError: the file is missing or not JSON.
        PlanError: it holds no object.
    """
    plans = read_json(path)
    if not isinstance(plans, dict):
        raise PlanError(
            f"{path}: expected an object, found {type(plans).__name__}; is this the plans.json of an nnU-Net v2 model?"
        )
    return plans


def plan_from_nnunet(plans: Mapping[str, Any], configuration: str, where: str, *, cascade: bool = False) -> Plan:
    """A medkd plan with one configuration of an nnU-Net plan.

    Args:
        plans: content of ``plans.json``.
        configuration: its name in the file.
        where: the file, for error texts.
        cascade: whether the second stage of a cascade, whose input has more channels, is expected.

    Raises:
        PlanError: the configuration does not exist, belongs to a cascade's second stage although none is expected, or
            asks for a reading, a preprocessing or a network that medkd cannot reproduce.
    """
    reader = plans.get("image_reader_writer")
    if reader not in (*READERS, "", "None", None):
        raise PlanError(
            f"{where}: the model was trained on scans as nnU-Net's {reader} reads them, which medkd cannot do, so its "
            "predictions would be "
            f"wrong; use a model trained with {' or '.join(READERS)} (overwrite_image_reader_writer in nnU-Net's "
            "dataset.json)."
        )
    with _explained(where):
        statistics = (
            plans.get("foreground_intensity_properties_per_channel")
            or plans["foreground_intensity_properties_by_modality"]
        )
        intensities = tuple(_intensities(statistics[key]) for key in sorted(statistics, key=int))
        resolved = _resolve(plans["configurations"], configuration, where)
        if resolved.get("previous_stage") and not cascade:
            raise PlanError(
                f"{where}: '{configuration}' is the second stage of a cascade, which needs the first one's prediction; "
                "use it as a teacher with --targets cached, or use the model of '3d_fullres'."
            )
        found = _configuration(resolved, configuration, where)
        origin = f"nnunet:{plans['plans_name']}"
        return Plan(
            dataset=plans["dataset_name"],
            transpose=tuple(plans["transpose_forward"]),
            intensities=intensities,
            configurations={configuration: found},
            origin=origin,
            orientation=READERS.get(str(reader)),
        )


def previous_stage_of(plans: Mapping[str, Any], configuration: str, where: str) -> str | None:
    """The configuration whose prediction a cascade's second stage takes as an input; None where there is none.

    Raises:
        PlanError: the configuration does not exist.
    """
    with _explained(where):
        previous = _resolve(plans["configurations"], configuration, where).get("previous_stage")
    return str(previous) if previous else None


def network_of(plans: Mapping[str, Any], configuration: str, where: str) -> tuple[str, bool]:
    """medkd's name of the network that a configuration plans, and whether it uses batch normalisation.

    Raises:
        PlanError: the network's class, or a part of it, is not one that medkd can build.
    """
    with _explained(where):
        data = _resolve(plans["configurations"], configuration, where)
        if "architecture" not in data:
            return _network(data["UNet_class_name"], where), False
        architecture = data["architecture"]
        keywords = architecture["arch_kwargs"]
        for key, allowed in _EXPECTED.items():
            value = keywords.get(key)
            value = value.rpartition(".")[2] if isinstance(value, str) else value
            if key in keywords and value not in allowed and not (value is None and key.endswith("kwargs")):
                raise PlanError(
                    f"{where}: configuration '{configuration}' has {key} = {keywords[key]!r}, which medkd does not "
                    "build."
                )
        return _network(architecture["network_class_name"], where), "BatchNorm" in str(keywords.get("norm_op"))


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Say of a plan what nnU-Net would not have written, in place of a traceback."""
    try:
        yield
    except KeyError as error:
        raise PlanError(
            f"{where}: the key {error} is missing; is this the plans.json of an nnU-Net v2 model?"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise PlanError(
            f"{where}: a value has another form than nnU-Net writes ({error}); restore the plans.json that lay beside "
            "the model."
        ) from error


def _network(class_name: str, where: str) -> str:
    short = class_name.rpartition(".")[2]
    if short not in NETWORK_CLASSES:
        raise PlanError(
            f"{where}: the network class '{class_name}' is not supported; medkd imports "
            f"{' and '.join(NETWORK_CLASSES)}."
        )
    return NETWORK_CLASSES[short]


def _resolve(configurations: Mapping[str, Any], name: str, where: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A configuration with what it inherits filled in."""
    if name not in configurations or name in seen:
        problem = "inherits from itself" if name in seen else "does not exist"
        raise PlanError(f"{where}: the configuration '{name}' {problem}; there are {', '.join(configurations)}.")
    own = dict(configurations[name])
    parent = own.pop("inherits_from", None)
    return {**_resolve(configurations, parent, where, (*seen, name)), **own} if parent else own


def _configuration(data: Mapping[str, Any], name: str, where: str) -> Configuration:
    unknown = sorted(set(data["normalization_schemes"]) - set(NORMALIZATIONS))
    if unknown or data.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        raise PlanError(
            f"{where}: '{name}' is preprocessed by {unknown or data['preprocessor_name']}, which medkd does not know."
        )
    architecture = _architecture(data)
    network = _network(
        data["architecture"]["network_class_name"] if "architecture" in data else data["UNet_class_name"], where
    )
    plain = replace(
        architecture,
        blocks_encoder=(2,) * len(architecture.strides),
        blocks_decoder=(2,) * (len(architecture.strides) - 1),
    )
    return Configuration(
        name=name,
        spacing=tuple(float(v) for v in data["spacing"]),
        median_shape=tuple(round(v) for v in data["median_image_size_in_voxels"]),
        normalization=tuple(NORMALIZATIONS[scheme] for scheme in data["normalization_schemes"]),
        use_mask_for_norm=tuple(bool(v) for v in data["use_mask_for_norm"]),
        batch_dice=bool(data["batch_dice"]),
        architectures={"plain_unet": plain, **dict.fromkeys(_SIZES.get(network, (network,)), architecture)},
        resampling=_resampling(data, where),
    )


def _architecture(data: Mapping[str, Any]) -> Architecture:
    patch, batch = tuple(data["patch_size"]), int(data["batch_size"])
    if "architecture" not in data:  # plans before nnU-Net 2.4
        strides = _tuples(data["pool_op_kernel_sizes"], len(patch))
        base, most = data["UNet_base_num_features"], data["unet_max_num_features"]
        features = tuple(min(most, base * 2**i) for i in range(len(strides)))
        kernels = _tuples(data["conv_kernel_sizes"], len(patch))
        blocks = tuple(data["n_conv_per_stage_encoder"]), tuple(data["n_conv_per_stage_decoder"])
        return Architecture(
            patch_size=patch,
            batch_size=batch,
            features_per_stage=features,
            kernel_sizes=kernels,
            strides=strides,
            blocks_encoder=blocks[0],
            blocks_decoder=blocks[1],
        )
    shape = data["architecture"]["arch_kwargs"]
    stages = int(shape["n_stages"])
    if not 1 <= stages <= MOST_STAGES:
        raise ValueError(f"n_stages {stages:.4g} is not from 1 to {MOST_STAGES}")
    encoder = shape["n_blocks_per_stage"] if "n_blocks_per_stage" in shape else shape["n_conv_per_stage"]
    return Architecture(
        patch_size=patch,
        batch_size=batch,
        features_per_stage=_per_stage(shape["features_per_stage"], stages),
        kernel_sizes=_tuples(_staged(shape["kernel_sizes"], stages), len(patch)),
        strides=_tuples(_staged(shape["strides"], stages), len(patch)),
        blocks_encoder=_per_stage(encoder, stages),
        blocks_decoder=_per_stage(shape["n_conv_per_stage_decoder"], stages - 1),
    )


def _resampling(data: Mapping[str, Any], where: str) -> Resampling:
    orders: dict[str, Any] = {}
    for theirs, ours in (("data", "image"), ("seg", "label"), ("probabilities", "logits")):
        function, keywords = data[f"resampling_fn_{theirs}"], data[f"resampling_fn_{theirs}_kwargs"]
        if function not in (_SPLINE, _TORCH):
            raise PlanError(
                f"{where}: the resampling function '{function}' is not supported; medkd knows {_SPLINE} and {_TORCH}."
            )
        # nnU-Net's torch variant is linear within and nearest across a coarse axis
        orders[f"{ours}_order"] = keywords["order"] if function == _SPLINE else 1
        orders[f"{ours}_order_z"] = keywords["order_z"] if function == _SPLINE else 0
        orders["force_separate_z"] = keywords.get("force_separate_z")
    return Resampling(**orders)


def _intensities(values: Mapping[str, float]) -> IntensityStatistics:
    return IntensityStatistics(**{key: float(values[key]) for key in IntensityStatistics.__dataclass_fields__})


def _per_stage(value: int | Sequence[int], stages: int) -> tuple[int, ...]:
    return (value,) * stages if isinstance(value, int) else tuple(_staged(value, stages))


def _staged(values: Sequence[Any], stages: int) -> Sequence[Any]:
    """The values, of which there must be one per stage."""
    if len(values) != stages:
        raise ValueError(f"expected {stages} values, found {values}")
    return values


def _tuples(values: Sequence[int | Sequence[int]], rank: int) -> tuple[tuple[int, ...], ...]:
    return tuple((v,) * rank if isinstance(v, int) else tuple(v) for v in values)
