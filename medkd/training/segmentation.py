"""Training a segmentation network: patches, Dice + cross-entropy, and validation on fixed patches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from medkd.core.features import Progress, Target
from medkd.core.labels import LabelSpec
from medkd.core.plan import Configuration
from medkd.core.protocol import TrainingRule
from medkd.core.splits import Split
from medkd.distillation.base import zero_like
from medkd.networks import SegmentationNetwork
from medkd.training.augmentation import Augment, Augmentation, read_size
from medkd.training.loader import Batch, PatchBatches, Unlabelled, iterate
from medkd.training.losses import SegmentationLoss
from medkd.training.sampling import UNLABELLED, PatchSampler
from medkd.training.shared_norm import share_norms
from medkd.training.simple_augmentation import SimpleAugmentation
from medkd.training.trainer import LoopSettings, Trainer

_VALIDATION_SHARE = 5  # one validation batch per five training steps of an epoch (nnU-Net: 50 for 250)


@dataclass(frozen=True, kw_only=True)
class SegmentationData:
    """The data of one fold.

    Attributes:
        store: folder of the preprocessed cases.
        split: training and validation cases.
        labels: what the outputs mean.
        configuration: of the plan.
        patch_size: training patch.
        mirror_axes: axes that augmentation mirrors.
        workers: loader processes.
        rule: loss, augmentation and sampling; the default is nnU-Net's.
        targets: folder of the teacher's cached outputs for the training cases, if there are any.
        unlabelled: training cases whose labels are not known, or not used; they may be among those of the split.
    """

    store: Path
    split: Split
    labels: LabelSpec
    configuration: Configuration
    patch_size: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    workers: int
    rule: TrainingRule = field(default_factory=TrainingRule)
    targets: Path | None = None
    unlabelled: Unlabelled | None = None


class SegmentationTrainer(Trainer):
    """Trains a segmentation network alone.

    Args:
        network: the network.
        data: cases, labels and patch geometry.
        settings: the loop's settings.
        folder: fold folder.
    """

    network: SegmentationNetwork

    def __init__(
        self, network: SegmentationNetwork, data: SegmentationData, settings: LoopSettings, folder: Path
    ) -> None:
        super().__init__(network, settings, folder)
        self.data = data
        self.loss = SegmentationLoss(
            regions=data.labels.regions,
            batch_dice=data.configuration.batch_dice,
            background=data.rule.dice_background,
            cross_entropy=data.rule.cross_entropy,
            auxiliary=network.auxiliary_weight if data.rule.auxiliary is None else data.rule.auxiliary,
        )
        gaps = data.unlabelled is not None or data.labels.ignore is not None
        self.by_sample = not (self.loss.batch_dice or gaps)
        share_norms(network, self.ranks)
        self._augment, self._read = self._augmentation()
        self._validation: list[Batch] | None = None

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Augmented patches, some of them (one third, unless a protocol says otherwise) centred on a structure; each of
        several processes has its part of every batch.
        """
        return self._training_batches(first_step, self.ranks.part(self.settings.budget.batch_size))

    def whole_batches(self) -> Iterator[Batch]:
        """The batches from the first step on, as all processes together have them."""
        return self._training_batches(0, None)

    def _training_batches(self, first_step: int, part: range | None) -> Iterator[Batch]:
        budget = self.settings.budget
        steps = budget.epochs * budget.iterations_per_epoch
        patches = self._patches(self.data.split.train, self._read, steps, self._augment, stream=0, part=part)
        return iterate(patches, first_step, self.data.workers, pin=self.settings.device.type == "cuda")

    def _augmentation(self) -> tuple[Augment, tuple[int, ...]]:
        """The augmentation, and how many voxels it reads for a patch."""
        rule, patch = self.data.rule.augmentation, self.data.patch_size
        if rule is not None:
            return SimpleAugmentation(rule, patch, self.data.mirror_axes), patch
        masked = tuple(i for i, use in enumerate(self.data.configuration.use_mask_for_norm) if use)
        return Augmentation(patch, self.data.mirror_axes, masked), read_size(patch)

    def training_terms(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Dice and cross-entropy of one batch."""
        images, target = self.move(self.shared(batch), progress)
        with self.own_chance(progress), self.autocast():
            logits = self.network(images)
        return self.supervised(self.whole(logits), target)

    def shared(self, batch: Batch) -> Batch:
        """This process' images, with the labels and targets of the samples that its loss is about."""
        if self.ranks.alone or self.by_sample:
            return batch
        moved = (part.to(self.settings.device, non_blocking=True) for part in batch[1:])
        return batch[0], *(self.ranks.gathered(part) for part in moved)

    def whole(self, logits: Tensor | Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
        """The network's outputs for the samples that the loss is about."""
        if self.by_sample:
            return logits
        if isinstance(logits, Tensor):
            return self.ranks.gathered(logits)
        return [self.ranks.gathered(scale) for scale in logits]

    def supervised(self, logits: Tensor | Sequence[Tensor], target: Target) -> dict[str, Tensor]:
        """Dice and cross-entropy over the samples that have labels; 0 where none has."""
        own = target.labelled
        if own is None:
            return self.loss(logits, target.labels, target.valid)
        scales = [logits] if isinstance(logits, Tensor) else list(logits)
        if not own.any():
            names = ("dice", "ce") if self.loss.cross_entropy else ("dice",)
            nothing = zero_like(scales[0])
            return dict.fromkeys(names, nothing)
        places = own.nonzero().flatten().to(scales[0].device, non_blocking=True)  # a mask there would be waited for
        chosen = [scale[places] for scale in scales]
        valid = None if target.valid is None else target.valid[places]
        return self.loss(chosen[0] if isinstance(logits, Tensor) else chosen, target.labels[places], valid)

    def move(self, batch: Batch, progress: Progress) -> tuple[Tensor, Target]:
        """Bring a batch to the device and encode its labels there."""
        images, labels = (part.to(self.settings.device, non_blocking=True) for part in batch[:2])
        encoded, valid = self.data.labels.encode(labels)
        own = (batch[1].flatten(1)[:, 0] != UNLABELLED).cpu()
        return self.laid_out(images), Target(encoded, valid, progress, None if bool(own.all()) else own)

    @torch.inference_mode()
    def validate(self) -> tuple[float | None, float | None]:
        """Loss and mean foreground Dice over the same unaugmented validation patches in every epoch.

        True positives and errors are summed over all patches before the Dice of a structure is taken; structures that
        occur in no patch and no prediction are left out of the mean.
        """
        losses: list[float] = []
        counts: list[Tensor] = []
        for batch in self._validation_batches():
            images, target = self.move(batch, Progress())
            with self.autocast():
                logits = self.network(images).float()
            losses.append(sum(float(term) for term in self.loss(logits, target.labels, target.valid).values()))
            counts.append(self._counts(logits, target))
        losses, counts = self._of_all_ranks(losses, counts)
        if not losses:
            return None, None
        overlap, total = torch.stack(counts).sum(0)
        present = total > 0
        return sum(losses) / len(losses), float(
            (2 * overlap[present] / total[present]).mean()
        ) if present.any() else 0.0

    def _counts(self, logits: Tensor, target: Target) -> Tensor:
        """``|P ∩ G|`` and ``|P| + |G|`` per structure, shape (2, structures)."""
        if self.data.labels.regions:
            predicted, truth = logits > 0, target.labels > 0.5
        else:
            classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
            predicted, truth = logits.argmax(1, keepdim=True) == classes, target.labels == classes
        if target.valid is not None:
            predicted, truth = predicted & target.valid, truth & target.valid
        axes = [0, *range(2, logits.ndim)]
        return torch.stack([(predicted & truth).sum(axes), predicted.sum(axes) + truth.sum(axes)]).double()

    def _of_all_ranks(self, losses: list[float], counts: list[Tensor]) -> tuple[list[float], list[Tensor]]:
        """Those of every validation batch, from those of this process' own."""
        if self.ranks.alone:
            return losses, counts
        structures = self.data.labels.num_outputs - (0 if self.data.labels.regions else 1)
        table = torch.zeros(self._validation_count, 1 + 2 * structures, dtype=torch.double, device=self.settings.device)
        for place, loss, count in zip(self._own_validation, losses, counts, strict=True):
            table[place, 0] = loss
            table[place, 1:] = count.flatten()
        self.ranks.sum(table)
        return table[:, 0].tolist(), list(table[:, 1:].unflatten(1, (2, structures)))

    @property
    def _validation_count(self) -> int:
        return max(1, self.settings.budget.iterations_per_epoch // _VALIDATION_SHARE) if self.data.split.val else 0

    @property
    def _own_validation(self) -> range:
        """Those of the validation batches that this process looks at."""
        return range(self.ranks.number, self._validation_count, self.ranks.count)

    def _validation_batches(self) -> list[Batch]:
        if self._validation is None:
            patches = self._patches(self.data.split.val, self.data.patch_size, self._validation_count, None, stream=1)
            self._validation = [patches[i] for i in self._own_validation]
        return self._validation

    def _patches(
        self,
        cases: tuple[str, ...],
        read: tuple[int, ...],
        steps: int,
        augmentation: Augment | None,
        *,
        stream: int,
        part: range | None = None,
    ) -> PatchBatches:
        sampler = PatchSampler(read, self.data.patch_size)
        budget, share = self.settings.budget, self.data.rule.foreground
        training = stream == 0
        return PatchBatches(
            self.data.store,
            cases,
            sampler,
            budget.batch_size,
            steps,
            budget.seed,
            augmentation,
            stream,
            share,
            targets=self.data.targets if training else None,
            unlabelled=self.data.unlabelled if training else None,
            part=part,
        )
