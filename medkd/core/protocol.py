"""Protocols: the settings of published systems as small JSON files, for what they do otherwise than medkd's own plan.

Every value here is read by some part of medkd; what a publication does and medkd cannot is told in
``docs/protocols.md`` and stands in no file. Defaults are medkd's own settings, which are nnU-Net's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class ProtocolRow:
    """What a publication sets for some rows of its tables: for a method, for networks, or for both.

    All rows that match a training apply in their order, so that a later one wins.

    Attributes:
        source: file of the publication's code, with the line where it is known.
        method: whose rows these are; empty for all, and for networks that are trained alone.
        networks: those that are trained; empty for all.
        teachers: networks that teach; empty for all.
        parameters: of the method, by name.
        training: settings of the variant (:class:`TrainingRule`, or for detectors :class:`DetectionProtocol`) that are
            others in these rows.
        note: what else a reader must know of them.
    """

    source: str
    method: str = ""
    networks: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PreprocessingRule:
    """What replaces the planned preprocessing.

    Attributes:
        configuration: the one configuration that is planned: ``2d`` or ``3d_fullres``.
        spacing: target voxel size in mm along ``(z, y, x)``; None keeps the planned one.
        normalization: scheme per channel, see :func:`medkd.preprocessing.normalisation.normalise`; one value holds for
            all channels, none keeps the planned ones.
        use_mask_for_norm: z-score inside the non-zero mask; None keeps the planned rule.
        crop: see :class:`medkd.core.plan.Configuration`.
        interpolation: ``spline`` is medkd's own rule, ``linear`` is linear for images and logits and nearest for
            labels, on all axes.
    """

    configuration: str
    spacing: tuple[float, ...] | None = None
    normalization: tuple[str, ...] = ()
    use_mask_for_norm: bool | None = None
    crop: str = "nonzero"
    interpolation: str = "spline"


@dataclass(frozen=True, kw_only=True)
class AugmentationRule:
    """A few simple random changes, each drawn on its own; they replace nnU-Net's augmentation.

    Attributes:
        flip: probability of mirroring, for each axis.
        rotate90: probability of one to three quarter turns in the plane of the last two axes.
        rotate: probability of a rotation in that plane.
        rotate_degrees: by an angle from -this to this.
        scale: probability of multiplying the intensities.
        scale_range: by a factor from 1 - this to 1 + this.
        shift: probability of adding to the intensities.
        shift_range: a value from -this to this, in normalised units.
    """

    flip: float = 0.0
    rotate90: float = 0.0
    rotate: float = 0.0
    rotate_degrees: float = 0.0
    scale: float = 0.0
    scale_range: float = 0.0
    shift: float = 0.0
    shift_range: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainingRule:
    """How a network is trained; a user's options win over it.

    The learning rate is ``floor + (learning_rate - floor) f(t)`` at the share ``t`` of the training, where ``f`` is
    ``(1 - t)^power`` (``poly``), ``(1 + cos πt) / 2`` (``cosine``), or a tenth for every milestone before ``t``
    (``steps``).

    Attributes:
        patch_size: voxels per axis of the plan; None keeps the planned one.
        batch_size: patches per step; None keeps the planned one.
        epochs: of a network trained alone.
        distilled_epochs: of a student; None is ``epochs``.
        iterations_per_epoch: optimiser steps per epoch.
        learning_rate: at the start.
        floor: at the end, of a network trained alone.
        distilled_floor: at the end, of a student; None is ``floor``.
        power: of the decay.
        decay: ``epoch`` or ``step``: how often the rate changes.
        schedule: the form of the decay.
        milestones: shares of the training where ``steps`` divides the rate by ten.
        warmup: steps over which the rate rises linearly.
        optimizer: ``sgd``, or ``adamw``, which has no momentum.
        momentum: of SGD.
        nesterov: Nesterov's momentum.
        weight_decay: L2 penalty.
        clip: largest gradient norm; None does not clip.
        cross_entropy: Dice and cross-entropy, else Dice alone.
        dice_background: the Dice of plain labels includes the background.
        auxiliary: weight of an auxiliary head's loss beside 1 for the main one; None halves with every resolution.
        foreground: share of each batch's patches that are centred on a structure.
        augmentation: None is nnU-Net's.
    """

    patch_size: tuple[int, ...] | None = None
    batch_size: int | None = None
    epochs: int = 1000
    distilled_epochs: int | None = None
    iterations_per_epoch: int = 250
    learning_rate: float = 1e-2
    floor: float = 0.0
    distilled_floor: float | None = None
    power: float = 0.9
    decay: str = "epoch"
    schedule: Literal["poly", "cosine", "steps"] = "poly"
    milestones: tuple[float, ...] = ()
    warmup: int = 0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.99
    nesterov: bool = True
    weight_decay: float = 3e-5
    clip: float | None = 12.0
    cross_entropy: bool = True
    dice_background: bool = False
    auxiliary: float | None = None
    foreground: float = 0.33
    augmentation: AugmentationRule | None = None


@dataclass(frozen=True)
class InferenceRule:
    """How a network predicts; a user's options win over it.

    Attributes:
        step_size: distance of neighbouring tiles as a share of the patch.
        blending: ``gaussian`` or ``constant`` weights of a tile's voxels.
        mirror: average over mirrored copies.
    """

    step_size: float = 0.5
    blending: str = "gaussian"
    mirror: bool = True


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One protocol for one data set; recorded in ``plans.json``.

    Attributes:
        preprocessing: what replaces the planned preprocessing.
        training: what replaces medkd's own training settings.
        inference: what replaces medkd's own prediction settings.
        legacy_metric: validation also computes the original's metric (:mod:`medkd.evaluation.segmentation.legacy`)
            beside the correct one.
        rows: what the publication sets per method and network.
        name: ``acf_bckd:btcv``.
        reference: the publication.
    """

    preprocessing: PreprocessingRule
    training: TrainingRule = field(default_factory=TrainingRule)
    inference: InferenceRule = field(default_factory=InferenceRule)
    legacy_metric: bool = False
    rows: tuple[ProtocolRow, ...] = ()
    name: str = ""
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class DetectionProtocol:
    """The published settings of a detector on one data set; None where the publication does not say.

    Attributes:
        image_size: side of the square on which images lie, in pixels.
        batch_size: images per step.
        epochs: passes over the training images.
        learning_rate: at the start.
        final_learning_rate: at the end of a linear decay.
        momentum: of SGD.
        weight_decay: L2 penalty.
        augmentation: random changes by their names in :class:`medkd.detection.plan.DetectionAugmentation`; empty keeps
            medkd's own.
        sampling: see :class:`medkd.detection.plan.DetectionPlan`; keys with categories that a data set has not are left
            out.
        milestones: epochs after which the rate is divided by ten, in place of the linear decay.
        warmup: steps over which the rate rises linearly.
        clip: largest gradient norm; 0 does not clip.
        long_side: longest long side in pixels of an image that does not fill the square; None fills it.
        short_side: longest short side, given with ``long_side``.
        short_sides: short sides of training images, one of which is drawn for each.
        short_range: lowest and highest short side of training images, drawn for each.
        rows: what the publication sets per method and detector.
        source: file of the publication's code.
    """

    image_size: int
    batch_size: int
    epochs: int | None = None
    learning_rate: float | None = None
    final_learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    augmentation: Mapping[str, float] = field(default_factory=dict)
    sampling: Mapping[str, float] = field(default_factory=dict)
    milestones: tuple[int, ...] = ()
    warmup: int | None = None
    clip: float | None = None
    long_side: int | None = None
    short_side: int | None = None
    short_sides: tuple[int, ...] = ()
    short_range: tuple[int, ...] = ()
    rows: tuple[ProtocolRow, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class ProtocolFile:
    """A protocol's JSON file: variants by data set (the name of its converter), for segmentation or for detection."""

    name: str
    reference: str
    variants: Mapping[str, Protocol] = field(default_factory=dict)
    detection: Mapping[str, DetectionProtocol] = field(default_factory=dict)
    schema: int = SCHEMA
