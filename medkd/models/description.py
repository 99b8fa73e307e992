"""``teacher.json``: what the weights of a network that was trained elsewhere do not tell themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import medkd.networks  # noqa: F401  (enters all networks into the registry)
from medkd.core.errors import PlanError, RunError
from medkd.core.labels import LabelSpec
from medkd.core.plan import Architecture, Configuration, IntensityStatistics, Plan, Resampling
from medkd.core.run import TEACHER_FILE
from medkd.models.limits import LARGEST_PATCH, MOST_CHANNELS
from medkd.models.monai_networks import CLASSES, check_arguments, registered
from medkd.models.segmentation import TrainedModel
from medkd.networks.base import NETWORKS
from medkd.preprocessing.topology import PRESETS, blocks, features_per_stage, topology

FILE = TEACHER_FILE
FOLD = "given"  # the only fold of a model that nobody cross-validated
NAMES = ("segresnet", "swin_unetr", "mednext_s", "mednext_b", "mednext_m", "mednext_l")
_INTERPOLATIONS = {
    "linear": Resampling(
        image_order=1,
        image_order_z=1,
        label_order=0,
        label_order_z=0,
        logits_order=1,
        logits_order_z=1,
        force_separate_z=False,
    ),
    "spline": Resampling(),
}


@dataclass(frozen=True, kw_only=True)
class ExternalModel:
    """``teacher.json``: what the weights themselves do not tell. All axes are those of the network.

    Attributes:
        network: one of :data:`NAMES`, built as MONAI builds it, or one of :data:`medkd.models.monai_networks.CLASSES`.
        channels: name of each input channel.
        labels: name → value, or values of a region, as in ``dataset.json``.
        spacing: voxel size in mm that the network was trained on.
        normalization: scheme per channel, see :func:`medkd.preprocessing.normalisation.normalise`; for example
            ``window(-175, 250)``.
        patch_size: voxels per axis.
        train: the case ids that the weights were trained on; an empty list states that none of the data set's cases was
            among them, None (of a bundle, which cannot say it) that nobody knows.
        weights: the file, beside the description; MONAI bundles keep theirs in ``models/model.pt``.
        transpose: axis order that turns medkd's ``(z, y, x)`` into the network's; MONAI's ``(x, y, z)`` is ``[2, 1,
            0]``.
        intensities: foreground statistics per channel; needed by ``ct``.
        use_mask_for_norm: per channel, z-score inside the non-zero mask; empty for none.
        crop: see :class:`medkd.core.plan.Configuration`.
        interpolation: ``linear`` (images and logits linear, labels nearest) or ``spline`` (nnU-Net's).
        mirror_axes: axes that training mirrored and prediction may mirror.
        regions_class_order: for regions, as in ``dataset.json``.
        batch_size: that a planned student is trained with.
        arguments: for MONAI's classes, the keyword arguments of the constructor besides channels and dimensions.
    """

    network: str
    channels: tuple[str, ...]
    labels: Mapping[str, Any]
    spacing: tuple[float, ...]
    normalization: tuple[str, ...]
    patch_size: tuple[int, ...]
    train: tuple[str, ...] | None
    weights: str = "models/model.pt"
    transpose: tuple[int, ...] = (0, 1, 2)
    intensities: tuple[IntensityStatistics, ...] = ()
    use_mask_for_norm: tuple[bool, ...] = ()
    crop: str = "nonzero"
    interpolation: str = "linear"
    mirror_axes: tuple[int, ...] = ()
    regions_class_order: tuple[int, ...] = ()
    batch_size: int = 2
    arguments: Mapping[str, Any] = field(default_factory=dict)
    schema: int = 1


def checked(found: ExternalModel, folder: Path) -> ExternalModel:
    """The description with medkd's own name of the network, after a look at what may be built.

    Args:
        found: as it was read.
        folder: where, for error texts.

    Raises:
        RunError: the network is none that medkd builds.
        PlanError: the numbers of channels or axes disagree.
    """
    found = _named(found, folder)
    channels = len(found.channels)
    rank = len(found.patch_size)
    statistics = (channels,) if "ct" in found.normalization else (0, channels)
    fits = {
        "normalization": len(found.normalization) == channels,
        "intensities": len(found.intensities) in statistics,
        "use_mask_for_norm": len(found.use_mask_for_norm) in (0, channels),
        "spacing": len(found.spacing) == rank and rank in (2, 3) and min(found.spacing) > 0,
        "patch_size": _patch_fits(found),
        "batch_size": 1 <= found.batch_size <= MOST_CHANNELS,
        "transpose": sorted(found.transpose) == [0, 1, 2],
        "interpolation": found.interpolation in _INTERPOLATIONS,
        "mirror_axes": set(found.mirror_axes) <= set(range(rank)),
    }
    wrong = [key for key, fit in fits.items() if not fit]
    if wrong:
        raise PlanError(
            f"{folder / FILE}: {', '.join(wrong)} does not fit {channels} channels, {rank} axes and the network "
            f"{found.network}; see docs/nnunet-teacher.md."
        )
    return found


def _patch_fits(found: ExternalModel) -> bool:
    """Whether the network can be built for the patch, and the patch held in memory."""
    divisor = NETWORKS[found.network].divisor if found.network in NAMES else 1
    divisible = all(size > 0 and size % divisor == 0 for size in found.patch_size)
    return divisible and prod(found.patch_size) <= LARGEST_PATCH


def model_of(found: ExternalModel, folder: Path) -> TrainedModel:
    """What a description says, without the network.

    Raises:
        RunError: regions cover each other in the order in which they are painted.
        PlanError: no planned student fits the patch.
    """
    labels = LabelSpec.from_json(found.labels, list(found.regions_class_order), str(folder / FILE))
    configuration = _configuration(found, folder)
    plan = Plan(
        dataset=folder.name,
        transpose=found.transpose,
        intensities=found.intensities,
        configurations={configuration.name: configuration},
        origin=f"teacher:{found.network}",
    )
    return TrainedModel(
        folds=(FOLD,),
        plan=plan,
        configuration=configuration,
        labels=labels,
        channels=found.channels,
        patch_size=found.patch_size,
        mirror_axes=found.mirror_axes,
        mirror_axes_known=bool(found.mirror_axes),
    )


def _named(found: ExternalModel, path: Path) -> ExternalModel:
    """The description with medkd's own name of the network where it has one, after a look at what may be built."""
    if found.network in NAMES and not found.arguments:
        return found
    if found.network in NAMES or found.network not in CLASSES:
        known = f"{', '.join(NAMES)} (which take no arguments), or MONAI's {', '.join(CLASSES)}"
        raise RunError(f"{path}: the network '{found.network}' is not one of {known}.")
    check_arguments(found.network, found.arguments, str(path))
    name = registered(found.network, found.arguments, len(found.patch_size))
    return found if name is None else replace(found, network=name, arguments={})


def _configuration(found: ExternalModel, path: Path) -> Configuration:
    rank = len(found.patch_size)
    shape = topology(found.spacing, found.patch_size)
    if shape.patch_size != found.patch_size:
        raise PlanError(
            f"{path / FILE}: patch_size {found.patch_size} must be a multiple of {shape.divisor}, so that a planned "
            "student fits it."
        )
    stages = len(shape.strides)
    encoder, decoder = blocks(PRESETS["plain_unet"], stages)
    architecture = Architecture(
        patch_size=found.patch_size,
        batch_size=found.batch_size,
        features_per_stage=features_per_stage(stages, rank),
        kernel_sizes=shape.kernels,
        strides=shape.strides,
        blocks_encoder=encoder,
        blocks_decoder=decoder,
    )
    return Configuration(
        name="2d" if rank == 2 else "3d_fullres",
        spacing=found.spacing,
        median_shape=found.patch_size,
        normalization=found.normalization,
        use_mask_for_norm=found.use_mask_for_norm or (False,) * len(found.channels),
        batch_dice=False,
        architectures={"plain_unet": architecture},
        resampling=_INTERPOLATIONS[found.interpolation],
        crop=found.crop,
    )
