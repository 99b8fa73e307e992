"""Full-volume logits by a sliding window on numpy arrays; :mod:`medkd.inference.sliding_window` does it on tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from medkd.runtime.tiles import Place, mirrorings, padding, tile_places

Forward = Callable[[np.ndarray], np.ndarray]

CONSTANT = 1e-5
"""A tile is constant when its values differ by less (in normalised units): rounding of the resampling, no content."""

_VOXELS = 32**3  # per forward; smaller patches go together


def sliding_logits(
    forward: Forward,
    image: np.ndarray,
    patch_size: Sequence[int],
    num_outputs: int,
    *,
    step_size: float = 0.5,
    mirror_axes: Sequence[int] = (),
    blending: str = "gaussian",
) -> np.ndarray:
    """Logits of a whole volume.

    ``L(v) = Σ_t w_t(v) l_t(v)`` over the tiles t that cover voxel v, where ``l_t`` is the mean over the mirrored
    forwards and the weights sum to 1. A volume smaller than the patch is padded with zeros on both sides and cropped
    back. A tile whose content is constant gives the same output everywhere, so it is computed once.

    Args:
        forward: ``(B, C, *patch) → (B, K, *patch)`` float32.
        image: ``(C, z, y, x)`` float32, preprocessed.
        patch_size: three values, or two for a 2D network that goes through the slices of the first axis.
        num_outputs: K.
        step_size: distance of neighbouring tiles as a share of the patch, in (0, 1].
        mirror_axes: axes of the patch to mirror; all combinations are averaged.
        blending: ``gaussian`` or ``constant``.

    Returns:
        ``(K, z, y, x)`` float32.
    """
    patch = tuple(patch_size)
    added = padding(image.shape[1:], patch)
    padded = np.pad(image, [(0, 0), *added]) if any(map(any, added)) else image
    result = np.zeros((num_outputs, *padded.shape[1:]), np.float32)
    window = _Window(forward, mirror_axes, max(1, _VOXELS // prod(patch)))
    for z, corner in tile_places(padded.shape[1:], patch, step_size, blending):
        index = tuple(place.voxels for place in corner)
        if z is None:
            window.add(padded[(slice(None), *index)], result[(slice(None), *index)], corner)
        else:
            window.add(padded[:, z][(slice(None), *index)], result[:, z][(slice(None), *index)], corner)
    window.flush()
    crop = tuple(slice(before, size - behind) for (before, behind), size in zip(added, padded.shape[1:], strict=True))
    return result[(slice(None), *crop)]


class _Window:
    """Gathers tiles, runs them in batches, and adds their weighted logits to their places."""

    def __init__(self, forward: Forward, mirror_axes: Sequence[int], batch: int) -> None:
        self._forward, self._batch = forward, batch
        self._flips = [tuple(axis + 1 for axis in axes) for axes in mirrorings(mirror_axes)]
        self._waiting: list[tuple[np.ndarray, tuple[int, ...], np.ndarray, tuple[Place, ...]]] = []
        self._constant: dict[tuple[float, ...], np.ndarray] = {}

    def add(self, tile: np.ndarray, target: np.ndarray, corner: tuple[Place, ...]) -> None:
        """Note a tile ``(C, *patch)``, whose logits belong to the view ``target`` ``(K, *patch)``."""
        same = self._constant_logits(tile)
        if same is not None:
            target += same * _weight(corner)
            return
        for flip in self._flips:
            self._waiting.append((tile, flip, target, corner))
            if len(self._waiting) == self._batch:
                self.flush()

    def flush(self) -> None:
        """Run what is waiting."""
        if not self._waiting:
            return
        inputs = [np.flip(tile, flip) if flip else tile for tile, flip, _, _ in self._waiting]
        outputs = self._forward(np.ascontiguousarray(np.stack(inputs), np.float32))
        for logits, (_, flip, target, corner) in zip(outputs, self._waiting, strict=True):
            plain = np.flip(logits, flip) if flip else logits
            target += plain * (_weight(corner) / len(self._flips))
        self._waiting = []

    def _constant_logits(self, tile: np.ndarray) -> np.ndarray | None:
        first = tile[(slice(None), *(slice(0, 1),) * (tile.ndim - 1))]
        corner = tile[(slice(None), *(slice(None, None, max(1, side - 1)) for side in tile.shape[1:]))]
        # a look at the corners spares the pass over tiles that have content
        if np.abs(corner - first).max() > CONSTANT or np.abs(tile - first).max() > CONSTANT:
            return None
        key = tuple(float(value) for value in np.round(first.ravel(), 5))
        if key not in self._constant:
            plain = self._forward(np.ascontiguousarray(tile[None], np.float32))[0]
            mirrored = [np.flip(plain, flip) if flip else plain for flip in self._flips]
            self._constant[key] = np.asarray(np.mean(mirrored, axis=0), np.float32)
        return self._constant[key]


def _weight(corner: tuple[Place, ...]) -> np.ndarray | float:
    """What each voxel of a tile counts, broadcastable to the patch."""
    weight: np.ndarray | float = 1.0
    for axis, place in enumerate(corner):
        if place.weights is not None:
            line = place.weights.reshape(-1, *(1,) * (len(corner) - axis - 1))
            weight = line * weight
    return weight
