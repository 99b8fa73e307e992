"""Training a student with a teacher: the loop of a network alone, plus the distiller's terms."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from medkd.core.features import Progress
from medkd.distillation import Distiller
from medkd.networks import SegmentationNetwork
from medkd.networks.inheritance import IMAGES, inherit
from medkd.training.loader import Batch
from medkd.training.segmentation import SegmentationData, SegmentationTrainer
from medkd.training.trainer import LoopSettings

_log = logging.getLogger(__name__)


class DistillationTrainer(SegmentationTrainer):
    """Adds a distiller's terms to the supervised loss.

    Args:
        network: the student.
        distiller: teacher and method; the method's helpers are trained and checkpointed with the student.
        data: cases, labels and patch geometry.
        settings: the loop's settings.
        folder: fold folder.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        distiller: Distiller,
        data: SegmentationData,
        settings: LoopSettings,
        folder: Path,
    ) -> None:
        super().__init__(network, data, settings, folder)
        self.distiller = distiller.to(settings.device)
        self.by_sample = self.by_sample and distiller.by_sample
        if not self.ranks.alone and not self.by_sample:
            self.distiller.gather = self.ranks.gathered

    def helpers(self) -> nn.Module:
        """The method with its connectors and adapters."""
        return self.distiller.method

    def networks(self) -> tuple[nn.Module, ...]:
        """The student, and what teaches it while it is trained."""
        taught_by = (self.distiller.teacher, *self.distiller.partners)
        return (self.network, *(network for network in taught_by if network is not None))

    def inherit(self, teacher: nn.Module, same_labels: bool = True) -> None:
        """Start the student from its teacher, see :func:`medkd.networks.inheritance.inherit`, on patches of the first
        batches.
        """
        own = self.settings.device
        device = torch.device("cpu") if own.type == "mps" else own  # the fit needs float64
        patches = (image[None] for batch in self.whole_batches() for image in batch[0])
        images = [image.to(device) for image in islice(patches, IMAGES)]
        seed = self.settings.budget.seed
        fits = inherit(self.network.to(device), teacher.to(device), images, seed, same_labels=same_labels)
        self.network.to(own)
        teacher.to(own)
        _log.info(
            "the student starts from its teacher: %.0f %% explained in the median layer",
            100 * median(f.explained for f in fits),
        )

    def prepare(self) -> None:
        """The method's first stage, on the first batches of the training; a continued run finds its result in the
        checkpoint.
        """
        if self.distiller.needs_preparation:
            self.distiller.prepare(self.move(batch, Progress()) for batch in self.whole_batches())
            self.save_latest()

    def training_terms(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Dice and cross-entropy, and the method's terms for the same batch, which may hold the teacher's logits."""
        batch = self.shared(batch)
        images, target = self.move(batch, progress)
        with self.own_chance(progress), self.autocast(), self.distiller.student_capture(self.network):
            logits = self.whole(self.network(images))
        supervised = self.supervised(logits, target)
        cached = batch[2].to(self.settings.device, non_blocking=True) if len(batch) > 2 else None
        with self.autocast():
            taught = self.distiller.terms(images, logits, target, cached)
        self.method_terms = frozenset(taught)
        return supervised | taught
