"""medkd's store as ultralytics' data: its own augmentation and collation, but labels, sampling and errors are
medkd's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from medkd.core.errors import DataError
from medkd.core.files import write_text
from medkd.detection.job import DetectionJob
from medkd.detection.sampling import draw_epoch
from medkd.detection.store import DetectionStore
from medkd.detection.yolo.library import YAML, InfiniteDataLoader, YOLODataset, seed_worker

STORE = "store"
"""Key of the data description under which the store's folder stands."""


class StoreDataset(YOLODataset):
    """ultralytics' data set with the labels that the store's index holds.

    So nothing is scanned, and no cache of labels is written next to images that several runs may be reading.
    """

    def get_labels(self) -> list[dict[str, Any]]:
        """The labels of ``im_files``, as ultralytics reads them from text files."""
        store = DetectionStore(Path(self.data[STORE]))
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


def training_loader(job: DetectionJob, dataset: StoreDataset, batch: int, workers: int) -> InfiniteDataLoader:
    """The loader of training batches: ``budget.iterations_per_epoch`` of them, or one pass over the drawn images."""
    places = {Path(path).stem: place for place, path in enumerate(dataset.im_files)}
    annotations = DetectionStore(job.store).annotations()

    def draw(epoch: int) -> list[int]:
        return [places[case] for case in draw_epoch(job.train, annotations, job.plan, job.budget.seed, epoch)]

    length = job.budget.iterations_per_epoch * batch or len(draw(0))
    cuda = job.device.type == "cuda"
    workers = min(workers, os.cpu_count() or 1)
    return InfiniteDataLoader(
        dataset=dataset,
        batch_size=min(batch, length),
        sampler=EpochSampler(draw, length),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=cuda,
        collate_fn=dataset.collate_fn,
        worker_init_fn=seed_worker,
        generator=torch.Generator().manual_seed(job.budget.seed),
    )


def write_data(job: DetectionJob, folder: Path) -> Path:
    """Write ``data.yaml`` and the lists ``train.txt`` and ``val.txt`` that ultralytics reads; returns the first.

    Raises:
        DataError: there are no training cases.
    """
    if not job.train:
        raise DataError(f"{job.store}: this fold has no training cases; check the splits.")
    store = DetectionStore(job.store)
    for name, cases in (("train", job.train), ("val", job.val or job.train[:1])):
        write_text(folder / f"{name}.txt", "".join(f"{store.image_path(case).absolute()}\n" for case in cases))
    path = folder / "data.yaml"
    names = dict(enumerate(job.plan.categories))
    content = {"path": str(folder.absolute()), "train": "train.txt", "val": "val.txt", "names": names, "channels": 3}
    YAML.save(path, {**content, STORE: str(job.store.absolute())})
    return path
