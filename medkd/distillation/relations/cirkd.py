"""Cross-image relational distillation: every place's likeness to places of other images and to remembered ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant, masked_mean
from medkd.distillation.options import at_least, positive
from medkd.distillation.outputs.divergence import voxel_kl
from medkd.distillation.pairs import PairMethod, pointwise, resize
from medkd.distillation.relations.memory import ClassMemory
from medkd.distillation.relations.nodes import pool_alike
from medkd.distillation.relations.prototypes import class_masks, masked_means

DRAWN = 96  # remembered vectors per class that a step compares with
PUSHED = 16  # voxels per class and sample that enter the memory in a step
SOFTNESS = 0.1  # by which cosines to what is remembered are divided
EMPTY = -1e4  # exp() of it is 0 in float32


@METHODS.register("cirkd")
class CIRKD(PairMethod):
    """Cross-image relational knowledge distillation.

    - batch: features are pooled to at most ``max_nodes`` places per sample and scaled to unit length; for every pair of
      samples the row-wise softmax of the cosines over ``t`` is compared, ``mean KL(teacher ‖ student)``;
    - memory: teacher vectors of voxels and of class means are remembered per class; the cosines of up to ``max_nodes``
      foreground voxels to 96 random ones of every class, softened by 0.1, are compared likewise (the student's through
      a trainable projection);
    - ``w_kd · mean_v KL(p_T ‖ p_S)``.

    The memory needs one class per voxel; for regions its two terms are left out. What is drawn depends on the step
    number only, and the memory is part of the training checkpoint, so a resumed run continues exactly. Unlike in the
    released code, what is remembered for a class are voxels of that class, and places of the memory that are still
    empty take no part. At most ``(batch · max_nodes)²`` numbers per matrix. ``variant="paper"``: ``t = 1``, at which
    the rows are almost uniform.

    Citation: C. Yang, H. Zhou, Z. An, X. Jiang, Y. Xu, Q. Zhang, CVPR 2022, arXiv 2204.06986.

    Args:
        context: taps, outputs and geometry.
        batch_weight: weight of the first term.
        memory_weight: weight of each memory term.
        kd_weight: ``w_kd``.
        temperature: ``t``; None means 0.1, in the paper variant 1.
        taps: which pair, see :func:`medkd.distillation.pairs.choose_pairs`; of several the finest is taken.
        max_nodes: most places per sample.
        memory_size: remembered voxels per class; class means have a tenth.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Yang, Zhou, An, Jiang, Xu, Zhang; CVPR 2022; arXiv 2204.06986"
    per_logit, per_feature = 6.0, 6.0
    bound = "at most (batch · max_nodes)² cosines, and max_nodes voxels against 96 remembered vectors per class"

    def __init__(
        self,
        context: Context,
        batch_weight: float = 1.0,
        memory_weight: float = 0.1,
        kd_weight: float = 1.0,
        temperature: float | None = None,
        taps: str = "last",
        max_nodes: int = 512,
        memory_size: int = 2000,
        variant: Variant = "default",
    ) -> None:
        super().__init__(context, "cirkd", taps)
        self.pairs = self.pairs[:1]
        own = 1.0 if variant == "paper" else 0.1
        self.batch_weight = at_least("cirkd", "batch_weight", batch_weight, 0.0)
        self.memory_weight = at_least("cirkd", "memory_weight", memory_weight, 0.0)
        self.kd_weight = at_least("cirkd", "kd_weight", kd_weight, 0.0)
        self.temperature = positive("cirkd", "temperature", own if temperature is None else temperature)
        self.max_nodes = int(at_least("cirkd", "max_nodes", max_nodes, 2))
        size = int(at_least("cirkd", "memory_size", memory_size, 10 * PUSHED))
        self.memories = nn.ModuleList()
        if not context.regions:
            channels = self.pairs[0][1].channels
            self.projection = nn.Sequential(
                pointwise(context.rank, self.pairs[0][0].channels, channels),
                nn.GroupNorm(1, channels),
                nn.ReLU(),
                pointwise(context.rank, channels, channels, bias=False),
            )
            self.memories.extend(ClassMemory(context.num_outputs, n, channels) for n in (size, size // 10))

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``cirkd_batch``, ``cirkd_kd`` and, for classes, ``cirkd_voxels`` and ``cirkd_means``."""
        s, t = next(self.features(student, teacher))
        divergence = voxel_kl(student.logits, teacher.logits, self.context.regions)
        terms = {
            "cirkd_batch": self.batch_weight * self._batch(s, t),
            "cirkd_kd": self.kd_weight * masked_mean(divergence, target.valid),
        }
        if not self.context.regions:
            voxels, means = self._memory(s, t, target)
            terms["cirkd_voxels"] = self.memory_weight * voxels
            terms["cirkd_means"] = self.memory_weight * means
        return terms

    def pairwise(self, batch: int) -> int:
        """Cosines of the places of all samples with their softmaxes and gradients, and those of voxels to what is
        remembered.
        """
        voxels = batch * self.max_nodes
        remembered = 0 if self.context.regions else self.context.num_outputs * DRAWN
        channels = sum(tap.channels for tap in self.pairs[0])
        among_voxels = 8 * voxels**2
        to_remembered = 8 * voxels * (remembered + channels)
        return among_voxels + to_remembered + 4 * remembered * channels

    def _batch(self, student: Tensor, teacher: Tensor) -> Tensor:
        nodes_s, nodes_t = pool_alike(student, teacher, self.max_nodes)
        return _row_kl(self._cosines(nodes_s), self._cosines(nodes_t)).mean()

    def _cosines(self, nodes: Tensor) -> Tensor:
        """Softened cosines of the places of every two samples: ``(B, C, n)`` → ``(B, B, n, n)``."""
        units = F.normalize(nodes, dim=1, eps=1e-8)
        return torch.einsum("acn,bcm->abnm", units, units) / self.temperature

    def _memory(self, student: Tensor, teacher: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        size = student.shape[2:]
        teacher = resize(teacher, size)
        masks = class_masks(target, self.context.num_outputs, False, size)
        generator = torch.Generator(teacher.device).manual_seed(target.progress.step)
        self._remember(teacher, masks, generator)
        foreground = masks[:, 1:].sum(1).flatten(1)
        chosen, counted = _anchors(foreground, self.max_nodes, generator)
        anchors_s = _units_at(self.projection(student), chosen).flatten(0, 1)
        anchors_t = _units_at(teacher, chosen).flatten(0, 1)
        terms = []
        for memory in self._memories():
            keys, filled = memory.draw(DRAWN, generator)
            ours = _likeness(anchors_s, keys, filled)
            theirs = _likeness(anchors_t, keys, filled)
            rows = _row_kl(ours, theirs) * counted
            terms.append(rows.sum() / counted.sum().clamp(min=1.0))
        return terms[0], terms[1]

    @torch.no_grad()
    def _remember(self, teacher: Tensor, masks: Tensor, generator: torch.Generator) -> None:
        """Push voxels and class means of the batch."""
        by_voxel, by_mean = self._memories()
        means = F.normalize(masked_means(teacher, masks), dim=2, eps=1e-8)
        chosen, counts = _of_every_class(masks.flatten(2), PUSHED, generator)
        units = _units_at(teacher, chosen.flatten(1))
        voxels = units.view(*chosen.shape, -1)
        for n in range(len(teacher)):
            by_voxel.push(voxels[n], counts[n].clamp(max=PUSHED))
            by_mean.push(means[n].unsqueeze(1), counts[n].clamp(max=1))

    def _memories(self) -> list[ClassMemory]:
        return [m for m in self.memories if isinstance(m, ClassMemory)]


def _of_every_class(masks: Tensor, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random places of every class.

    Sorted by class, and within a class by lot, every class begins where those before it end.

    Args:
        masks: ``(B, K, V)``, 0 or 1; a place is in one class or none.
        number: of places per class.
        generator: on the device of the masks.

    Returns:
        ``(B, K, number)``, of which the first ones count where a class has fewer, and how many each class has
        ``(B, K)``.
    """
    batch, classes, voxels = masks.shape
    lots = 0.99 * torch.rand(batch, voxels, generator=generator, device=masks.device)
    none = classes * (1 - masks.sum(1))
    numbers = torch.arange(classes, device=masks.device, dtype=masks.dtype)
    label = torch.einsum("bkv,k->bv", masks, numbers)
    order = (label + none + lots).argsort(1)
    counts = masks.sum(2).long()
    starts = counts.cumsum(1) - counts
    places = starts.unsqueeze(2) + torch.arange(number, device=masks.device)
    chosen = order.gather(1, places.clamp(max=voxels - 1).flatten(1))
    return chosen.view(batch, classes, number), counts


def _anchors(mask: Tensor, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Up to ``number`` random places of every mask ``(B, V)``: ``(B, n)``, and 1 for those that count ``(B · n,)``."""
    lots = torch.rand(mask.shape, generator=generator, device=mask.device)
    lots.masked_fill_(mask < 0.5, -1.0)
    best = lots.topk(min(number, mask.shape[1]), 1)
    counted = best.values >= 0
    return best.indices, counted.flatten().float()


def _units_at(features: Tensor, places: Tensor) -> Tensor:
    """Vectors of ``(B, C, *spatial)`` at places ``(B, n)``, scaled to unit length: ``(B, n, C)``."""
    index = places.unsqueeze(1).expand(-1, features.shape[1], -1)
    vectors = features.flatten(2).gather(2, index)
    return F.normalize(vectors, dim=1, eps=1e-8).transpose(1, 2)


def _likeness(anchors: Tensor, keys: Tensor, filled: Tensor) -> Tensor:
    """Softened cosines ``(anchors, keys)``; those to empty places are so small that no softmax sees them."""
    return (anchors @ keys.T / SOFTNESS).masked_fill(~filled, EMPTY)


def _row_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """``KL(softmax(teacher row) ‖ softmax(student row))`` of every row."""
    log_s = F.log_softmax(student, -1)
    log_t = F.log_softmax(teacher, -1)
    return (log_t.exp() * (log_t - log_s)).sum(-1)
