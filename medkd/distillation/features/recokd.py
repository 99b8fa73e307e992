"""ReCo-KD: features agree region by region, small structures as much as large ones, and in the context of the whole."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant
from medkd.distillation.features.standardize import spread
from medkd.distillation.options import at_least, positive
from medkd.distillation.pairs import WEAK, AdaptedMethod, Pair, pointwise
from medkd.distillation.relations.prototypes import class_masks

_HALVED = 2.0**3  # voxels of a stage for every voxel of the next, where all three sides are halved


def attention(maps: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Where a map is active, and in which channels: softmaxes of the mean magnitudes, with mean 1.

    Args:
        maps: ``(B, C, *spatial)``.
        temperature: by which the magnitudes are divided.

    Returns:
        ``(B, V)`` per voxel and ``(B, C)`` per channel.
    """
    magnitude = maps.abs().flatten(2)
    places, channels = (magnitude.mean(axis) / temperature for axis in (1, 2))
    return places.shape[1] * places.softmax(1), channels.shape[1] * channels.softmax(1)


def region_weights(target: Target, context: Context, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A voxel's weight inside of the structures, and outside of them.

    Inside it is one divided by the voxels of its structure in its sample, of several regions the largest; outside one
    divided by the voxels of the background. What is not annotated weighs nothing.

    Args:
        target: labels and mask of annotated voxels.
        context: what the labels mean.
        size: of the feature map.

    Returns:
        ``(B, V)`` each.
    """
    masks = class_masks(target, context.num_outputs, context.regions, size, outside=True).flatten(2)
    weights = masks / masks.sum(2, keepdim=True).clamp(min=1.0)
    background = -1 if context.regions else 0
    outside = weights[:, background]
    inside = weights[:, :-1] if context.regions else weights[:, 1:]
    return inside.amax(1), outside


class ContextBlock(nn.Module):
    """What the whole map says to each of its places: its places' weighted mean, through two layers (a global context
    block, Cao, Xu, Lin, Wei, Hu, ICCV-W 2019). At first it says nothing.

    Args:
        rank: spatial dimensions.
        channels: of the map.
    """

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 2, 2)  # a single number would be normalised to nothing
        self.look = pointwise(rank, channels, 1, bias=False)
        last = pointwise(rank, hidden, channels)
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        self.add = nn.Sequential(pointwise(rank, channels, hidden), nn.GroupNorm(1, hidden), nn.ReLU(), last)

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, C, *spatial)`` → ``(B, C, 1, …)``."""
        shares = self.look(maps).flatten(2).softmax(2)
        mean = torch.einsum("bcv,bov->bco", maps.flatten(2), shares)
        found: Tensor = self.add(mean.view(*maps.shape[:2], *(1,) * (maps.ndim - 2)))
        return found


@METHODS.register("recokd")
class ReCoKD(AdaptedMethod):
    """Region- and context-aware distillation, stage by stage of the encoder.

    With ``S`` the student's adapted map, ``T`` the teacher's, ``C`` channels and ``V`` voxels, both divided by the
    teacher's standard deviation::

        L = w Σ_k λ_k (R_in + R_out + a A + c X)
        R = Σ_v M_v P_v mean_c Q_c (S − T)² / Σ_v M_v P_v
        A = mean_v |P(S) − P(T)| + mean_c |Q(S) − Q(T)|
        X = mean (S + g(S) − T − h(T))²

    ``M`` is one divided by the voxels of the structure that a voxel belongs to, so that small structures count as much
    as large ones (``R_out``: of the background), the labels being brought to the stage's size by nearest neighbour.
    ``P = V softmax_v(mean_c |F| / τ)`` and ``Q = C softmax_c(mean_v |F| / τ)`` say where a map is active; in ``R`` they
    are the teacher's. ``g`` and ``h`` are context blocks (:class:`ContextBlock`), trained with the student: no matrix
    of places by places is made. ``λ`` sums to 1 and follows the stages' voxels to the power ``alpha``; the deepest
    stage has none. With ``w = 0.1`` the terms' gradient begins at about a third of that of a U-Net's Dice and
    cross-entropy.

    The formula is that of the authors' released code; the paper's text was not at hand, so its own coefficients may be
    others. The first three terms are its region distillation (MS-SARD), the last its context alignment (MS-CA).
    Chosen here, where the code is silent: axes that a stage does not halve count as such in ``λ``, places without
    annotation belong to no region, and maps of fewer than four channels have two numbers in the blocks' middle.
    ``variant="paper"`` is the code's configuration: maps as they are, ``λ_k ∝ 2^(−3 alpha k)``, ``w = 0.01``, and ``R``
    divided by ``Σ_v M_v`` alone, which makes it hundreds of times an error where a structure is where the teacher is
    most active.

    Citation: Q. Lan, Y.-C. Hsu, N. S. Khan, X. Jiang, 2026, arXiv 2601.08301.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means 0.1, 0.01 in the paper variant.
        attention_weight: ``a``.
        context_weight: ``c``.
        temperature: ``τ``.
        alpha: how much a stage's size counts; 0 weighs all stages alike.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Lan, Hsu, Khan, Jiang; 2026; arXiv 2601.08301"
    per_logit, per_feature = 4.0, 6.0
    bound = "a few copies of the features, and a weighted mean of their places for the context"

    def __init__(
        self,
        context: Context,
        weight: float | None = None,
        attention_weight: float = 1.0,
        context_weight: float = 1.0,
        temperature: float = 0.5,
        alpha: float = 0.4,
        taps: str = "encoder",
        variant: Variant = "default",
    ) -> None:
        paper = variant == "paper"
        super().__init__(context, "recokd", taps, gain=1.0 if paper else WEAK)
        self.paper = paper
        self.weight = positive("recokd", "weight", (0.01 if paper else 0.1) if weight is None else weight)
        self.attention_weight = at_least("recokd", "attention_weight", attention_weight, 0.0)
        self.context_weight = at_least("recokd", "context_weight", context_weight, 0.0)
        self.temperature = positive("recokd", "temperature", temperature)
        self.shares = stage_shares(self.pairs, at_least("recokd", "alpha", alpha, 0.0), paper)
        channels = [teacher.channels for _, teacher in self.pairs]
        self.of_student = nn.ModuleList(ContextBlock(context.rank, number) for number in channels)
        self.of_teacher = nn.ModuleList(ContextBlock(context.rank, number) for number in channels)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``recokd_regions``, ``recokd_attention`` and ``recokd_context``."""
        stages = []
        for place, (ours, theirs) in enumerate(self.adapted(student, teacher)):
            if not self.paper:
                scale = spread(theirs, ours).sqrt()
                ours, theirs = ours / scale, theirs / scale
            stages.append(self.shares[place] * self._stage(place, ours, theirs, target))
        regions, active, context = (self.weight * torch.stack(stages).sum(0)).unbind()
        return {
            "recokd_regions": regions,
            "recokd_attention": self.attention_weight * active,
            "recokd_context": self.context_weight * context,
        }

    def _stage(self, place: int, student: Tensor, teacher: Tensor, target: Target) -> Tensor:
        """``R_in + R_out``, ``A`` and ``X`` of one stage."""
        places, channels = attention(teacher, self.temperature)
        own_places, own_channels = attention(student, self.temperature)
        active = (own_places - places).abs().mean() + (own_channels - channels).abs().mean()
        difference = student - teacher
        errors = torch.einsum("bcv,bc->bv", difference.square().flatten(2), channels) / channels.shape[1]
        regions = self._regions(errors, places, region_weights(target, self.context, tuple(student.shape[2:])))
        shift = self.of_student[place](student) - self.of_teacher[place](teacher)
        return torch.stack([regions, active, (difference + shift).square().mean()])

    def _regions(self, errors: Tensor, places: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        """The errors ``(B, V)`` inside and outside of the structures, where the teacher is active; 0 where neither is
        known.
        """
        found = []
        for of_voxels in weights:
            active = of_voxels * places
            total = (of_voxels if self.paper else active).sum()
            found.append((errors * active).sum() / total.clamp(min=torch.finfo(errors.dtype).tiny))
        return torch.stack(found).sum()


def stage_shares(pairs: list[Pair], alpha: float, paper: bool) -> list[float]:
    """The weight ``λ`` of every stage; they sum to 1.

    Args:
        pairs: the stages, finest first.
        alpha: power of their voxels.
        paper: every stage counts as half of the one before along three axes.
    """
    if paper:
        sizes = [_HALVED**-place for place in range(len(pairs))]
    else:
        sizes = [1.0 / prod(teacher.stride) for _, teacher in pairs]
    weights = [size**alpha for size in sizes]
    return [weight / sum(weights) for weight in weights]
