"""FreeKD: high frequencies are imitated where prompts, learnt on the teacher, find them useful."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context
from medkd.distillation.options import at_least, check_variant, positive
from medkd.distillation.pairs import WEAK, adapter, resize
from medkd.distillation.prompts.first_stage import PromptMethod, Prompts, token_overlap
from medkd.distillation.prompts.haar import haar, inverse_haar, scales_of

_SPREAD = 0.01  # of the prompts' initial values


class FrequencyPrompts(Prompts):
    """The prompts of one feature map: a bank of tokens for the low band, and one for every scale of high bands, finest
    first.

    Args:
        channels: of the map.
        number: tokens per bank.
        scales: most scales.
    """

    banks: Tensor

    def __init__(self, channels: int, number: int, scales: int) -> None:
        super().__init__()
        self.register_buffer("banks", _SPREAD * torch.randn(1 + scales, number, channels))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The map put together again from its masked bands, and the mean overlap of the masks of a bank."""
        low, highs = haar(features, scales_of(features.shape[2:], len(self.banks) - 1))
        of_low = self.masks(0, low)
        of_highs = [self.masks(index + 1, high.sum(2)) for index, high in enumerate(highs)]
        masked = [high * mean_mask(mask).unsqueeze(2) for high, mask in zip(highs, of_highs, strict=True)]
        overlap = torch.stack([token_overlap(mask) for mask in (of_low, *of_highs)]).mean()
        return inverse_haar(low * mean_mask(of_low), masked, features.shape[2:]), overlap

    def masks(self, bank: int, band: Tensor) -> Tensor:
        """``sigmoid(P · band)`` of ``(B, C, *spatial)``, high bands summed over orientations: ``(B, tokens,
        *spatial)``.
        """
        return torch.sigmoid(torch.einsum("tc,bc...->bt...", self.banks[bank], band))


def mean_mask(masks: Tensor) -> Tensor:
    """The mean over tokens: ``(B, 1, *spatial)``."""
    return masks.mean(1, keepdim=True)


@METHODS.register("freekd")
class FreeKD(PromptMethod):
    """Distillation of high-frequency bands under frequency prompts.

    Of every feature map the Haar wavelet transform is taken at three scales (fewer for a small map, an odd axis is
    extended by zero). First stage, once, on the frozen teacher
    (:class:`medkd.distillation.prompts.first_stage.PromptMethod`): per map four banks of six prompts, for the low band and
    every scale; the masks ``sigmoid(P_t · band)``, averaged over the prompts of a bank, multiply the bands, the inverse
    transform goes through the rest of the teacher, and the prompts are learnt so that it still solves its task while
    masks of a bank do not overlap (Dice). Second stage, with the masks ``m_j`` of the teacher's high bands ``H_j``::

        L = w · mean_l mean_j mean | m_j ⊙ (H_j(A S) − H_j(T)) | / std(T_l)

    with ``A`` a trainable 1x1 convolution where the channels differ; a student map of another size is resized linearly.
    The low band teaches nothing. ``variant="paper"`` does not divide by the spread, always has the convolution, sums
    over levels and scales, and learns prompts for 2000 iterations. This is what the released code computes: the paper's
    position-aware weight of the channels is not in it, and is not here; the code's accompanying mean squared error is
    ``freekd+mimic``, its loss on box regression is left out.

    Citation: Y. Zhang, T. Huang, J. Liu, T. Jiang, K. Cheng, S. Zhang, CVPR 2024, arXiv 2311.12079.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``.
        tokens: prompts per bank.
        scales: most scales.
        iterations: of the first stage; None means 100, or 2000 in the paper variant.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`; the teacher must be able to continue from
            its taps.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Zhang, Huang, Liu, Jiang, Cheng, Zhang; CVPR 2024; arXiv 2311.12079"
    detection = True
    per_logit, per_feature = 0.0, 5.0
    bound = "the wavelet bands, which have the size of the map, and masks of one channel"

    def __init__(
        self,
        context: Context,
        weight: float = 1.0,
        tokens: int = 6,
        scales: int = 3,
        iterations: int | None = None,
        taps: str = "decoder",
        variant: str = "default",
    ) -> None:
        paper = check_variant("freekd", variant)
        super().__init__(context, "freekd", taps, (2000 if paper else 100) if iterations is None else iterations)
        self.paper = paper
        self.weight = positive("freekd", "weight", weight)
        number, deepest = int(at_least("freekd", "tokens", tokens, 1)), int(at_least("freekd", "scales", scales, 1))
        self.prompts = nn.ModuleList(FrequencyPrompts(t.channels, number, deepest) for _, t in self.pairs)
        self.adapters = nn.ModuleList(
            adapter(pair, always=self.paper, gain=1.0 if self.paper else WEAK) for pair in self.pairs
        )

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``freekd``."""
        self.check_prepared()
        levels = []
        for prompts, adapt, (s, t) in zip(self.prompts, self.adapters, self.features(student, teacher), strict=True):
            scales = self._scales(prompts, resize(adapt(s), t.shape[2:]), t)  # type: ignore[arg-type]
            levels.append(scales.sum() if self.paper else scales.mean() / t.std(unbiased=False).clamp(min=1e-4))
        total = torch.stack(levels)
        return {"freekd": self.weight * (total.sum() if self.paper else total.mean())}

    def _scales(self, prompts: FrequencyPrompts, student: Tensor, teacher: Tensor) -> Tensor:
        """The masked difference at every scale, ``(scales,)``; the transform is linear, so one of the difference
        suffices.
        """
        number = scales_of(teacher.shape[2:], len(prompts.banks) - 1)
        _, apart = haar(student - teacher, number)
        with torch.no_grad():
            _, highs = haar(teacher, number)
            masks = [mean_mask(prompts.masks(index + 1, high.sum(2))).unsqueeze(2) for index, high in enumerate(highs)]
        return torch.stack([(mask * high).abs().mean() for mask, high in zip(masks, apart, strict=True)])
