"""Reading patches from stored cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medkd.preprocessing.store import StoredCase
from medkd.training.targets import SoftPatch, StoredTarget, read_padded

OUTSIDE = -1  # label of voxels outside the image and outside its non-zero mask, as in nnU-Net
UNLABELLED = -2  # label of every voxel of a patch of which nobody knows the labels


@dataclass(frozen=True)
class PatchSampler:
    """Draws where a patch lies in a case.

    Attributes:
        read_size: voxels to read per axis, at least the final patch (larger, so that rotation does not see borders).
        patch_size: the final patch.
    """

    read_size: tuple[int, ...]
    patch_size: tuple[int, ...]

    @property
    def margin(self) -> tuple[int, ...]:
        """First voxel of the middle of what is read, which is an unaugmented patch."""
        return tuple((read - patch) // 2 for read, patch in zip(self.read_size, self.patch_size, strict=True))

    def sample(
        self, case: StoredCase, rng: np.random.Generator, soft: StoredTarget | None = None, *, foreground: bool
    ) -> tuple[Any, ...]:
        """Read one patch.

        Args:
            case: the stored case.
            rng: source of randomness.
            soft: the case's cached target; the place of the patch does not depend on it.
            foreground: centre the patch on a random voxel of a random structure of the case, where it has any.

        Returns:
            Image ``(C, *read_size)`` float32 and label ``(1, *read_size)`` int16; voxels outside the case are 0 and −1.
            In 2D the patch is one slice along the first axis. With ``soft`` also the target's :class:`SoftPatch`, of
            which nothing is read.
        """
        shape, image, label, codes = (
            case.image.shape[1:],
            case.image,
            case.label[None],
            None if soft is None else soft.codes,
        )
        voxel = _foreground_voxel(case.locations, rng) if foreground else _annotated_voxel(case.locations, rng)
        if len(self.read_size) == 2:
            slice_index = int(voxel[0]) if voxel is not None else int(rng.integers(shape[0]))
            start = self._start(shape[1:], None if voxel is None else voxel[1:], rng)
            image, label = image[:, slice_index], label[:, slice_index]
            codes = None if codes is None else codes[:, slice_index]
        else:
            start = self._start(shape, voxel, rng)
        arrays = read_padded(image, start, self.read_size, 0.0), read_padded(label, start, self.read_size, OUTSIDE)
        if soft is None or codes is None:
            return arrays
        return *arrays, SoftPatch(replace(soft, codes=codes), tuple(start), self.read_size)

    def _start(self, shape: tuple[int, ...], voxel: np.ndarray | None, rng: np.random.Generator) -> list[int]:
        """First voxel of the patch per axis; may be negative where the case is smaller than what is read."""
        start = []
        for axis, (size, read, patch) in enumerate(zip(shape, self.read_size, self.patch_size, strict=True)):
            margin = max(read - patch, read - size)  # the final patch may touch the border, the rest is padding
            low, high = -(margin // 2), size + margin // 2 + margin % 2 - read
            centred = rng.integers(low, max(low, high) + 1) if voxel is None else max(low, int(voxel[axis]) - read // 2)
            start.append(int(centred))
        return start


def _foreground_voxel(locations: Mapping[int, np.ndarray], rng: np.random.Generator) -> np.ndarray | None:
    present = [key for key, voxels in sorted(locations.items()) if key > 0 and len(voxels)]
    if not present:
        return _annotated_voxel(locations, rng)
    voxels = locations[present[rng.integers(len(present))]]
    return voxels[rng.integers(len(voxels))]


def _annotated_voxel(locations: Mapping[int, np.ndarray], rng: np.random.Generator) -> np.ndarray | None:
    """With an ``ignore`` label, key 0 holds the annotated voxels: random patches must see some of them."""
    voxels = locations.get(0)
    return voxels[rng.integers(len(voxels))] if voxels is not None and len(voxels) else None
