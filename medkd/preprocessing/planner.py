"""From a data set's fingerprint to its plan, by nnU-Net 2's rules; the result is data, no network is built.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation", Nature
Methods 18 (2021), doi:10.1038/s41592-020-01008-z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from operator import truediv

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


_LINEAR = Resampling(
    image_order=1,
    image_order_z=1,
    label_order=0,
    label_order_z=0,
    logits_order=1,
    logits_order_z=1,
    force_separate_z=False,
)


@dataclass(frozen=True, kw_only=True)
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
    spacing = target_spacing(fingerprint)
    if protocol is not None and protocol.preprocessing.spacing:
        spacing = protocol.preprocessing.spacing
    transpose = _transpose(spacing)
    cases = description.num_training or len(fingerprint.shapes_after_crop)
    need = _need(fingerprint, description, spacing, transpose, cases, gpu_memory_gb)
    planned = _plan_all(need, cases, description, fingerprint)
    wanted: Sequence[str] = configurations or ()
    if not wanted:
        wanted = [protocol.preprocessing.configuration] if protocol else list(planned)
    return Plan(
        dataset=dataset_name,
        transpose=transpose,
        intensities=fingerprint.intensities,
        configurations=_chosen(planned, wanted, protocol, dataset_name),
        protocol=protocol,
    )


def _need(
    fingerprint: Fingerprint,
    description: DatasetDescription,
    spacing: Sequence[float],
    transpose: tuple[int, ...],
    cases: int,
    memory_gb: float | None,
) -> _Need:
    """What the data set asks of a patch, at a target spacing."""
    shapes = []
    for shape, old in zip(fingerprint.shapes_after_crop, fingerprint.spacings, strict=True):
        shapes.append(resampled_shape(shape, old, spacing))
    axes = list(transpose)
    median = tuple(np.median(shapes, axis=0)[axes].tolist())
    outputs = len(description.labels.entries)
    if description.labels.ignore is not None:  # nnU-Net counts every named label
        outputs += 1
    return _Need(
        spacing=tuple(np.array(spacing)[axes].tolist()),
        median=median,
        dataset_voxels=prod(median) * cases,
        num_outputs=outputs,
        memory_gb=memory_gb,
    )


def _chosen(
    planned: Mapping[str, Configuration], wanted: Sequence[str], protocol: Protocol | None, dataset_name: str
) -> dict[str, Configuration]:
    """The wanted ones of the planned configurations, with what a protocol replaces."""
    for name in wanted:
        if name not in planned:
            raise PlanError(
                f"{dataset_name} has no use for the configuration '{name}'; planned for it: {', '.join(planned)}."
            )
    chosen = {}
    for name, configuration in planned.items():
        if name in wanted:
            chosen[name] = _follow(configuration, protocol, dataset_name) if protocol else configuration
    return chosen


def target_spacing(fingerprint: Fingerprint) -> tuple[float, ...]:
    """Target voxel size in mm along ``(z, y, x)``: the median of each axis.

    Where one axis is more than 3 times coarser than the others and has less than a third of their voxels, it takes the
    10th percentile of its spacings instead, but not less than the others: the median would blur the thin-sliced cases.
    """
    spacings = np.array(fingerprint.spacings, dtype=np.float64)
    target = np.percentile(spacings, 50, axis=0)
    sizes = np.percentile(np.array(fingerprint.shapes_after_crop), 50, axis=0)
    worst = int(np.argmax(target))
    coarsest_other = np.delete(target, worst).max()
    smallest_other = np.delete(sizes, worst).min()
    coarse = target[worst] > ANISOTROPY_THRESHOLD * coarsest_other
    few_voxels = sizes[worst] * ANISOTROPY_THRESHOLD < smallest_other
    if coarse and few_voxels:
        chosen = np.percentile(spacings[:, worst], 10)
        target[worst] = chosen if chosen >= coarsest_other else coarsest_other + 1e-5
    return tuple(target.tolist())


def plan_architecture(preset: Preset, need: _Need) -> Architecture:
    """The largest patch that fits the memory, its U-Net, and the batch that fills the rest.

    The first patch has the aspect of the spacing and 256³ (2048²) voxels, cut to the median case. While it is too
    large, the axis that is largest relative to the median case loses one multiple of its divisor.
    """
    rank = len(need.spacing)
    batch = _REFERENCE_BATCH[rank]
    memory = preset.memory_gb if need.memory_gb is None else need.memory_gb
    reference = preset.reference_2d if rank == 2 else preset.reference_3d
    reference = reference * memory / preset.memory_gb
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
    return _architecture(preset, shape, max(min(size, covered), _MIN_BATCH))


def _architecture(preset: Preset, shape: Topology, batch_size: int) -> Architecture:
    stages = len(shape.strides)
    encoder, decoder = blocks(preset, stages)
    return Architecture(
        patch_size=shape.patch_size,
        batch_size=batch_size,
        features_per_stage=features_per_stage(stages, len(shape.patch_size)),
        kernel_sizes=shape.kernels,
        strides=shape.strides,
        blocks_encoder=encoder,
        blocks_decoder=decoder,
    )


def _follow(planned: Configuration, protocol: Protocol, dataset_name: str) -> Configuration:
    """The configuration with what the protocol replaces."""
    rule, patch_size = protocol.preprocessing, protocol.training.patch_size
    channels = len(planned.normalization)
    schemes = rule.normalization or planned.normalization
    if len(schemes) == 1:
        schemes *= channels
    other_rank = patch_size is not None and len(patch_size) not in (0, planned.rank)
    if planned.name != rule.configuration or len(schemes) != channels or other_rank:
        raise PlanError(
            f"The protocol {protocol.name} is for {rule.configuration} and {len(schemes)} channels; {dataset_name} has "
            f"{channels} channels and {planned.name} was asked for."
        )
    masked = planned.use_mask_for_norm
    if rule.use_mask_for_norm is not None:
        masked = (rule.use_mask_for_norm,) * channels
    architectures = {}
    for network, architecture in planned.architectures.items():
        architectures[network] = _fixed(architecture, PRESETS[network], planned.spacing, protocol)
    return replace(
        planned,
        normalization=schemes,
        use_mask_for_norm=_masked_zscores(masked, schemes),
        batch_dice=False,
        architectures=architectures,
        resampling=_LINEAR if rule.interpolation == "linear" else planned.resampling,
        crop=rule.crop,
    )


def _masked_zscores(masked: Sequence[bool], schemes: Sequence[str]) -> tuple[bool, ...]:
    """Of the channels that may be normalised inside the mask those that are, by z-scoring."""
    return tuple(use and scheme == "zscore" for use, scheme in zip(masked, schemes, strict=True))


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
    return _architecture(preset, shape, batch)


def _first_patch(need: _Need) -> tuple[float, ...]:
    rank = len(need.spacing)
    aspect = [1 / value for value in need.spacing]
    scale = (_FIRST_PATCH[rank] ** rank / prod(aspect)) ** (1 / rank)
    wanted = [round(value * scale) for value in aspect]
    return tuple(map(min, wanted, need.median))


def _shrunk(shape: Topology, need: _Need) -> Topology:
    relative = list(map(truediv, shape.patch_size, need.median))
    axis = max(range(len(relative)), key=lambda i: (relative[i], i))
    # a step of the current divisor may jump over a valid size (256 -> 192 over 224), so the divisor of the smaller
    # patch is used
    smaller = topology(need.spacing, _less(shape.patch_size, axis, shape.divisor[axis]))
    return topology(need.spacing, _less(shape.patch_size, axis, smaller.divisor[axis]))


def _less(patch: Sequence[int], axis: int, step: int) -> tuple[int, ...]:
    """The patch, smaller by a step along one axis."""
    sizes = list(patch)
    sizes[axis] -= step
    return tuple(sizes)


def _plan_all(
    need: _Need, cases: int, description: DatasetDescription, fingerprint: Fingerprint
) -> dict[str, Configuration]:
    normalization = tuple(map(scheme_of, description.channel_names))
    much_cropped = fingerprint.median_relative_size_after_crop < _MASK_BELOW
    masked = much_cropped or bool(description.extra.get("use_mask_for_norm"))
    use_mask = _masked_zscores([masked] * len(normalization), normalization)

    def configuration(name: str, what: _Need, batch_dice: bool) -> Configuration:
        median = tuple(map(round, what.median))
        networks = {}
        for network, preset in PRESETS.items():
            networks[network] = plan_architecture(preset, what)
        return Configuration(
            name=name,
            spacing=what.spacing,
            median_shape=median,
            normalization=normalization,
            use_mask_for_norm=use_mask,
            batch_dice=batch_dice,
            architectures=networks,
        )

    flat = replace(need, spacing=need.spacing[1:], median=need.median[1:])
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
    spacing, low = full.copy(), need
    all_voxels = voxels = prod(need.median)
    patch = prod(plan_architecture(preset, need).patch_size)
    while patch / voxels < _LOWRES_BELOW:
        finer = spacing.max() / spacing > 2
        if not finer.any():
            finer[:] = True
        spacing[finer] *= _LOWRES_STEP
        median = full / spacing * np.array(need.median)
        voxels = float(np.prod(median))
        low = replace(
            need,
            spacing=tuple(spacing.tolist()),
            median=tuple(np.rint(median).tolist()),
            dataset_voxels=voxels * cases,
        )
        patch = prod(plan_architecture(preset, low).patch_size)
    return low if all_voxels / voxels >= _LOWRES_MIN_RATIO else None


def _transpose(spacing: Sequence[float]) -> tuple[int, ...]:
    """Coarsest axis first."""
    axes = list(range(len(spacing)))
    coarsest = axes.pop(int(np.argmax(spacing)))
    return (coarsest, *axes)
