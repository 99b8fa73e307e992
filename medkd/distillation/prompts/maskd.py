"""MasKD: features are imitated under masks that the teacher itself finds useful."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant
from medkd.distillation.features.standardize import spread
from medkd.distillation.options import at_least, positive
from medkd.distillation.prompts.first_stage import PromptMethod, Prompts, token_overlap

_SPREAD = 0.01  # of the tokens' initial values
_ROOT_2 = 2**0.5
_REDUCTION = 4  # channels per channel of the layer that weighs the tokens
_FEWEST = 8  # channels of that layer: few rectified ones may all be 0


class MaskTokens(Prompts):
    """The receptive tokens of one feature map, and what weighs them per image.

    Args:
        channels: of the map.
        number: of tokens.
        rank: spatial dimensions, 2 or 3.
        paper: the layer that weighs the tokens has as many channels as the map and is not rectified, as released.
    """

    def __init__(self, channels: int, number: int, rank: int, paper: bool = False) -> None:
        super().__init__()
        self.rectified = not paper
        hidden = channels if paper else max(channels // _REDUCTION, _FEWEST)
        look = torch.empty(hidden, channels, *(3,) * rank)
        nn.init.kaiming_normal_(look, mode="fan_out" if paper else "fan_in", nonlinearity="relu")
        self.register_buffer("tokens", _SPREAD * torch.randn(number, channels))
        self.register_buffer("look", look)
        self.register_buffer("look_bias", torch.zeros(hidden))
        self.register_buffer("choose", (_ROOT_2 / number**0.5 if paper else _SPREAD) * torch.randn(number, hidden))
        self.register_buffer("choose_bias", torch.zeros(number))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``Σ_t p_t M_t ⊙ x`` and the overlap of the masks."""
        masks, shares = self.masks(features), self.shares(features)
        return features * torch.einsum("bt...,bt->b...", masks, shares).unsqueeze(1), token_overlap(masks)

    def masks(self, features: Tensor) -> Tensor:
        """``M = sigmoid(D x)``: ``(B, tokens, *spatial)``."""
        return torch.sigmoid(torch.einsum("tc,bc...->bt...", self.tokens, features))

    def shares(self, features: Tensor) -> Tensor:
        """``p``, softmax over tokens of what a 3-wide convolution sees on average: ``(B, tokens)``."""
        convolve = F.conv3d if features.ndim == 5 else F.conv2d
        seen = convolve(features, self.look, self.look_bias, padding=1)  # type: ignore[arg-type]
        if self.rectified:
            seen = F.relu(seen)
        return torch.softmax(F.linear(seen.flatten(2).mean(2), self.choose, self.choose_bias), 1)  # type: ignore[arg-type]


@METHODS.register("maskd")
class MasKD(PromptMethod):
    """Masked distillation with receptive tokens.

    First stage, once, on the frozen teacher (:class:`medkd.distillation.prompts.first_stage.PromptMethod`): per feature
    map ``T`` there are six tokens ``D`` with masks ``M_t = sigmoid(D_t · T)`` and shares ``p`` per image; tokens and
    shares are learnt so that the teacher, going on with ``Σ_t p_t M_t ⊙ T``, still solves its task (segmentation:
    cross-entropy and Dice, one map replaced at a time; detectors: their own loss, all maps replaced at once), while
    masks of different tokens do not overlap (Dice). Second stage, per image and level::

        L = w · mean_l mean_{n,c} Σ_t p_t Σ_v M_t² (A S − T)² / Σ_v M_t  / var(T_l)

    with ``A`` a trainable 1x1 convolution where the channels differ; a student map of another size is resized linearly.
    From the share ``warmup`` of the training on, ``M_t`` is multiplied by the student's own mask ``sigmoid(D_t · A
    S)``, without gradient. The variance is held up for a nearly constant map, see
    :func:`medkd.distillation.features.standardize.spread`. The shares come from a 3-wide convolution to a quarter of
    the channels, rectified and averaged, and a linear layer. ``variant="paper"`` does not divide by the variance,
    always has the convolution ``A``, sums over levels, learns tokens for 2000 iterations, and takes the shares from a
    convolution to all channels that is not rectified. The released code also imitates a detector's box regression,
    which is left out here, and weighs RetinaNet's term by 7.

    Citation: T. Huang, Y. Zhang, S. You, F. Wang, C. Qian, J. Cao, C. Xu, ICLR 2023, arXiv 2205.14589.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means 0.2 in segmentation, as for ``mimic``, and 1 in the paper variant and between
            detectors.
        tokens: per feature map.
        warmup: share of the training without the student's masks.
        iterations: of the first stage; None means 100, or 2000 in the paper variant.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`; the teacher must be able to continue from
            its taps.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Huang, Zhang, You, Wang, Qian, Cao, Xu; ICLR 2023; arXiv 2205.14589"
    detection = True
    per_logit, per_feature = 0.0, 5.0
    bound = "a few masks of one channel per map, and a hidden layer of a quarter of its channels"

    def __init__(
        self,
        context: Context,
        weight: float | None = None,
        tokens: int = 6,
        warmup: float = 0.1,
        iterations: int | None = None,
        taps: str = "decoder",
        variant: Variant = "default",
    ) -> None:
        paper = variant == "paper"
        super().__init__(context, "maskd", taps, iterations, paper)
        own = 1.0 if paper or context.task == "detection" else 0.2
        self.weight = positive("maskd", "weight", own if weight is None else weight)
        self.warmup = at_least("maskd", "warmup", warmup, 0.0)
        number = int(at_least("maskd", "tokens", tokens, 1))
        self.prompts = nn.ModuleList(MaskTokens(t.channels, number, context.rank, paper) for _, t in self.pairs)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``maskd``."""
        self.check_prepared()
        both = target.progress.fraction >= self.warmup
        levels = []
        for prompts, (s, t) in zip(self.prompts, self.adapted(student, teacher), strict=True):
            weights = _weights(prompts, t, s.detach() if both else None)  # type: ignore[arg-type]
            error = (s - t).square().mean(1)
            loss = (error * weights).flatten(1).sum(1).mean()
            levels.append(loss if self.paper else loss / spread(t, s))
        return {"maskd": self.weight * self.joined(levels)}


@torch.no_grad()
def _weights(prompts: MaskTokens, teacher: Tensor, student: Tensor | None) -> Tensor:
    """``Σ_t p_t M_t² / Σ_v M_t`` per voxel: ``(B, *spatial)``."""
    masks = prompts.masks(teacher)
    if student is not None:
        masks = masks * prompts.masks(student)
    area = masks.flatten(2).sum(2).clamp(min=1e-6)
    return torch.einsum("bt...,bt->b...", masks.square(), prompts.shares(teacher) / area)
