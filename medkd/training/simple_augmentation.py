"""The few simple random changes that published protocols use instead of nnU-Net's augmentation."""

from __future__ import annotations

from math import cos, radians, sin

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.errors import PlanError
from medkd.core.protocol import AugmentationRule
from medkd.training.targets import Coding, SoftPatch


class SimpleAugmentation:
    """Flips, turns and rotations in the plane of the last two axes, scaling and shifting of intensities; each drawn on
    its own.

    Args:
        rule: probabilities and ranges.
        patch_size: of the patches; what is read is the patch itself.
        mirror_axes: axes of the patch that may be mirrored; of the others only the random numbers are drawn.

    Raises:
        PlanError: quarter turns are asked for and the plane of the patch is not square.
    """

    def __init__(self, rule: AugmentationRule, patch_size: tuple[int, ...], mirror_axes: tuple[int, ...]) -> None:
        if rule.rotate90 and patch_size[-1] != patch_size[-2]:
            raise PlanError(
                "The protocol turns patches by 90 degrees, which needs a square in the last two axes, found "
                f"{patch_size}; "
                "choose another --patch-size."
            )
        self._rule = rule
        self._mirrored = tuple(axis + 1 for axis in mirror_axes)  # behind the channels

    def __call__(self, image: Tensor, label: Tensor, soft: SoftPatch | None = None) -> tuple[Tensor, ...]:
        """Augment one sample.

        Args:
            image: ``(C, *patch)``, float32.
            label: ``(1, *patch)``, int16.
            soft: the teacher's output for the same voxels.

        Returns:
            Both, of the same shape, and with ``soft`` its logits ``(K, *patch)``. Randomness comes from torch's global
            state.
        """
        parts = [image, label]
        if soft is not None:
            parts.append(soft.codes())
        image, label, *codes = self._flipped_and_turned(parts)
        angle = radians(_within(self._rule.rotate_degrees)) if _happens(self._rule.rotate) else None
        logits = [] if soft is None else [_turned(soft.target.coding, codes[0], angle)]
        if angle is not None:
            image, label = rotated(image, angle, "bilinear"), rotated(label.float(), angle, "nearest").to(label.dtype)
        image = self._scaled_and_shifted(image)
        return tuple(part.contiguous() for part in (image, label, *logits))

    def _flipped_and_turned(self, parts: list[Tensor]) -> list[Tensor]:
        """All parts alike; an axis that may not be mirrored takes its random number, too."""
        drawn = [axis for axis in range(1, parts[0].ndim) if _happens(self._rule.flip)]
        axes = [axis for axis in drawn if axis in self._mirrored]
        turns = int(torch.randint(1, 4, ())) if _happens(self._rule.rotate90) else 0
        return [torch.rot90(part.flip(axes), turns, (-2, -1)) for part in parts]

    def _scaled_and_shifted(self, image: Tensor) -> Tensor:
        if _happens(self._rule.scale):
            image = image * (1 + _within(self._rule.scale_range))
        if _happens(self._rule.shift):
            image = image + _within(self._rule.shift_range)
        return image


def _turned(coding: Coding, codes: Tensor, angle: float | None) -> Tensor:
    """Logits, rotated in the plane of the last two axes where there is an angle."""
    return (
        coding.decode(codes)
        if angle is None
        else coding.interpolate(codes, lambda values: rotated(values, angle, "bilinear"))
    )


def rotated(array: Tensor, angle: float, mode: str) -> Tensor:
    """Rotate in the plane of the last two axes about its middle; what comes from outside is 0.

    Args:
        array: ``(..., y, x)`` float32.
        angle: in radians, from the x to the y axis.
        mode: of :func:`torch.nn.functional.grid_sample`.
    """
    height, width = array.shape[-2:]
    ratio = height / width  # the sampling grid runs from -1 to 1 on both axes, whatever their lengths
    matrix = torch.tensor([[[cos(angle), sin(angle) * ratio, 0.0], [-sin(angle) / ratio, cos(angle), 0.0]]])
    planes = array.reshape(1, -1, height, width)
    grid = F.affine_grid(matrix, [1, 1, height, width], align_corners=False)
    return F.grid_sample(planes, grid, mode=mode, padding_mode="zeros", align_corners=False).reshape(array.shape)


def _happens(probability: float) -> bool:
    return bool(torch.rand(()) < probability)


def _within(limit: float) -> float:
    return float(torch.empty(()).uniform_(-limit, limit)) if limit else 0.0
