"""medkd's store as ultralytics' data: its own augmentation and collation, but labels, sampling and errors are
medkd's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from medkd.core.errors import DataError
from medkd.core.files import write_text
from medkd.detection.job import DetectionJob
from medkd.detection.sampling import UnlabelledSteps, draw_epoch, walk
from medkd.detection.store import DetectionStore
from medkd.detection.yolo.library import YAML, InfiniteDataLoader, YOLODataset, seed_worker
from medkd.training.ranks import Ranks

UNLABELLED = "unlabelled"  # name of the list of images without annotation
APART = 1_000_003
"""Between the seeds of two processes' augmentation."""

STORE = "store"
"""Key of the data description under which the store's folder stands."""


class StoreDataset(YOLODataset):
    """ultralytics' data set with the labels that the store's index holds.

    So nothing is scanned, and no cache of labels is written next to images that several runs may be reading.
    """

    @property
    def store(self) -> Path:
        """Folder of the store."""
        return Path(self.data[STORE])

    def get_labels(self) -> list[dict[str, Any]]:
        """The labels of ``im_files``, as ultralytics reads them from text files."""
        store = DetectionStore(self.store)
        return [self._label(store, path) for path in self.im_files]

    @staticmethod
    def _label(store: DetectionStore, path: str) -> dict[str, Any]:
        case = Path(path).stem
        width, height = store.size(case)
        boxes, classes = store.boxes(case)
        centres = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        return {
            "im_file": path,
            "shape": (height, width),
            "cls": classes.astype(np.float32)[:, None],
            "bboxes": (centres / np.array([width, height] * 2)).astype(np.float32),
            "segments": [],
            "keypoints": None,
            "normalized": True,
            "bbox_format": "xywh",
        }

    def load_image(self, i: int, *args: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """See ultralytics.

        Raises:
            DataError: the image is missing or damaged.
        """
        try:
            return super().load_image(i, *args, **kwargs)
        except FileNotFoundError as error:
            raise DataError(
                f"Cannot read the stored image {self.im_files[i]}; delete it and run medkd_plan_and_preprocess again."
            ) from error


class EpochSampler(Sampler[int]):
    """Passes of equal length through the drawn epochs, one after the other.

    ultralytics wants all passes equally long, which drawn epochs need not be; so a pass ends after ``length`` images
    and the next one goes on from there.

    Args:
        draw: epoch → places of its images.
        length: images of a pass.
    """

    def __init__(self, draw: Callable[[int], list[int]], length: int) -> None:
        self._draw = draw
        self._length = length
        self._drawn = 0
        self._rest: list[int] = []

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        while len(self._rest) < self._length:
            self._rest += self._draw(self._drawn)
            self._drawn += 1
        now, self._rest = self._rest[: self._length], self._rest[self._length :]
        return iter(now)

    def go_to(self, number: int) -> None:
        """Let the next pass be this one, whatever was drawn so far: a continued training does so, and a loader that
        starts anew.
        """
        self._drawn, self._rest = 0, []
        for _ in range(number):
            iter(self)


class MixedSampler(Sampler[int]):
    """Whole batches of annotated images and, evenly spread between them, of images without annotation.

    Args:
        labelled: batches of annotated images, of which each pass is one; None for none.
        plain: position, count → places of images without annotation.
        kinds: which steps show the latter.
        batch: images of a step.
        steps: of a pass.
    """

    def __init__(
        self,
        labelled: EpochSampler | None,
        plain: Callable[[int, int], list[int]],
        kinds: UnlabelledSteps,
        batch: int,
        steps: int,
    ) -> None:
        self._labelled = labelled
        self._plain = plain
        self._kinds = kinds
        self._batch = batch
        self._steps = steps
        self._pass = 0

    def __len__(self) -> int:
        return self._steps * self._batch

    def __iter__(self) -> Iterator[int]:
        first, self._pass = self._pass * self._steps, self._pass + 1
        places: list[int] = []
        for step in range(first, first + self._steps):
            if self._labelled is None or self._kinds.is_unlabelled(step):
                places += self._plain(self._kinds.before(step) * self._batch, self._batch)
            else:
                places += self._labelled
        return iter(places)

    def go_to(self, number: int) -> None:
        """See :meth:`EpochSampler.go_to`."""
        self._pass = number
        if self._labelled is not None:
            step = number * self._steps
            self._labelled.go_to(step - self._kinds.before(step))


class PartSampler(Sampler[int]):
    """This process' part of every batch of a sampler that gives whole batches.

    Args:
        whole: what all processes together show.
        batch: images of a step.
        part: places in a batch.
    """

    def __init__(self, whole: EpochSampler | MixedSampler, batch: int, part: range) -> None:
        self._whole, self._batch, self._part = whole, batch, part

    def __len__(self) -> int:
        return len(self._whole) // self._batch * len(self._part)

    def __iter__(self) -> Iterator[int]:
        for number, place in enumerate(self._whole):
            if number % self._batch in self._part:
                yield place

    def go_to(self, number: int) -> None:
        """See :meth:`EpochSampler.go_to`."""
        self._whole.go_to(number)


class MixedDataset(Dataset[dict[str, Any]]):
    """Two data sets one after the other. Each makes mosaics of its own images only, since one of an annotated image and
    one without would have boxes that are missing.

    Args:
        parts: the annotated images, then those without annotation.
    """

    def __init__(self, parts: Sequence[StoreDataset]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, place: int) -> dict[str, Any]:
        for part in self._parts:
            if place < len(part):
                found: dict[str, Any] = part[place]
                return found
            place -= len(part)
        raise IndexError(place)

    def close_mosaic(self, hyp: Any) -> None:
        """Stop mosaics in both."""
        for part in self._parts:
            part.close_mosaic(hyp)


def mixed_loader(
    job: DetectionJob, parts: Sequence[StoreDataset], batch: int, workers: int, ranks: Ranks
) -> InfiniteDataLoader:
    """:func:`training_loader` where there are images without annotation.

    Args:
        job: what is trained.
        parts: the data sets of the lists that :func:`write_data` wrote: of the annotated images where there are any,
            and of those without annotation.
        batch: images per step.
        workers: loader processes.
        ranks: the processes that have a part of every batch each.
    """
    places: dict[str, int] = {}
    for part in parts:
        for path in part.im_files:
            places[Path(path).stem] = len(places)
    annotations, kinds = DetectionStore(job.store).annotations(), UnlabelledSteps(job.unlabelled_share)

    def draw(epoch: int) -> list[int]:
        return [places[case] for case in draw_epoch(job.train, annotations, job.plan, job.budget.seed, epoch)]

    def plain(position: int, count: int) -> list[int]:
        return [places[case] for case in walk(job.unlabelled, job.budget.seed, position, count)]

    drawn = len(draw(0)) if job.train else 0
    once = kinds.steps_of(-(-drawn // batch), -(-len(job.unlabelled) // batch))
    labelled = EpochSampler(draw, batch) if job.train else None
    sampler = MixedSampler(labelled, plain, kinds, batch, job.budget.iterations_per_epoch or once)
    return _loader(job, MixedDataset(parts), sampler, batch, workers, parts[0].collate_fn, ranks)


def training_loader(
    job: DetectionJob, dataset: StoreDataset, batch: int, workers: int, ranks: Ranks
) -> InfiniteDataLoader:
    """The loader of training batches: ``budget.iterations_per_epoch`` of them, or one pass over the drawn images, which
    is filled up to whole batches where several processes have a part of each.
    """
    places = {Path(path).stem: place for place, path in enumerate(dataset.im_files)}
    annotations = DetectionStore(job.store).annotations()

    def draw(epoch: int) -> list[int]:
        return [places[case] for case in draw_epoch(job.train, annotations, job.plan, job.budget.seed, epoch)]

    length = job.budget.iterations_per_epoch * batch or len(draw(0))
    if not ranks.alone:
        length = -(-length // batch) * batch
    sampler = EpochSampler(draw, length)
    return _loader(job, dataset, sampler, min(batch, length), workers, dataset.collate_fn, ranks)


def _loader(
    job: DetectionJob,
    dataset: Any,
    sampler: EpochSampler | MixedSampler,
    batch: int,
    workers: int,
    collate: Callable[..., Any],
    ranks: Ranks,
) -> InfiniteDataLoader:
    part = ranks.part(batch)
    workers = min(workers, os.cpu_count() or 1)
    return InfiniteDataLoader(
        dataset=dataset,
        batch_size=len(part),
        sampler=sampler if ranks.alone else PartSampler(sampler, batch, part),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=job.device.type == "cuda",
        collate_fn=collate,
        worker_init_fn=seed_worker,
        generator=torch.Generator().manual_seed(job.budget.seed + ranks.number * APART),
    )


def write_data(job: DetectionJob, folder: Path) -> Path:
    """Write ``data.yaml`` and the lists ``train.txt`` and ``val.txt`` that ultralytics reads, and ``unlabelled.txt``
    where there are such images; returns the first.

    Raises:
        DataError: there are no training cases.
    """
    if not job.train and not job.unlabelled:
        raise DataError(f"{job.store}: this fold has no training cases; check the splits.")
    store = DetectionStore(job.store)
    training = job.train or job.unlabelled
    lists = {"train": training, "val": job.val or training[:1]}
    if job.unlabelled:
        lists[UNLABELLED] = job.unlabelled
    for name, cases in lists.items():
        write_text(folder / f"{name}.txt", "".join(f"{store.image_path(case).absolute()}\n" for case in cases))
    path = folder / "data.yaml"
    names = dict(enumerate(job.plan.categories))
    content = {"path": str(folder.absolute()), "train": "train.txt", "val": "val.txt", "names": names, "channels": 3}
    YAML.save(path, {**content, STORE: str(job.store.absolute())})
    return path
