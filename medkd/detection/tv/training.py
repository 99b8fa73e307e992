"""Training a detector of the torchvision family, alone or with a teacher, in the loop that segmentation uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.core.features import Progress
from medkd.detection.base import DetectionTarget, Detector, DetectorOutputs
from medkd.detection.job import DetectionJob
from medkd.detection.parts import whole_annotations
from medkd.detection.sampling import UnlabelledSteps
from medkd.detection.store import DetectionStore
from medkd.detection.tv.data import Batch, TrainingBatches, collate, iterate, load_ignored, load_sample, steps_per_epoch
from medkd.evaluation.detection.matching import match_coco
from medkd.evaluation.detection.metrics import average_precisions
from medkd.evaluation.detection.predictions import Boxes
from medkd.training.hooks import TellTracker
from medkd.training.shared_norm import share_norms
from medkd.training.trainer import LoopSettings, Trainer

_MOMENTUM, _WEIGHT_DECAY = 0.9, 1e-4
_CLIP = 35.0
_WARMUP_STEPS, _WARMUP_SHARE = 500, 0.1  # at most so many steps, and so much of the training
_MOST = 100  # detections per image in COCO's metric
_COLUMNS = 8  # of what validation sees: place, kind of row, box, class, score or loss
_LOSS, _FOUND, _DRAWN, _IGNORED = range(4)
_NOTHING = Boxes.of([], [])


def fit(job: DetectionJob) -> None:
    """Train one fold to the end of its budget, by SGD with warm-up and polynomial (or the plan's linear) decay.

    Raises:
        RunError: the loss or its gradient is no longer finite.
        DataError: a stored image is missing or damaged.
        PlanError: the plan's sampling draws no image.
    """
    trainer = DetectionTrainer(job, loop_settings(job))
    if job.tracking is not None:
        trainer.hooks = [*trainer.hooks, TellTracker(job.tracking)]
    trainer.fit(resume=job.resume)


def loop_settings(job: DetectionJob) -> LoopSettings:
    """How the loop runs: the plan's values where it has them."""
    plan = job.plan
    budget = replace(job.budget, iterations_per_epoch=steps_per_epoch(job))
    steps = budget.epochs * budget.iterations_per_epoch
    return LoopSettings(
        budget=budget,
        device=job.device,
        precision=job.precision,  # type: ignore[arg-type]  # checked by the options
        save_every=1,
        momentum=_MOMENTUM if plan.momentum is None else plan.momentum,
        weight_decay=_WEIGHT_DECAY if plan.weight_decay is None else plan.weight_decay,
        clip=(_CLIP if plan.clip is None else plan.clip) or None,
        power=0.9 if plan.final_learning_rate is None else 1.0,
        nesterov=False,
        floor=plan.final_learning_rate or 0.0,
        per_step=True,
        warmup=min(_WARMUP_STEPS if plan.warmup is None else plan.warmup, int(_WARMUP_SHARE * steps)),
        schedule="steps" if plan.milestones else "poly",
        milestones=tuple(epoch / budget.epochs for epoch in plan.milestones),
        speed=job.speed,
    )


class DetectionTrainer(Trainer):
    """Trains a detector; adds a distiller's terms to its own loss.

    Args:
        job: what is trained, on what.
        settings: the loop's settings.
    """

    network: Detector
    score_name: ClassVar[Literal["Dice", "AP"]] = "AP"

    def __init__(self, job: DetectionJob, settings: LoopSettings) -> None:
        super().__init__(job.detector, settings, job.folder)
        self.job = job
        self.distiller = None if job.distiller is None else job.distiller.to(settings.device)
        if self.distiller is not None:
            self.distiller.ranks = self.ranks
        share_norms(self.network, self.ranks)
        self._store = DetectionStore(job.store)
        self._kinds = UnlabelledSteps(job.unlabelled_share)

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Augmented radiographs, drawn as the plan says; each of several processes has its part of every batch."""
        return self._training_batches(first_step, self.ranks.part(self.settings.budget.batch_size))

    def _training_batches(self, first_step: int, part: range | None) -> Iterator[Batch]:
        batches = TrainingBatches(self.job, self.settings.budget.iterations_per_epoch, part)
        return iterate(batches, first_step, self.job.workers, pin=self.settings.device.type == "cuda")

    def helpers(self) -> nn.Module | None:
        """The method with its connectors and adapters, where there is one."""
        return None if self.distiller is None else self.distiller.method

    def networks(self) -> tuple[nn.Module, ...]:
        """The detector, and its teacher."""
        teacher = None if self.distiller is None else self.distiller.teacher
        return (self.network,) if teacher is None else (self.network, teacher)

    def compiled(self) -> nn.Module:
        """Backbone and pyramid, whose maps are their outputs; heads have sizes that differ from image to image."""
        pyramid = getattr(self.network, "pyramid", None)
        if pyramid is None:
            raise RunError(f"{self.network.spec.name} has no part that --compile could compile; leave it out.")
        part: nn.Module = pyramid
        return part

    def prepare(self) -> None:
        """The method's first stage, on the first batches of the training; a continued run finds its result in the
        checkpoint.
        """
        if self.distiller is not None and self.distiller.needs_preparation:
            self.distiller.prepare(self._annotated_batches())
            self.save_latest()

    def _annotated_batches(self) -> Iterator[Batch]:
        """The training batches, as all processes together have them; the teacher's boxes stand for those that are
        missing.
        """
        for step, batch in enumerate(self._training_batches(0, None)):
            yield self._annotated(self._move(batch)) if self._kinds.is_unlabelled(step) else batch

    def _annotated(self, batch: Batch) -> Batch:
        images = batch[0]
        if self.distiller is None:
            return batch
        with self.autocast():
            return (images, *self.distiller.annotate(images))

    def training_terms(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The detector's own terms, and the method's for the same batch; for images without annotation the method's
        alone.
        """
        images, boxes, classes = self._move(batch)
        missing = self._kinds.is_unlabelled(progress.step)
        if missing:
            images, boxes, classes = self._annotated((images, boxes, classes))
        with self.autocast():
            terms, outputs, target = self._losses((images, boxes, classes), progress)
            if self.distiller is None:
                return terms
            taught = self.distiller.terms(images, outputs, replace(target, progress=progress))
        self.method_terms = frozenset(taught)
        if missing:
            return taught or {name: 0 * term for name, term in terms.items()}
        return terms | taught

    def _losses(self, batch: Batch, progress: Progress) -> tuple[dict[str, Tensor], DetectorOutputs, DetectionTarget]:
        """The detector's terms of the whole batch, of which several processes have a part each."""
        if self.ranks.alone:
            return self.network.losses(*batch)
        with self.own_chance(progress):
            seen = self.network.look(batch[0])
        return self.network.supervised(batch[0], seen, *whole_annotations(batch[1], batch[2], self.ranks), self.ranks)

    @torch.inference_mode()
    def validate(self) -> tuple[float | None, float | None]:
        """The detector's own loss, the mean of what every image alone gives, and average precision (0.5:0.95, mean over
        the classes that occur) on the whole validation images. Both know nothing of batches and processes.
        """
        tables = [np.zeros((0, _COLUMNS))]
        for places, batch in self._validation_batches():
            images, boxes, classes = self._move(batch)
            with self.autocast():
                every = self._losses_of_each((images, boxes, classes))
                detections = self.network.detect(images, most=_MOST)
            for place, loss, d, b, c in zip(places, every, detections, boxes, classes, strict=True):
                seen_boxes = Boxes.of(d.boxes.float(), d.classes, d.scores.float())
                tables.append(_table(place, loss, seen_boxes, replace(Boxes.of(b, c), ignored=self._ignored(place))))
        if not self.job.val:
            return None, None
        seen = torch.from_numpy(np.concatenate(tables))
        if not self.ranks.alone:
            seen = self.ranks.gathered_rows(seen.to(self.settings.device)).cpu()
        losses, found, drawn = _split(seen.numpy(), len(self.job.val))
        return float(losses.mean()), mean_average_precision(found, drawn, len(self.network.spec.categories))

    def _ignored(self, place: int) -> Boxes | None:
        """The boxes around crowds in a validation image."""
        spec = self.network.spec
        return load_ignored(self._store, self.job.val[place], spec.image_size, spec.sides)

    def _losses_of_each(self, batch: Batch) -> list[float]:
        """The detector's own loss of every image as if it were the whole batch."""
        losses = []
        for image, boxes, classes in zip(batch[0].split(1), batch[1], batch[2], strict=True):
            terms, _, _ = self.network.losses(image, [boxes], [classes])
            losses.append(torch.stack(list(terms.values())).sum())
        found: list[float] = torch.stack(losses).tolist()
        return found

    def _validation_batches(self) -> Iterator[tuple[range, Batch]]:
        """Those of the validation images, with their places among them, that this process looks at; as many at
        once as in training.
        """
        spec, every = self.network.spec, len(self.job.val)
        count = len(self.ranks.part(self.settings.budget.batch_size))
        for first in range(self.ranks.number * count, every, self.ranks.count * count):
            places = range(first, min(first + count, every))
            cases = [self.job.val[place] for place in places]
            yield places, collate([load_sample(self._store, case, spec.image_size, spec.sides) for case in cases])

    def _move(self, batch: Batch) -> Batch:
        device = self.settings.device
        images, boxes, classes = batch
        moved_boxes, moved_classes = (tuple(t.to(device, non_blocking=True) for t in part) for part in (boxes, classes))
        return self.laid_out(images.to(device, non_blocking=True)), moved_boxes, moved_classes


def _table(place: int, loss: float, found: Boxes, drawn: Boxes) -> np.ndarray:
    """What was seen in a validation image, as rows of numbers: its place, the kind of row, and a box or the loss."""
    rows = [np.array([[place, _LOSS, 0, 0, 0, 0, 0, loss]])]
    for kind, boxes in ((_FOUND, found), (_DRAWN, drawn), (_IGNORED, drawn.ignored or _NOTHING)):
        columns = (np.full(len(boxes), place), np.full(len(boxes), kind), *boxes.boxes.T, boxes.classes, boxes.scores)
        rows.append(np.stack(columns, 1))
    return np.concatenate(rows)


def _split(table: np.ndarray, images: int) -> tuple[np.ndarray, list[Boxes], list[Boxes]]:
    """Loss, found and drawn boxes of every image, the latter with those that are ignored."""
    table = table[np.argsort(table[:, 0], kind="stable")]
    parts = []
    for kind in (_FOUND, _DRAWN, _IGNORED):
        own = table[table[:, 1] == kind]
        borders = np.searchsorted(own[:, 0], np.arange(1, images))
        parts.append([Boxes.of(rows[:, 2:6], rows[:, 6], rows[:, 7]) for rows in np.split(own, borders)])
    found, drawn, ignored = parts
    judged = [replace(boxes, ignored=crowds) for boxes, crowds in zip(drawn, ignored, strict=True)]
    return table[table[:, 1] == _LOSS, 7], found, judged


def mean_average_precision(found: list[Boxes], drawn: list[Boxes], classes: int) -> float:
    """COCO's average precision (0.5:0.95), mean over the classes that have a box; 0 where there is none."""
    one = np.ones((1, len(found)), np.int64)
    values = [float(average_precisions(match_coco(found, drawn, k), one).mean()) for k in range(classes)]
    known = [value for value in values if not np.isnan(value)]
    return sum(known) / len(known) if known else 0.0
