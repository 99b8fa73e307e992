"""Batches as a pure function of the step, so that any run can be continued exactly, with any number of workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medkd.preprocessing.store import CaseStore, StoredCase
from medkd.training.augmentation import Augment, centre_crop
from medkd.training.loading import load_batches
from medkd.training.sampling import UNLABELLED, PatchSampler
from medkd.training.targets import SoftPatch, open_places, open_target

Batch = tuple[Tensor, ...]  # images, labels, and with cached targets the teacher's logits
FOREGROUND = 0.33  # nnU-Net's share of patches centred on a structure
_OPEN_CASES = 128  # memory-mapped cases kept open per process, well below the usual limit of 1024 files


@dataclass(frozen=True)
class Unlabelled:
    """Cases whose labels are not known, or not used.

    Attributes:
        cases: their ids.
        share: of the samples that are drawn from them.
        places: folder of a :class:`~medkd.training.targets.TargetStore` that says where the teacher sees structures.
    """

    cases: tuple[str, ...]
    share: float
    places: Path


class PatchBatches(Dataset[Batch]):
    """The batch of every step of a run.

    Batch ``t`` depends on the seed, the stream and ``t`` only. The last ``33 %`` of each batch (rounded as in nnU-Net:
    one of two), or another share, is centred on a structure.

    Args:
        store: folder of a :class:`~medkd.preprocessing.store.CaseStore`.
        cases: case ids to draw from.
        sampler: patch geometry.
        batch_size: patches per batch.
        steps: number of batches.
        seed: the run's seed.
        augmentation: None takes the middle of what was read.
        stream: separates training (0) from validation (1) randomness.
        foreground: share of a batch's patches that are centred on a structure.
        targets: folder of a :class:`~medkd.training.targets.TargetStore` that holds the teacher's output for the cases,
            if any; images and labels do not depend on it.
        unlabelled: further cases, of which patches are labelled :data:`~medkd.training.sampling.UNLABELLED` throughout;
            their patches are centred on structures that the teacher sees.
        part: those samples of every batch that are read; None is all. The others are what they are without it.
    """

    def __init__(
        self,
        store: Path,
        cases: Sequence[str],
        sampler: PatchSampler,
        batch_size: int,
        steps: int,
        seed: int,
        augmentation: Augment | None = None,
        stream: int = 0,
        foreground: float = FOREGROUND,
        targets: Path | None = None,
        unlabelled: Unlabelled | None = None,
        part: range | None = None,
    ) -> None:
        self._store = store
        self._cases = list(cases)
        self._sampler = sampler
        self._batch_size = batch_size
        self._steps = steps
        self._seed = seed
        self._augmentation = augmentation
        self._stream = stream
        self._foreground = foreground
        self._targets = targets
        self._unlabelled = unlabelled
        self._part = range(batch_size) if part is None else part

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        """Image ``(B, C, *patch)`` float32 and label values ``(B, 1, *patch)`` int16 of one step, and with targets the
        teacher's logits ``(B, K, *patch)`` float32."""
        samples = [self._sample(step, index) for index in self._part]
        return tuple(torch.stack(parts) for parts in zip(*samples, strict=True))

    def _sample(self, step: int, index: int) -> Batch:
        rng = np.random.default_rng([self._seed, self._stream, step, index])
        unlabelled = self._unlabelled
        if unlabelled is None or rng.random() >= unlabelled.share:
            case = self._cases[rng.integers(len(self._cases))]
            return self._patch(case, _open(self._store, case), rng, index)
        case = unlabelled.cases[rng.integers(len(unlabelled.cases))]
        seen = replace(_open(self._store, case), locations=open_places(unlabelled.places, case))
        sample = self._patch(case, seen, rng, index)
        sample[1].fill_(UNLABELLED)
        return sample

    def _patch(self, name: str, case: StoredCase, rng: np.random.Generator, index: int) -> Batch:
        foreground = index >= round(self._batch_size * (1 - self._foreground))
        target = None if self._targets is None else open_target(self._targets, name)
        arrays = self._sampler.sample(case, rng, target, foreground=foreground)
        image, label = torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1]).to(torch.int16)
        soft: list[SoftPatch] = list(arrays[2:])
        if self._augmentation is None:
            size, first = self._sampler.patch_size, self._sampler.margin
            return centre_crop(image, size), centre_crop(label, size), *(part.crop(first, size) for part in soft)
        with _seeded(int(rng.integers(2**31))):
            return self._augmentation(image, label, *soft)


def _open(store: Path, case: str) -> StoredCase:
    """A case as it is now: one that was preprocessed anew in the meantime is opened anew."""
    return _open_in_state(store, case, CaseStore(store).state(case))


@lru_cache(maxsize=_OPEN_CASES)
def _open_in_state(store: Path, case: str, state: tuple[int, ...]) -> StoredCase:
    return CaseStore(store).open(case)


class _seeded:
    """Seed NumPy's and torch's global generators for a block, and restore them after it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._numpy, self._torch = np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
        np.random.seed(self._seed)  # noqa: NPY002 - the transforms draw from the global generator
        torch.random.default_generator.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.random.set_rng_state(self._torch)


def iterate(batches: PatchBatches, first: int, workers: int, *, pin: bool = False) -> Iterator[Batch]:
    """Yield the batches from step ``first`` to the end, see :func:`medkd.training.loading.load_batches`."""
    return load_batches(batches, len(batches), first, workers, pin=pin)
