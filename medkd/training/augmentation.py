"""nnU-Net's augmentation, from the torch-based successor of batchgenerators."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, pi, sin
from typing import Protocol

import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

from medkd.training.targets import SoftPatch

_ANISOTROPIC = 3.0  # nnU-Net's threshold: beyond it the first axis is too coarse to rotate across
_ELONGATED = 1.5  # 2D patches longer than this are rotated by 15 degrees only
_READ_SCALE = 0.85  # nnU-Net reads patches 1 / 0.85 times larger than the rotation alone needs


class Augment(Protocol):
    """Turns what was read into the training patch: image ``(C, *size)``, label ``(1, *size)``, and the teacher's output
    if given.

    Images and labels do not depend on whether there is a teacher's output, which comes back as logits ``(K, *patch)``.
    """

    def __call__(self, image: Tensor, label: Tensor, soft: SoftPatch | None = None) -> tuple[Tensor, ...]:
        """Augment one sample."""
        ...


@dataclass(frozen=True)
class SpatialRange:
    """How far patches are rotated.

    Attributes:
        angle: largest rotation in radians.
        in_plane: rotate and scale within the slices only (anisotropic 3D patches), nnU-Net's "dummy 2D".
    """

    angle: float
    in_plane: bool

    @classmethod
    def of(cls, patch_size: tuple[int, ...]) -> SpatialRange:
        """nnU-Net's rule: 30° for 3D, 180° for 2D and for slices of anisotropic 3D patches, 15° for elongated 2D
        patches.
        """
        if len(patch_size) == 2:
            return cls(pi / 12 if max(patch_size) / min(patch_size) > _ELONGATED else pi, False)
        in_plane = max(patch_size) / patch_size[0] > _ANISOTROPIC
        return cls(pi if in_plane else pi / 6, in_plane)


def read_size(patch_size: tuple[int, ...]) -> tuple[int, ...]:
    """Voxels to read so that a rotated patch seldom sees the border of what was read.

    Every axis is the longest reach of the patch when any two rotating axes turn by up to the largest angle (at most
    90°), over 0.85.
    """
    spatial = SpatialRange.of(patch_size)
    first = 1 if spatial.in_plane else 0
    angle = min(spatial.angle, pi / 2)
    turning = patch_size[first:]
    reach = []
    for i, a in enumerate(turning):
        others = [b for j, b in enumerate(turning) if j != i]
        reach.append(ceil(max(a, *(a * cos(angle) + b * sin(angle) for b in others)) / _READ_SCALE))
    return (*patch_size[:first], *reach)


class Augmentation:
    """Turns what was read into a training patch.

    Args:
        patch_size: final patch.
        mirror_axes: axes of the patch that may be mirrored.
        masked_channels: channels that are set to 0 outside the non-zero mask (those normalised within it).
    """

    def __init__(
        self, patch_size: tuple[int, ...], mirror_axes: tuple[int, ...], masked_channels: tuple[int, ...] = ()
    ) -> None:
        spatial = SpatialRange.of(patch_size)
        self._patch_size = patch_size
        self._in_plane = spatial.in_plane
        self._spatial = SpatialTransform(
            patch_size[1:] if spatial.in_plane else patch_size,
            patch_center_dist_from_border=0,
            random_crop=False,
            p_rotation=0.2,
            rotation=(-spatial.angle, spatial.angle),
            p_scaling=0.2,
            scaling=(0.7, 1.4),
            p_synchronize_scaling_across_axes=1,
        )
        self._rest = ComposeTransforms(_intensity(spatial.in_plane) + _masking(mirror_axes, masked_channels))

    def __call__(self, image: Tensor, label: Tensor, soft: SoftPatch | None = None) -> tuple[Tensor, ...]:
        """Augment one sample.

        Args:
            image: ``(C, *read_size)``, float32.
            label: ``(1, *read_size)``, int16.
            soft: the teacher's output for the same voxels.

        Returns:
            Image ``(C, *patch_size)``, label ``(1, *patch_size)``, and with ``soft`` its logits ``(K, *patch_size)``,
            moved like the label but interpolated linearly. Randomness comes from NumPy's and torch's global state, and
            ``soft`` takes none of it.
        """
        parts = {"image": image, "segmentation": label}
        depth = image.shape[1]
        if self._in_plane:
            parts = {key: value.flatten(0, 1) for key, value in parts.items()}
        parameters = self._spatial.get_parameters(**parts)
        sample = self._spatial.apply(parts, **parameters)
        if self._in_plane:
            sample = {key: value.unflatten(0, (-1, depth)) for key, value in sample.items()}
        if soft is not None:
            sample["regression_target"] = self._follow(soft, parameters["grid"])
        sample = self._rest(**sample)
        return tuple(
            sample[key].contiguous() for key in ("image", "segmentation", "regression_target") if key in sample
        )

    def _follow(self, soft: SoftPatch, grid: Tensor | None) -> Tensor:
        """Logits ``(K, *patch_size)`` after the spatial change that image and label went through."""
        if grid is not None:
            return soft.sample(grid)
        first = [
            size // 2 - patch // 2 for size, patch in zip(soft.size, self._patch_size, strict=True)
        ]  # the library's rounding
        return soft.crop(first, self._patch_size)


def _intensity(in_plane: bool) -> list[RandomTransform]:
    return [
        RandomTransform(
            GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1
        ),
        # the library can choose its convolution by timing; that would make results depend on the machine's load
        RandomTransform(
            GaussianBlurTransform(
                blur_sigma=(0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5
            ),
            0.2,
        ),
        RandomTransform(
            MultiplicativeBrightnessTransform(
                multiplier_range=BGContrast((0.75, 1.25)), synchronize_channels=False, p_per_channel=1
            ),
            0.15,
        ),
        RandomTransform(
            ContrastTransform(
                contrast_range=BGContrast((0.75, 1.25)),
                preserve_range=True,
                synchronize_channels=False,
                p_per_channel=1,
            ),
            0.15,
        ),
        RandomTransform(
            SimulateLowResolutionTransform(
                scale=(0.5, 1),
                synchronize_channels=False,
                synchronize_axes=True,
                ignore_axes=(0,) if in_plane else (),
                allowed_channels=None,
                p_per_channel=0.5,
            ),
            0.25,
        ),
        _gamma(invert=True, probability=0.1),
        _gamma(invert=False, probability=0.3),
    ]


def _gamma(*, invert: bool, probability: float) -> RandomTransform:
    transform = GammaTransform(
        gamma=BGContrast((0.7, 1.5)),
        p_invert_image=float(invert),
        synchronize_channels=False,
        p_per_channel=1,
        p_retain_stats=1,
    )
    return RandomTransform(transform, probability)


def _masking(mirror_axes: tuple[int, ...], masked_channels: tuple[int, ...]) -> list:
    masking = [MaskImageTransform(apply_to_channels=list(masked_channels))] if masked_channels else []
    return [*([MirrorTransform(allowed_axes=mirror_axes)] if mirror_axes else []), *masking]


def centre_crop(image: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """The middle ``patch_size`` of ``(C, *size)``: what an unaugmented patch is."""
    for axis, size in enumerate(patch_size, start=1):
        image = image.narrow(axis, (image.shape[axis] - size) // 2, size)
    return torch.clone(image, memory_format=torch.contiguous_format)
