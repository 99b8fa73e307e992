"""Full-volume logits from a network that sees one patch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.errors import RunError
from medkd.runtime.tiles import mirrorings, padding, tile_places

Forward = Callable[[Tensor], Tensor]

# Voxels per forward. On a CPU two copies share the weights and divide among the cores better than one; more of them
# only leave the cache, and two of a large patch cost memory for nothing. On a GPU batches fill the multiprocessors.
CPU_VOXELS = 32**3
CPU_PAIR_VOXELS = 96**3
GPU_VOXELS = 4 * 128**3
_SLICE_BYTES = 64 * 2**20  # of logits of slices that a 2D network gives together
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


def predict_rows(
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
) -> Iterator[Tensor]:
    """What :func:`predict_logits` returns, piece by piece along the first axis: slices are given away as soon as no
    further tile covers them, so that no more logits are held than one row of tiles has.

    Args:
        forward: as for :func:`predict_logits`, and so are the others.
        image: likewise.
        patch_size: likewise.
        num_outputs: likewise.
        step_size: likewise.
        tile_batch: likewise.
        mirror_axes: likewise.
        device: likewise.
        blending: likewise.

    Yields:
        ``(K, slices, y, x)`` float32, from the first slice to the last.
    """
    patch = tuple(patch_size)
    device = image.device if device is None else device
    batch = tile_batch or _forward_size(prod(patch), device)
    padded, (_, depth, *crop) = _pad(image, patch)
    window = _Window(forward, padded, _flips(mirror_axes), device)
    together = max(1, _SLICE_BYTES // (4 * num_outputs * prod(padded.shape[2:])))
    rows = patch[0] if len(patch) == 3 else min(together, padded.shape[1])
    groups = _groups(list(_tiles(padded.shape[1:], patch, step_size, image.device, blending)), rows)
    held = torch.zeros((num_outputs, rows, *padded.shape[2:]), device=image.device)
    starts = list(groups)
    for start, following in zip(starts, [*starts[1:], padded.shape[1]], strict=True):
        with torch.inference_mode():
            window.image = padded[:, start : start + rows]
            window.run(groups[start], batch, held)
        for place in range(start, following):
            if depth.start <= place < depth.stop:
                yield held[(slice(None), slice(place - start, place - start + 1), *crop)].clone()
        _forget(held, following - start)


def _forget(held: Tensor, count: int) -> None:
    """Drop the first slices of ``(K, slices, y, x)``, and begin as many at the end; in place, since all are large."""
    for place in range(held.shape[1] - count):
        held[:, place] = held[:, place + count]
    held[:, held.shape[1] - count :] = 0


def _groups(tiles: Sequence[Tile], rows: int) -> dict[int, list[Tile]]:
    """Tiles by the first of so many slices that they cover, counted from there."""
    found: dict[int, list[Tile]] = {}
    for tile in tiles:
        place, *others = tile.index
        inside: slice | int
        if isinstance(place, slice):
            start, inside = place.start, slice(0, place.stop - place.start)
        else:
            start, inside = place - place % rows, place % rows
        found.setdefault(start, []).append(Tile((inside, *others), tile.lines))
    return found


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
            _add(result, tile, logits, 1 / len(self.flips), flip)

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


def _add(result: Tensor, tile: Tile, logits: Tensor, factor: float, flip: tuple[int, ...] = ()) -> None:
    """Add a tile's weighted logits, turned back; a few outputs at a time, since copies of all of them are large."""
    target, weight = result[(slice(None), *tile.index)], tile.weight
    together = max(1, _SLICE_BYTES // (4 * prod(logits.shape[1:])))
    for first in range(0, len(logits), together):
        some = logits[first : first + together].to(result.device, torch.float32)
        some = some.flip(flip) if flip else some
        if weight is None:
            target[first : first + together].add_(some, alpha=factor)
        else:
            target[first : first + together].addcmul_(some, weight, value=factor)


def _flips(mirror_axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All combinations of mirrored axes, the plain one first, as dimensions of ``(C, *patch)``."""
    return [tuple(axis + 1 for axis in axes) for axes in mirrorings(mirror_axes)]


def _pad(image: Tensor, patch: tuple[int, ...]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad with zeros to at least the patch; returns also the index that undoes it."""
    added = padding(image.shape[1:], patch)
    crop = [slice(None)]
    for (before, _), size in zip(added, image.shape[1:], strict=True):
        crop.append(slice(before, before + size))
    if not any(map(any, added)):
        return image, tuple(crop)
    sides: list[int] = []
    for before, behind in reversed(added):
        sides += [before, behind]
    return F.pad(image, sides), tuple(crop)


def _tiles(
    shape: Sequence[int], patch: tuple[int, ...], step_size: float, device: torch.device, blending: str = "gaussian"
) -> Iterator[Tile]:
    """All tiles of a padded volume; 2D patches go through every slice of the first axis."""
    on_device: dict[int, Tensor] = {}
    for z, corner in tile_places(shape, patch, step_size, blending):
        lines: list[Tensor | None] = []
        for place in corner:
            if place.weights is None:
                lines.append(None)
                continue
            key = id(place.weights)
            if key not in on_device:
                on_device[key] = torch.from_numpy(place.weights).to(device)
            lines.append(on_device[key])
        index = tuple(place.voxels for place in corner)
        yield Tile(index if z is None else (z, *index), tuple(lines))
