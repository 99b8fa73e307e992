"""Training and validation batches of radiographs; a training batch is a pure function of seed and step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from medkd.detection.job import DetectionJob
from medkd.detection.letterbox import PADDING, letterbox, placed
from medkd.detection.plan import DetectionAugmentation
from medkd.detection.sampling import UnlabelledSteps, draw_epoch, walk
from medkd.detection.store import DetectionStore
from medkd.evaluation.detection.predictions import Boxes
from medkd.training.loading import load_batches

Sample = tuple[Tensor, Tensor, Tensor]
"""Image ``(3, S, S)`` in [0, 1], boxes ``(n, 4)`` in its pixels, classes ``(n,)``."""
Batch = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]
"""Images ``(B, 3, S, S)``, and per image boxes and classes."""

_SMALLEST = 2.0  # side in pixels below which a box is no longer worth learning
_VISIBLE = 0.1  # share of a box' area that must stay in the image
_LEAST_SCALE = 0.1


def load_sample(store: DetectionStore, case: str, size: int, sides: tuple[int, int] | None = None) -> Sample:
    """A stored case on the square that detectors see; ``sides`` as of
    :class:`~medkd.detection.base.DetectorSpec`.
    """
    square, place = letterbox(store.image(case), size, sides=sides)
    boxes, classes = store.boxes(case)
    return square, torch.from_numpy(place.forth(boxes)).float(), torch.from_numpy(classes)


def load_ignored(store: DetectionStore, case: str, size: int, sides: tuple[int, int] | None = None) -> Boxes | None:
    """The boxes around crowds of a stored case on the same square; None where there are none."""
    ignored = store.drawn(case).ignored
    if ignored is None:
        return None
    return Boxes.of(placed(store.size(case), size, sides=sides).forth(ignored.boxes), ignored.classes)


def augment(sample: Sample, rule: DetectionAugmentation, rng: np.random.Generator) -> Sample:
    """Scale, move, turn, mirror and brighten a sample at random.

    Boxes are clamped to the image; those of which less than a tenth is left, or that are narrower than 2 pixels, are
    dropped. Mosaic is not done here.
    """
    pixels, raw, classes = sample
    size = pixels.shape[-1]
    image = tv_tensors.Image(pixels)
    boxes = tv_tensors.BoundingBoxes(raw, format="XYXY", canvas_size=(size, size))
    factor = max(1 + rule.scale * rng.uniform(-1, 1), _LEAST_SCALE)
    angle = rule.degrees * rng.uniform(-1, 1)
    shift = [float(rule.translate * size * value) for value in rng.uniform(-1, 1, 2)]
    image = transforms.affine(image, angle, shift, factor, [0.0, 0.0], InterpolationMode.BILINEAR, fill=PADDING)
    boxes = transforms.affine(boxes, angle, shift, factor, [0.0, 0.0])
    if rng.random() < rule.fliplr:
        image, boxes = transforms.horizontal_flip(image), transforms.horizontal_flip(boxes)
    if rng.random() < rule.flipud:
        image, boxes = transforms.vertical_flip(image), transforms.vertical_flip(boxes)
    image = transforms.adjust_brightness(image, max(1 + rule.brightness * rng.uniform(-1, 1), 0.0))
    moved = boxes.as_subclass(Tensor).clamp(0, size)
    sides = moved[:, 2:] - moved[:, :2]
    whole = (raw[:, 2:] - raw[:, :2]).prod(-1) * factor**2
    kept = (
        (sides.amin(-1) >= _SMALLEST) & (sides.prod(-1) >= _VISIBLE * whole)
        if len(moved)
        else torch.zeros(0, dtype=torch.bool)
    )
    return image.as_subclass(Tensor), moved[kept], classes[kept]


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples as a batch."""
    images, boxes, classes = zip(*samples, strict=True)
    return torch.stack(images), boxes, classes


class TrainingBatches(Dataset[Batch]):
    """The batch of every step of a run.

    The images of an epoch are those that :func:`~medkd.detection.sampling.draw_epoch` draws, in its order; where an
    epoch has more steps than they fill, they are shown again, changed in another way. Between these batches come those
    of images without annotation.

    Args:
        job: what is trained.
        steps: batches per epoch.
        part: samples of each batch that are wanted, as places in it; None for all.

    Attributes:
        kinds: which steps are of images without annotation.
    """

    def __init__(self, job: DetectionJob, steps: int, part: range | None = None) -> None:
        self._plan, self._budget, self._cases = job.plan, job.budget, job.train
        self._spec, self._steps = job.detector.spec, steps
        self._part = range(job.budget.batch_size) if part is None else part
        self._store = DetectionStore(job.store)
        self._annotations = {case: self._store.names(case) for case in job.train}
        self._unlabelled = job.unlabelled
        self.kinds = UnlabelledSteps(job.unlabelled_share)
        self._drawn: tuple[int, list[str]] = (-1, [])

    def __len__(self) -> int:
        return self._steps * self._budget.epochs

    def __getitem__(self, step: int) -> Batch:
        """The batch of one step."""
        cases = self._plain_cases(step) if self.kinds.is_unlabelled(step) else self._labelled_cases(step)
        return collate([self._sample(cases[index], step, index) for index in self._part])

    def _labelled_cases(self, step: int) -> list[str]:
        epoch, size = step // self._steps, self._budget.batch_size
        drawn, begin = self.drawn(epoch), epoch * self._steps
        place = step - begin - (self.kinds.before(step) - self.kinds.before(begin))
        return [drawn[(place * size + i) % len(drawn)] for i in range(size)]

    def _plain_cases(self, step: int) -> list[str]:
        size = self._budget.batch_size
        return walk(self._unlabelled, self._budget.seed, self.kinds.before(step) * size, size)

    def drawn(self, epoch: int) -> list[str]:
        """The cases of an epoch, in order."""
        if self._drawn[0] != epoch:
            self._drawn = (epoch, draw_epoch(self._cases, self._annotations, self._plan, self._budget.seed, epoch))
        return self._drawn[1]

    def _sample(self, case: str, step: int, index: int) -> Sample:
        rng = np.random.default_rng([self._budget.seed, step, index])
        sample = load_sample(self._store, case, self._spec.image_size, self._sides(rng))
        return augment(sample, self._plan.augmentation, rng)

    def _sides(self, rng: np.random.Generator) -> tuple[int, int] | None:
        """How large an image may be, with the short side that is drawn for it."""
        plan, sides = self._plan, self._spec.sides
        longest = self._spec.image_size if sides is None else sides[0]
        if plan.short_sides:
            return longest, int(rng.choice(plan.short_sides))
        if plan.short_range:
            return longest, int(rng.integers(plan.short_range[0], plan.short_range[1] + 1))
        return sides


def steps_per_epoch(job: DetectionJob) -> int:
    """The budget's, or as many as one pass over the drawn images takes."""
    if job.budget.iterations_per_epoch:
        return job.budget.iterations_per_epoch
    drawn = len(TrainingBatches(job, 1).drawn(0)) if job.train else 0
    labelled, unlabelled = (-(-count // job.budget.batch_size) for count in (drawn, len(job.unlabelled)))
    return UnlabelledSteps(job.unlabelled_share).steps_of(labelled, unlabelled)


def iterate(batches: TrainingBatches, first: int, workers: int, *, pin: bool = False) -> Iterator[Batch]:
    """Yield the batches from step ``first`` to the end, see :func:`medkd.training.loading.load_batches`."""
    return load_batches(batches, len(batches), first, workers, pin=pin)
