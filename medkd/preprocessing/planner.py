"""From a data set's fingerprint to its plan, by nnU-Net 2's rules; the result is data, no network is built.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation", Nature
Methods 18 (2021), doi:10.1038/s41592-020-01008-z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import PlanError
from medkd.core.plan import Architecture, Configuration, Plan, Resampling
from medkd.core.protocol import Protocol
from medkd.core.serial import nearest
from medkd.preprocessing.fingerprint import Fingerprint
from medkd.preprocessing.normalisation import scheme_of
from medkd.preprocessing.resampling import ANISOTROPY_THRESHOLD, resampled_shape
from medkd.preprocessing.topology import (
    PRESETS,
    Preset,
    Topology,
    blocks,
    feature_map_elements,
    features_per_stage,
    topology,
)

CONFIGURATIONS = ("2d", "3d_lowres", "3d_fullres")

_REFERENCE_BATCH = {2: 12, 3: 2}  # batch sizes for which the presets' references hold
_MIN_BATCH = 2
_FIRST_PATCH = {2: 2048, 3: 256}  # edge of the cube or square whose volume the first patch has
_LOWRES_BELOW = 0.25  # a patch smaller than this share of the median case calls for a low-resolution configuration
_LOWRES_STEP = 1.03
_LOWRES_MIN_RATIO = 2.0  # a low resolution that saves less than this factor of voxels is not worth training
_MASK_BELOW = 0.75  # z-score inside the non-zero mask when cropping leaves less than this share of a case


@dataclass(frozen=True)
class _Need:
    """What the patch search has to respect: median voxels of a case, voxels of the data set, outputs, memory in GB or
    None.
    """

    spacing: tuple[float, ...]
    median: tuple[float, ...]
    dataset_voxels: float
    num_outputs: int
    memory_gb: float | None


def make_plan(
    dataset_name: str,
    fingerprint: Fingerprint,
    description: DatasetDescription,
    *,
    configurations: Sequence[str] | None = None,
    gpu_memory_gb: float | None = None,
    protocol: Protocol | None = None,
) -> Plan:
    """Plan spacing, patches, batches and networks.

    Args:
        dataset_name: full data set name.
        fingerprint: what the data are like.
        description: channels and labels.
        configurations: which to plan; None plans all that make sense (``3d_lowres`` only where it helps, no 3D for
            single slices).
        gpu_memory_gb: memory that training may use; None takes each preset's own target (8 GB; 24 and 40 GB for the
            larger ones).
        protocol: plans its one configuration, as it says.

    Raises:
        PlanError: a configuration is unknown, does not make sense for these data, or is not the protocol's.
    """
    for name in configurations or ():
        if name not in CONFIGURATIONS:
            raise PlanError(
                f"Unknown configuration '{name}'.{nearest(name, CONFIGURATIONS)} Known: {', '.join(CONFIGURATIONS)}."
            )
    spacing = (protocol and protocol.preprocessing.spacing) or target_spacing(fingerprint)
    transpose = _transpose(spacing)
    shapes = [
        resampled_shape(shape, old, spacing)
        for shape, old in zip(fingerprint.shapes_after_crop, fingerprint.spacings, strict=True)
    ]
    median = tuple(float(np.median([shape[axis] for shape in shapes])) for axis in transpose)
    cases = description.num_training or len(shapes)
    outputs = len(description.labels.entries) + (
        description.labels.ignore is not None
    )  # nnU-Net counts every named label
    need = _Need(tuple(spacing[axis] for axis in transpose), median, prod(median) * cases, outputs, gpu_memory_gb)
    planned = _plan_all(need, cases, description, fingerprint)
    wanted = tuple(configurations or ([protocol.preprocessing.configuration] if protocol else planned))
    for name in wanted:
        if name not in planned:
            raise PlanError(
                f"{dataset_name} has no use for the configuration '{name}'; planned for it: {', '.join(planned)}."
            )
    chosen = {name: planned[name] for name in planned if name in wanted}
    if protocol is not None:
        chosen = {name: _follow(chosen[name], protocol, dataset_name) for name in chosen}
    return Plan(
        dataset=dataset_name,
        transpose=transpose,
        intensities=fingerprint.intensities,
        configurations=chosen,
        protocol=protocol,
    )


def target_spacing(fingerprint: Fingerprint) -> tuple[float, ...]:
    """Target voxel size in mm along ``(z, y, x)``: the median of each axis.

    Where one axis is more than 3 times coarser than the others and has less than a third of their voxels, it takes the
    10th percentile of its spacings instead, but not less than the others: the median would blur the thin-sliced cases.
    """
    spacings = np.array(fingerprint.spacings, dtype=np.float64)
    target = np.percentile(spacings, 50, axis=0)
    sizes = np.percentile(np.array(fingerprint.shapes_after_crop), 50, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != worst]
    coarsest = target[others].max()
    if target[worst] > ANISOTROPY_THRESHOLD * coarsest and sizes[worst] * ANISOTROPY_THRESHOLD < sizes[others].min():
        chosen = np.percentile(spacings[:, worst], 10)
        target[worst] = chosen if chosen >= coarsest else coarsest + 1e-5
    return tuple(float(value) for value in target)


def plan_architecture(preset: Preset, need: _Need) -> Architecture:
    """The largest patch that fits the memory, its U-Net, and the batch that fills the rest.

    The first patch has the aspect of the spacing and 256³ (2048²) voxels, cut to the median case. While it is too
    large, the axis that is largest relative to the median case loses one multiple of its divisor.
    """
    rank = len(need.spacing)
    batch = _REFERENCE_BATCH[rank]
    memory = preset.memory_gb if need.memory_gb is None else need.memory_gb
    reference = (preset.reference_2d if rank == 2 else preset.reference_3d) * memory / preset.memory_gb
    # nnU-Net's plain planner lets the batch shrink to 2 before the patch shrinks; its residual planner keeps the
    # reference batch
    allowed = reference if preset.residual else reference * batch / _MIN_BATCH
    shape = topology(need.spacing, _first_patch(need))
    elements = feature_map_elements(preset, shape, shape.patch_size, need.num_outputs)
    while elements > allowed:
        shape = _shrunk(shape, need)
        elements = feature_map_elements(preset, shape, shape.patch_size, need.num_outputs)
    size = round(reference / elements * batch)
    covered = round(need.dataset_voxels * preset.covered / prod(shape.patch_size))
    stages = len(shape.strides)
    encoder, decoder = blocks(preset, stages)
    features = features_per_stage(stages, rank)
    return Architecture(
        patch_size=shape.patch_size,
        batch_size=max(min(size, covered), _MIN_BATCH),
        features_per_stage=features,
        kernel_sizes=shape.kernels,
        strides=shape.strides,
        blocks_encoder=encoder,
        blocks_decoder=decoder,
    )


def _follow(planned: Configuration, protocol: Protocol, dataset_name: str) -> Configuration:
    """The configuration with what the protocol replaces."""
    rule, training = protocol.preprocessing, protocol.training
    channels, schemes = len(planned.normalization), rule.normalization or planned.normalization
    schemes = schemes * channels if len(schemes) == 1 else schemes
    if (
        planned.name != rule.configuration
        or len(schemes) != channels
        or (training.patch_size and len(training.patch_size) != planned.rank)
    ):
        raise PlanError(
            f"The protocol {protocol.name} is for {rule.configuration} and {len(schemes)} channels; {dataset_name} has "
            f"{channels} channels "
            f"and {planned.name} was asked for."
        )
    linear = Resampling(
        image_order=1,
        image_order_z=1,
        label_order=0,
        label_order_z=0,
        logits_order=1,
        logits_order_z=1,
        force_separate_z=False,
    )
    masked = planned.use_mask_for_norm if rule.use_mask_for_norm is None else (rule.use_mask_for_norm,) * channels
    return replace(
        planned,
        normalization=schemes,
        use_mask_for_norm=tuple(use and scheme == "zscore" for use, scheme in zip(masked, schemes, strict=True)),
        batch_dice=False,
        architectures={n: _fixed(a, PRESETS[n], planned.spacing, protocol) for n, a in planned.architectures.items()},
        resampling=linear if rule.interpolation == "linear" else planned.resampling,
        crop=rule.crop,
    )


def _fixed(planned: Architecture, preset: Preset, spacing: Sequence[float], protocol: Protocol) -> Architecture:
    """A planned network for the protocol's patch and batch."""
    batch = protocol.training.batch_size or planned.batch_size
    patch = protocol.training.patch_size or planned.patch_size
    shape = topology(spacing, patch)
    if shape.patch_size != tuple(patch):
        raise PlanError(
            f"The protocol {protocol.name} has a patch of {patch}, which must be a multiple of {shape.divisor}; choose "
            "another."
        )
    stages = len(shape.strides)
    encoder, decoder = blocks(preset, stages)
    return Architecture(
        patch_size=shape.patch_size,
        batch_size=batch,
        features_per_stage=features_per_stage(stages, len(patch)),
        kernel_sizes=shape.kernels,
        strides=shape.strides,
        blocks_encoder=encoder,
        blocks_decoder=decoder,
    )


def _first_patch(need: _Need) -> tuple[float, ...]:
    rank = len(need.spacing)
    aspect = [1 / value for value in need.spacing]
    scale = (_FIRST_PATCH[rank] ** rank / prod(aspect)) ** (1 / rank)
    return tuple(min(round(a * scale), m) for a, m in zip(aspect, need.median, strict=True))


def _shrunk(shape: Topology, need: _Need) -> Topology:
    relative = [size / median for size, median in zip(shape.patch_size, need.median, strict=True)]
    axis = max(range(len(relative)), key=lambda i: (relative[i], i))
    # a step of the current divisor may jump over a valid size (256 -> 192 over 224), so the divisor of the smaller
    # patch is used
    smaller = topology(need.spacing, _less(shape.patch_size, axis, shape.divisor[axis]))
    return topology(need.spacing, _less(shape.patch_size, axis, smaller.divisor[axis]))


def _less(patch: Sequence[int], axis: int, step: int) -> tuple[int, ...]:
    return tuple(size - step if i == axis else size for i, size in enumerate(patch))


def _plan_all(
    need: _Need, cases: int, description: DatasetDescription, fingerprint: Fingerprint
) -> dict[str, Configuration]:
    normalization = tuple(scheme_of(name) for name in description.channel_names)
    masked = fingerprint.median_relative_size_after_crop < _MASK_BELOW or bool(
        description.extra.get("use_mask_for_norm")
    )
    use_mask = tuple(masked and scheme == "zscore" for scheme in normalization)

    def configuration(name: str, what: _Need, batch_dice: bool) -> Configuration:
        median = tuple(round(value) for value in what.median)
        networks = {network: plan_architecture(preset, what) for network, preset in PRESETS.items()}
        return Configuration(
            name=name,
            spacing=what.spacing,
            median_shape=median,
            normalization=normalization,
            use_mask_for_norm=use_mask,
            batch_dice=batch_dice,
            architectures=networks,
        )

    flat = _Need(need.spacing[1:], need.median[1:], need.dataset_voxels, need.num_outputs, need.memory_gb)
    planned = {"2d": configuration("2d", flat, True)}
    if need.median[0] != 1:
        low = _lowres(need, cases)
        if low is not None:
            planned["3d_lowres"] = configuration("3d_lowres", low, False)
        planned["3d_fullres"] = configuration("3d_fullres", need, low is not None)
    return planned


def _lowres(need: _Need, cases: int) -> _Need | None:
    """Coarsen by 3 % steps, finer axes last, until the plain U-Net's patch covers a quarter of the median case."""
    preset = PRESETS["plain_unet"]
    full = np.array(need.spacing)
    spacing, low, voxels = full.copy(), None, prod(need.median)
    patch = prod(plan_architecture(preset, need).patch_size)
    while patch / voxels < _LOWRES_BELOW:
        finer = spacing.max() / spacing > 2
        spacing[finer if finer.any() else slice(None)] *= _LOWRES_STEP
        median = full / spacing * np.array(need.median)
        voxels = float(np.prod(median))
        low = _Need(
            tuple(spacing.tolist()),
            tuple(float(round(m)) for m in median),
            voxels * cases,
            need.num_outputs,
            need.memory_gb,
        )
        patch = prod(plan_architecture(preset, low).patch_size)
    return low if low is not None and prod(need.median) / voxels >= _LOWRES_MIN_RATIO else None


def _transpose(spacing: Sequence[float]) -> tuple[int, ...]:
    coarsest = int(np.argmax(spacing))
    return (coarsest, *(axis for axis in range(len(spacing)) if axis != coarsest))
