"""Full-volume logits from a network that sees one patch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import ceil, prod

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from medkd.core.errors import RunError

Forward = Callable[[Tensor], Tensor]

# Voxels per forward. On a CPU two copies share the weights and divide among the cores better than one; more of them
# only leave the cache, and two of a large patch cost memory for nothing. On a GPU batches fill the multiprocessors.
CPU_VOXELS = 32**3
CPU_PAIR_VOXELS = 96**3
GPU_VOXELS = 4 * 128**3
# A tile is constant when its values differ by less than this (in normalised units): rounding of the resampling, far
# below any content.
CONSTANT = 1e-5


@dataclass(frozen=True)
class Tile:
    """One position of the patch.

    Attributes:
        index: spatial index into the padded volume; a plain integer along the slice axis of a 2D network.
        lines: blending weight along each axis of the patch, already divided by the sum over all tiles; None means 1.
    """

    index: tuple[slice | int, ...]
    lines: tuple[Tensor | None, ...]

    @property
    def weight(self) -> Tensor | None:
        """The product of the lines, broadcastable to the patch; made when needed, since all tiles' weights outgrow the
        volume.
        """
        weight: Tensor | None = None
        for axis, line in enumerate(self.lines):
            if line is not None:
                line = line.reshape(-1, *(1,) * (len(self.lines) - axis - 1))
                weight = line if weight is None else weight * line
        return weight


def tile_starts(size: int, patch: int, step_size: float) -> list[int]:
    """First voxels of the tiles along one axis: evenly spread, at most ``step_size * patch`` apart, covering ``size``.

    The rule (number of steps, rounding half to even) is nnU-Net's (Isensee et al., Nature Methods 2021,
    doi:10.1038/s41592-020-01008-z), so that both predict from the same tiles.
    """
    steps = ceil((size - patch) / (patch * step_size)) + 1
    distance = (size - patch) / (steps - 1) if steps > 1 else 0.0
    return [round(distance * i) for i in range(steps)]


def gaussian_weight(patch: int) -> np.ndarray:
    """Importance of each voxel of a tile along one axis, ``(patch,)`` float64: a Gaussian with sigma = patch / 8 and
    maximum 1.

    The importance map of a tile is the product over the axes; a Gaussian-filtered delta is separable, so this equals
    nnU-Net's n-dimensional map (its scaling to a maximum of 10 cancels in the weighted mean). It is nowhere zero: the
    filter's radius of 4 sigma is half the patch.
    """
    delta = np.zeros(patch)
    delta[patch // 2] = 1.0
    weight = gaussian_filter1d(delta, patch / 8, mode="constant")
    return np.maximum(weight / weight.max(), np.finfo(np.float32).tiny)


def predict_logits(
    forward: Forward,
    image: Tensor,
    patch_size: Sequence[int],
    num_outputs: int,
    *,
    step_size: float = 0.5,
    tile_batch: int | None = None,
    mirror_axes: Sequence[int] = (),
    device: torch.device | None = None,
    blending: str = "gaussian",
) -> Tensor:
    """Logits of a whole volume by a sliding window with Gaussian blending.

    ``L(v) = Σ_t w_t(v) l_t(v) / Σ_t w_t(v)`` over the tiles t that cover voxel v, where ``l_t`` is the mean over the
    mirrored forwards. The tiles lie on a product grid, so the denominator is a product of one sum per axis and is
    divided out of the
    weights beforehand: one accumulator, one pass. A volume that is smaller than the patch is padded with zeros on both
    sides and cropped back. A tile whose content is constant gives the same output everywhere, so it is computed once.

    Args:
        forward: ``(B, C, *patch) → (B, K, *patch)``, in evaluation mode.
        image: ``(C, z, y, x)``, preprocessed; the result lies on its device.
        patch_size: three values, or two for a 2D network that goes through the slices of the first axis.
        num_outputs: K.
        step_size: distance of neighbouring tiles as a share of the patch, in (0, 1].
        tile_batch: tiles per forward; None chooses by the patch and the device.
        mirror_axes: axes of the patch to mirror for test-time augmentation; all combinations are averaged.
        device: where the forward runs; None is the image's device.
        blending: ``gaussian``, or ``constant``: every voxel of a tile counts the same.

    Returns:
        ``(K, z, y, x)`` float32.

    Raises:
        RunError: the step size is not in (0, 1].
    """
    if not 0 < step_size <= 1:
        raise RunError(f"The step size must be above 0 and at most 1 (a share of the patch), found {step_size}.")
    patch = tuple(patch_size)
    device = image.device if device is None else device
    batch = tile_batch or _forward_size(prod(patch), device)
    with torch.inference_mode():
        padded, crop = _pad(image, patch)
        tiles = list(_tiles(padded.shape[1:], patch, step_size, image.device, blending))
        window = _Window(forward, padded, _flips(mirror_axes), device)
        if len(tiles) == 1 and len(patch) == 3:
            return window.mean(padded, batch).to(image.device)[crop]
        result = torch.zeros((num_outputs, *padded.shape[1:]), device=image.device)
        window.run(tiles, batch, result)
        return result[crop]


class _Window:
    """Runs the forwards of many tiles in batches and adds them to the accumulator."""

    def __init__(self, forward: Forward, image: Tensor, flips: list[tuple[int, ...]], device: torch.device) -> None:
        self.forward = forward
        self.image = image
        self.flips = flips
        self.device = device
        self.constant: dict[tuple[float, ...], Tensor] = {}

    def run(self, tiles: list[Tile], batch: int, result: Tensor) -> None:
        """Add every tile's weighted logits to ``result``, ``(K, z, y, x)``."""
        waiting: list[tuple[Tile, tuple[int, ...]]] = []
        for tile in tiles:
            same = self._constant_logits(self.image[(slice(None), *tile.index)])
            if same is not None:
                _add(result, tile, same, 1.0)
                continue
            waiting += [(tile, flip) for flip in self.flips]
            while len(waiting) >= batch:
                self._step(waiting[:batch], result)
                waiting = waiting[batch:]
        if waiting:
            self._step(waiting, result)

    def mean(self, tile: Tensor, batch: int) -> Tensor:
        """Logits ``(K, *patch)`` float32 of one tile ``(C, *patch)``, averaged over the mirrored copies."""
        total: Tensor | None = None
        for first in range(0, len(self.flips), batch):
            flips = self.flips[first : first + batch]
            for logits, flip in zip(self._logits([(tile, f) for f in flips]), flips, strict=True):
                logits = logits.flip(flip) if flip else logits
                total = logits.float() if total is None else total.add_(logits)
        if total is None:
            raise AssertionError("there is always the unmirrored copy")
        return total if len(self.flips) == 1 else total / len(self.flips)

    def _step(self, jobs: list[tuple[Tile, tuple[int, ...]]], result: Tensor) -> None:
        outputs = self._logits([(self.image[(slice(None), *tile.index)], flip) for tile, flip in jobs])
        for logits, (tile, flip) in zip(outputs, jobs, strict=True):
            _add(result, tile, logits.flip(flip) if flip else logits, 1 / len(self.flips))

    def _logits(self, inputs: list[tuple[Tensor, tuple[int, ...]]]) -> Tensor:
        return self.forward(torch.stack([tile.flip(flip) if flip else tile for tile, flip in inputs]).to(self.device))

    def _constant_logits(self, tile: Tensor) -> Tensor | None:
        flat = tile.flatten(1)
        first = flat[:, :1]
        # a look at a few voxels spares the pass over tiles that have content
        if bool(((flat[:, :: max(1, flat.shape[1] // 64)] - first).abs() > CONSTANT).any()):
            return None
        if bool(((flat - first).abs() > CONSTANT).any()):
            return None
        values = tuple(float(v) for v in first[:, 0])
        for known, logits in self.constant.items():
            if all(abs(a - b) <= CONSTANT for a, b in zip(known, values, strict=True)):
                return logits
        plain = self._logits([(tile, ())])[0].float()
        self.constant[values] = sum((plain.flip(f) for f in self.flips[1:]), plain) / len(self.flips)
        return self.constant[values]


def _forward_size(voxels: int, device: torch.device) -> int:
    """Patches of so many voxels in one forward."""
    if device.type == "cuda":
        return max(1, GPU_VOXELS // voxels)
    return max(2 if voxels <= CPU_PAIR_VOXELS else 1, CPU_VOXELS // voxels)


def _add(result: Tensor, tile: Tile, logits: Tensor, factor: float) -> None:
    target = result[(slice(None), *tile.index)]
    logits, weight = logits.to(result.device, torch.float32), tile.weight
    if weight is None:
        target.add_(logits, alpha=factor)
    else:
        target.addcmul_(logits, weight, value=factor)


def _flips(mirror_axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All combinations of mirrored axes, the plain one first, as dimensions of ``(C, *patch)``."""
    return [tuple(a + 1 for a in c) for n in range(len(mirror_axes) + 1) for c in combinations(mirror_axes, n)]


def _pad(image: Tensor, patch: tuple[int, ...]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad the last axes with zeros to at least the patch, the odd voxel behind; returns also the index that undoes
    it.
    """
    shape = image.shape[1:]
    missing = [max(0, p - s) for p, s in zip((0,) * (len(shape) - len(patch)) + patch, shape, strict=True)]
    crop = (slice(None), *(slice(m // 2, m // 2 + s) for m, s in zip(missing, shape, strict=True)))
    if not any(missing):
        return image, crop
    return F.pad(image, [side for m in reversed(missing) for side in (m // 2, m - m // 2)]), crop


def _tiles(
    shape: Sequence[int], patch: tuple[int, ...], step_size: float, device: torch.device, blending: str = "gaussian"
) -> Iterator[Tile]:
    """All tiles of a padded volume; 2D patches go through every slice of the first axis."""
    slices = range(shape[0]) if len(patch) < len(shape) else (None,)
    axes = [_axis(s, p, step_size, device, blending) for s, p in zip(shape[-len(patch) :], patch, strict=True)]
    for z, places in product(slices, list(product(*axes))):
        index = tuple(place for place, _ in places)
        yield Tile(index if z is None else (z, *index), tuple(line for _, line in places))


def _axis(
    size: int, patch: int, step_size: float, device: torch.device, blending: str
) -> list[tuple[slice, Tensor | None]]:
    """Range and normalised weight of each tile along one axis."""
    starts = tile_starts(size, patch, step_size)
    if len(starts) == 1:
        return [(slice(0, patch), None)]
    line, total = gaussian_weight(patch) if blending == "gaussian" else np.ones(patch), np.zeros(size)
    for s in starts:
        total[s : s + patch] += line
    shares = [torch.from_numpy((line / total[s : s + patch]).astype(np.float32)).to(device) for s in starts]
    return [(slice(s, s + patch), share) for s, share in zip(starts, shares, strict=True)]
