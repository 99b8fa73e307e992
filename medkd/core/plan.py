"""The plan: everything that preprocessing, training and inference agree on, as data that a person can read and edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medkd.core.errors import PlanError
from medkd.core.protocol import Protocol
from medkd.core.serial import load, nearest


@dataclass(frozen=True, kw_only=True)
class IntensityStatistics:
    """Foreground intensities of one channel over the data set, in the image's own unit (HU for CT)."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Interpolation orders; the ``_z`` orders hold along a coarse axis that is resampled separately (section 8 of
    nnU-Net's rules).

    Attributes:
        force_separate_z: None decides per case by the anisotropy threshold; True and False override it.
    """

    image_order: int = 3
    image_order_z: int = 0
    label_order: int = 1
    label_order_z: int = 0
    logits_order: int = 1
    logits_order_z: int = 0
    force_separate_z: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A planned U-Net with the patch and batch that fit its memory target; tuples run from the finest stage down.

    Attributes:
        patch_size: voxels per axis, ``(z, y, x)`` or ``(y, x)``.
        batch_size: patches per step.
        features_per_stage: channels of each encoder stage.
        kernel_sizes: convolution kernel of each stage, per axis.
        strides: down-sampling on entering each stage, per axis (the first is 1s).
        blocks_encoder: convolutions (plain) or residual blocks (ResEnc) per encoder stage.
        blocks_decoder: convolutions per decoder stage.
    """

    patch_size: tuple[int, ...]
    batch_size: int
    features_per_stage: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    blocks_encoder: tuple[int, ...]
    blocks_decoder: tuple[int, ...]


@dataclass(frozen=True)
class Interval:
    """The smallest and the largest of some values."""

    low: float
    high: float


@dataclass(frozen=True)
class ChannelRange:
    """Intensities of one channel: intervals, over the cases, of a case's percentiles 0.5, 50 and 99.5.

    Attributes:
        name: of the channel, as the data set calls it.
        empty: cases in which all voxels of the channel are equal; the intervals leave them out.
    """

    name: str
    low: Interval
    median: Interval
    high: Interval
    empty: int = 0


@dataclass(frozen=True)
class StructureRange:
    """How often a structure is seen, and how large it is.

    Attributes:
        name: of the structure.
        cases: training cases that show it.
        volume: smallest and largest volume in mm³ among these; None where no case shows it.
    """

    name: str
    cases: int
    volume: Interval | None


@dataclass(frozen=True)
class DataRanges:
    """What the training cases looked like; scans to be predicted are compared with it.

    Attributes:
        orientations: axis code as stored (``"RAS"``) → number of cases; turned scans count under the plan's code.
        spacing: voxel size in mm along the patient's axes (head-foot, front-back, left-right).
        size_mm: extent in mm along these axes.
        channels: per channel; those that are constant in a case do not count.
        structures: per label value of the foreground, in order; empty in plans of an older version.
    """

    orientations: Mapping[str, int]
    spacing: tuple[Interval, ...]
    size_mm: tuple[Interval, ...]
    channels: tuple[ChannelRange, ...]
    structures: tuple[StructureRange, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way to look at the data: ``2d``, ``3d_fullres`` or ``3d_lowres``. All axes are in transposed order.

    Attributes:
        spacing: target voxel size in mm, one value per axis of the network (2D: in-plane).
        median_shape: median case shape at that spacing, in voxels.
        normalization: one of ``ct``, ``zscore``, ``none``, ``rescale_0_1``, ``rgb_0_1``, ``window(low, high)`` per
            channel.
        use_mask_for_norm: per channel, whether z-scoring uses only voxels inside the non-zero mask.
        batch_dice: Dice over the whole batch instead of per sample.
        architectures: planned networks by registry name; ``plain_unet`` is always there and gives the default patch and
            batch.
        resampling: interpolation orders.
        crop: what a case is cropped to: ``nonzero`` (the box of the voxels other than 0), ``above(value)`` (the box of
            the voxels above an intensity in any channel) or ``none``.
        mirror_axes: axes of the patch that training and test-time augmentation may mirror; None is all of them.
    """

    name: str
    spacing: tuple[float, ...]
    median_shape: tuple[int, ...]
    normalization: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    batch_dice: bool
    architectures: Mapping[str, Architecture]
    resampling: Resampling = field(default_factory=Resampling)
    crop: str = "nonzero"
    mirror_axes: tuple[int, ...] | None = None

    @property
    def rank(self) -> int:
        """Spatial dimensions of the network: 2 or 3."""
        return len(self.spacing)

    @property
    def mirrored(self) -> tuple[int, ...]:
        """:attr:`mirror_axes` in numbers."""
        return tuple(range(self.rank)) if self.mirror_axes is None else self.mirror_axes

    def architecture(self, network: str) -> Architecture:
        """The planned architecture for ``network``, or ``plain_unet``'s patch and batch for networks that are not
        planned.
        """
        return self.architectures.get(network, self.architectures["plain_unet"])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``plans.json``.

    Attributes:
        dataset: full data set name.
        transpose: axis order applied to ``(z, y, x)`` arrays first (coarsest axis first).
        intensities: foreground statistics per channel.
        configurations: by name.
        origin: who made the plan (``"medkd"``, ``"nnunet:<plans name>"``).
        protocol: the published protocol that the plan follows, if any; training and prediction take their settings from
            it.
        orientation: axis code (``"RAS"``: the first index grows to the right, the second to the front, the third to the
            head) that scans are turned to before anything else; None takes them as they are stored.
        ranges: what the training cases looked like, where known.
    """

    dataset: str
    transpose: tuple[int, ...]
    intensities: tuple[IntensityStatistics, ...]
    configurations: Mapping[str, Configuration]
    origin: str = "medkd"
    protocol: Protocol | None = None
    orientation: str | None = None
    ranges: DataRanges | None = None
    schema: int = 1

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read ``plans.json``.

        Raises:
            PlanError: there is no plan yet, or it makes no sense (:func:`medkd.core.plan_checks.check_plan`).
            DataError: the file is not a valid plan.
        """
        if not Path(path).exists():
            raise PlanError(f"There is no plan at {path}; run medkd_plan_and_preprocess first.")
        from medkd.core.plan_checks import check_plan

        return check_plan(load(cls, path), str(path))

    def configuration(self, name: str) -> Configuration:
        """The named configuration.

        Raises:
            PlanError: the plan has no such configuration; the existing ones are named.
        """
        if name not in self.configurations:
            known = ", ".join(self.configurations)
            raise PlanError(
                f"{self.dataset} has no configuration '{name}'.{nearest(name, self.configurations)} Planned: {known}."
            )
        return self.configurations[name]

    @property
    def transpose_back(self) -> tuple[int, ...]:
        """The inverse of :attr:`transpose`."""
        return tuple(self.transpose.index(i) for i in range(len(self.transpose)))
