"""Cached soft targets on disk: one byte per output and voxel, memory-mapped, so that a patch costs the reading of a
patch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.errors import RunError
from medkd.core.files import atomic_path
from medkd.core.made_with import state_if_there
from medkd.core.serial import load, save, to_data
from medkd.preprocessing.store import CaseRecord

REACH = 16.0  # logits further than this below the largest one (regions: from 0) are clipped: probabilities below 1e-7
DESCRIPTION = "targets.json"
_PLACES = ".places.npz"  # where the teacher sees structures
_TOP, _HALF = (
    255.0,
    127.0,
)  # largest code of a distance to the largest logit, and of a region's logit to either side of 128
_SLAB = 2**22  # values that are encoded at a time
_OPEN_TARGETS = 128  # memory-mapped cases kept open per process


@dataclass(frozen=True)
class Coding:
    """How the logits of one case are written as bytes.

    Softmax classes: ``z_k = m − 16 (q_k / 255)²``, where ``m`` is the voxel's largest logit, in a channel of its own
    with equal steps from
    ``low`` to ``high``. Regions: ``z_k = ±16 (|q_k − 128| / 127)²``. The squares put the steps where probabilities
    change most: these are off by less than 0.008. Logits are stored, not probabilities, since some methods compare
    logits over space or soften them; they are also what prediction resamples.

    Attributes:
        outputs: K.
        regions: sigmoid regions instead of softmax classes.
        low: smallest of the voxels' largest logits.
        high: greatest of them.
        outside: what the largest logit is taken to be outside of the case: the mean.
    """

    outputs: int
    regions: bool
    low: float = 0.0
    high: float = 0.0
    outside: float = 0.0

    @classmethod
    def of(cls, logits: Tensor, regions: bool) -> Coding:
        """The coding of a case with these logits, ``(K, z, y, x)``."""
        if regions:
            return cls(len(logits), True)
        level = logits.amax(0)
        return cls(len(logits), False, float(level.min()), float(level.max()), float(level.double().mean()))

    @property
    def channels(self) -> int:
        """Bytes per voxel."""
        return channels(self.outputs, self.regions)

    @property
    def _step(self) -> float:
        return max(self.high - self.low, 1e-6) / _TOP

    @property
    def fill(self) -> np.ndarray:
        """The codes ``(channels, 1, 1, 1)`` of a voxel outside the case: background, or no region, with certainty."""
        if self.regions:
            return np.ones((self.outputs, 1, 1, 1), np.uint8)
        level = round((self.outside - self.low) / self._step)
        return np.array([0, *[int(_TOP)] * (self.outputs - 1), level], np.uint8).reshape(-1, 1, 1, 1)

    def encode(self, logits: Tensor) -> Tensor:
        """Logits ``(K, *size)`` to codes ``(channels, *size)``, uint8."""
        if self.regions:
            root = (logits.abs() / REACH).clamp_(max=1).sqrt_().mul_(_HALF).round_()
            return torch.where(logits < 0, 128 - root, 128 + root).to(torch.uint8)
        level = logits.amax(0, keepdim=True)
        root = ((level - logits) / REACH).clamp_(max=1).sqrt_().mul_(_TOP).round_()
        return torch.cat([root, ((level - self.low) / self._step).round_().clamp_(0, _TOP)]).to(torch.uint8)

    def interpolate(self, codes: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits after a linear change that takes what comes from outside as 0; here that becomes background."""
        outside = self.decode(torch.from_numpy(self.fill)).view(-1, *(1,) * (codes.ndim - 1))
        return change(self.decode(codes).sub_(outside)).add_(outside)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``(channels, *size)`` to logits ``(K, *size)``, float32."""
        if self.regions:
            root = codes.float().sub_(128).mul_(1 / _HALF)
            return root.abs().mul_(root).mul_(REACH)
        level = codes[self.outputs].float().mul_(self._step).add_(self.low)
        logits = torch.empty(self.outputs, *codes.shape[1:])
        for own, code in zip(logits, codes, strict=False):  # one after another, so that each stays in cache
            root = code.float()
            torch.addcmul(level, root, root, value=-REACH / _TOP**2, out=own)
        return logits


def channels(outputs: int, regions: bool) -> int:
    """Bytes per voxel of cached targets: one per output, and for softmax classes one for the largest logit."""
    return outputs + (not regions)


@dataclass(frozen=True)
class TargetRecord:
    """``CASE.json``, written last: a target without it does not exist.

    Attributes:
        source: hash of the preprocessed case that it was predicted from, see :func:`source_of`.
        coding: what the bytes mean.
    """

    source: str
    coding: Coding
    schema: int = 1


@dataclass(frozen=True)
class StoredTarget:
    """The soft target of one case: memory-mapped codes ``(channels, z, y, x)`` and what they mean."""

    codes: np.ndarray
    coding: Coding


@dataclass(frozen=True)
class SoftPatch:
    """The teacher's output where a patch lies; of the case's bytes only those are read that the training patch needs.

    Attributes:
        target: the case's codes ``(channels, *shape)`` and what they mean; one slice in 2D.
        start: first voxel of the patch, negative where it begins before the case.
        size: voxels of the patch.
    """

    target: StoredTarget
    start: tuple[int, ...]
    size: tuple[int, ...]

    def codes(self, first: Sequence[int] | None = None, size: Sequence[int] | None = None) -> Tensor:
        """Codes ``(channels, *size)`` of the patch, or of a box in it that begins at ``first``."""
        begin = self.start if first is None else [a + b for a, b in zip(self.start, first, strict=True)]
        fill = self.target.coding.fill.reshape(-1, *(1,) * len(self.size))
        return torch.from_numpy(read_padded(self.target.codes, list(begin), tuple(size or self.size), fill))

    def crop(self, first: Sequence[int], size: Sequence[int]) -> Tensor:
        """Logits ``(K, *size)`` of a box in the patch."""
        return self.target.coding.decode(self.codes(first, size))

    def sample(self, grid: Tensor) -> Tensor:
        """Logits ``(K, *size)`` at the places of a grid, linearly interpolated; outside of the patch is background.

        Args:
            grid: ``(*size, n)`` as :func:`torch.nn.functional.grid_sample` takes it without ``align_corners``, for the
                last ``n`` axes of the patch; an axis before them stays as it is.
        """
        count = grid.shape[-1]
        kept, extent = self.size[:-count], torch.tensor(self.size[-count:])
        place = ((grid.flip(-1) + 1) * extent - 1) / 2  # in voxels, axes in the order of the patch
        low, high = (bound.view(-1, count) for bound in torch.aminmax(place.reshape(-1, count), dim=0))
        first = torch.minimum(low.floor().long()[0].clamp(min=0), extent - 1)
        size = (torch.minimum(high.floor().long()[0] + 2, extent) - first).clamp(min=1)
        codes = self.codes([*(0,) * len(kept), *first.tolist()], [*kept, *size.tolist()])
        inside = ((2 * (place - first) + 1) / size - 1).flip(-1)

        def change(logits: Tensor) -> Tensor:
            flat = logits.reshape(1, -1, *size.tolist())
            moved = F.grid_sample(flat, inside[None], mode="bilinear", padding_mode="zeros", align_corners=False)
            return moved.view(logits.shape[0], *kept, *grid.shape[:-1])

        return self.target.coding.interpolate(codes, change)


def _reserve(file: Path) -> None:
    """Take the room on the disk that a mapped file has so far in name only: writing into a map on a full disk would end
    the process without a word.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


class TargetStore:
    """The soft targets of one teacher for the cases of one configuration: ``CASE.npy`` and ``CASE.json``; of scans
    without labels also ``CASE.places.npz``.

    Args:
        folder: ``<root>/preprocessed/DATASET/CONFIGURATION_targets/KEY``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def has(self, case: str, source: str) -> bool:
        """Whether there is a complete target of a case that was predicted from this very preprocessed case."""
        path = self.folder / f"{case}.json"
        return path.exists() and (self.folder / f"{case}.npy").exists() and load(TargetRecord, path).source == source

    def write(self, case: str, source: str, logits: Tensor, regions: bool) -> None:
        """Store the logits ``(K, z, y, x)`` of a case; a reader sees the old target, none, or the new one.

        Raises:
            DataError: the folder cannot be written to.
        """
        coding = Coding.of(logits, regions)
        if not self.has(case, source):  # an equal one, made by a run beside this one, may be in use
            (self.folder / f"{case}.json").unlink(missing_ok=True)
        with atomic_path(self.folder / f"{case}.npy") as temporary:
            shape = (coding.channels, *logits.shape[1:])
            codes = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            _reserve(temporary)
            depth = max(1, _SLAB // max(logits[:, :1].numel(), 1))
            for first in range(0, logits.shape[1], depth):
                codes[:, first : first + depth] = coding.encode(logits[:, first : first + depth].cpu()).numpy()
            codes.flush()
            del codes
        save(self.folder / f"{case}.json", TargetRecord(source, coding))

    def has_places(self, case: str, source: str) -> bool:
        """Whether it is known where the teacher sees structures in this very preprocessed case."""
        path = self.folder / f"{case}{_PLACES}"
        if not path.exists():
            return False
        with np.load(path) as stored:
            return str(stored["source"]) == source

    def write_places(self, case: str, source: str, places: Mapping[int, np.ndarray]) -> None:
        """Store voxels ``(n, 3)`` of each structure that the teacher sees, for sampling patches around them.

        Raises:
            DataError: the folder cannot be written to.
        """
        named: dict[str, Any] = {str(entry): voxels for entry, voxels in places.items()}
        with atomic_path(self.folder / f"{case}{_PLACES}") as temporary:
            np.savez(temporary, source=np.array(source), **named)

    def places(self, case: str) -> dict[int, np.ndarray]:
        """What :meth:`write_places` stored.

        Raises:
            RunError: it is missing or damaged.
        """
        path = self.folder / f"{case}{_PLACES}"
        try:
            with np.load(path) as stored:
                return {int(key): stored[key] for key in stored.files if key != "source"}
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"{path} is damaged ({error}); delete it and start again.") from error

    def state(self, case: str) -> tuple[int, ...]:
        """What changes when a target is made anew; empty where it is not there."""
        return tuple(part for end in (".json", _PLACES) for part in state_if_there(self.folder / f"{case}{end}"))

    def open(self, case: str) -> StoredTarget:
        """Open a target for reading; cheap, no voxels are read.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            record = load(TargetRecord, self.folder / f"{case}.json")
            return StoredTarget(np.load(self.folder / f"{case}.npy", mmap_mode="r"), record.coding)
        except (OSError, ValueError, EOFError) as error:
            raise RunError(
                f"The cached target of {case} in {self.folder} is damaged ({error}); delete {case}.json there."
            ) from error


def open_target(folder: Path, case: str) -> StoredTarget:
    """:meth:`TargetStore.open`, remembered until the target is made anew."""
    return _open_target(folder, case, TargetStore(folder).state(case))


def open_places(folder: Path, case: str) -> dict[int, np.ndarray]:
    """:meth:`TargetStore.places`, remembered until the target is made anew."""
    return _open_places(folder, case, TargetStore(folder).state(case))


@lru_cache(maxsize=_OPEN_TARGETS)
def _open_target(folder: Path, case: str, state: tuple[int, ...]) -> StoredTarget:
    return TargetStore(folder).open(case)


@lru_cache(maxsize=_OPEN_TARGETS)
def _open_places(folder: Path, case: str, state: tuple[int, ...]) -> dict[int, np.ndarray]:
    return TargetStore(folder).places(case)


def source_of(record: CaseRecord) -> str:
    """Hash of what a preprocessed case was made from and how; a target of another hash is out of date."""
    parts = to_data([record.recipe, [file.content for file in record.files], record.properties.shape])
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def read_padded(array: np.ndarray, start: list[int], size: tuple[int, ...], fill: float | np.ndarray) -> np.ndarray:
    """Read ``array[:, start : start + size]``; what lies outside is ``fill``, one value or one per channel ``(C, 1,
    …)``.

    Only the needed part is read from disk.
    """
    inside, outside = [slice(None)], [slice(None)]
    for first, length, extent in zip(start, size, array.shape[1:], strict=True):
        low, high = min(max(first, 0), extent), max(min(first + length, extent), 0)
        inside.append(slice(low, max(low, high)))
        outside.append(slice(low - first, max(low, high) - first))
    if all(s.start == 0 and s.stop == n for s, n in zip(outside[1:], size, strict=True)):
        return np.array(array[tuple(inside)])
    result = np.full((array.shape[0], *size), fill, dtype=array.dtype)
    result[tuple(outside)] = array[tuple(inside)]
    return result
