"""FreeKD: high frequencies are imitated where prompts, learnt on the teacher, find them useful."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant
from medkd.distillation.features.standardize import spread
from medkd.distillation.options import at_least, positive
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
        paper: masks are summed over the tokens and overlaps over the banks, and a small map has all scales, too.
    """

    banks: Tensor

    def __init__(self, channels: int, number: int, scales: int, paper: bool = False) -> None:
        super().__init__()
        self.paper = paper
        self.register_buffer("banks", _SPREAD * torch.randn(1 + scales, number, channels))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The map put together again from its masked bands, and the overlap of the masks of a bank."""
        low, highs = haar(features, self.scales(features.shape[2:]))
        of_low = self.masks(0, low)
        overlaps, masked = [token_overlap(of_low)], []
        for bank, high in enumerate(highs, start=1):
            masks = self.masks(bank, high.sum(2))
            overlaps.append(token_overlap(masks))
            masked.append(high * self._one_mask(masks).unsqueeze(2))
        overlap = torch.stack(overlaps)
        whole = inverse_haar(low * self._one_mask(of_low), masked, features.shape[2:])
        return whole, overlap.sum() if self.paper else overlap.mean()

    def scales(self, size: Sequence[int]) -> int:
        """How many scales a map of this size has."""
        most = len(self.banks) - 1
        return most if self.paper else scales_of(size, most)

    def masks(self, bank: int, band: Tensor) -> Tensor:
        """``sigmoid(P · band)`` of ``(B, C, *spatial)``, high bands summed over orientations: ``(B, tokens,
        *spatial)``.
        """
        return torch.sigmoid(torch.einsum("tc,bc...->bt...", self.banks[bank], band))

    def _one_mask(self, masks: Tensor) -> Tensor:
        """The tokens' masks as one, ``(B, 1, *spatial)``, for the first stage."""
        return masks.sum(1, keepdim=True) if self.paper else mean_mask(masks)


def mean_mask(masks: Tensor) -> Tensor:
    """The mean over tokens: ``(B, 1, *spatial)``."""
    return masks.mean(1, keepdim=True)


@METHODS.register("freekd")
class FreeKD(PromptMethod):
    """Distillation of high-frequency bands under frequency prompts.

    Of every feature map the Haar wavelet transform is taken at three scales (fewer for a small map, an odd axis is
    extended by zero). First stage, once, on the frozen teacher
    (:class:`medkd.distillation.prompts.first_stage.PromptMethod`): per map four banks of six prompts, for the low band
    and every scale; the masks ``sigmoid(P_t · band)``, averaged over the prompts of a bank, multiply the bands, the
    inverse transform goes through the rest of the teacher, and the prompts are learnt so that it still solves its task
    while masks of a bank do not overlap (Dice). Second stage, with the masks ``m_j`` of the teacher's high bands
    ``H_j``::

        L = w · mean_l mean_j mean | m_j ⊙ (H_j(A S) − H_j(T)) | / std(T_l)

    with ``A`` a trainable 1x1 convolution where the channels differ; a student map of another size is resized linearly.
    The low band teaches nothing; the spread is held up for a nearly constant map, see
    :func:`medkd.distillation.features.standardize.spread`. ``variant="paper"`` does not divide by the spread, always
    has the convolution, sums over levels and scales, has three scales for small maps too, and learns prompts for 2000
    iterations; in its first stage the masks of a bank are summed instead of averaged, and so are the overlaps of the
    banks, as the released code does. The paper's position-aware weight of the channels is not in that code, and is not
    here; the code's accompanying mean squared error is ``freekd+mimic``, its loss on box regression is left out.

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
        variant: Variant = "default",
    ) -> None:
        paper = variant == "paper"
        super().__init__(context, "freekd", taps, iterations, paper)
        self.weight = positive("freekd", "weight", weight)
        number = int(at_least("freekd", "tokens", tokens, 1))
        deepest = int(at_least("freekd", "scales", scales, 1))
        self.prompts = nn.ModuleList(FrequencyPrompts(t.channels, number, deepest, paper) for _, t in self.pairs)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``freekd``."""
        self.check_prepared()
        levels = []
        for prompts, (s, t) in zip(self.prompts, self.adapted(student, teacher), strict=True):
            scales = self._scales(prompts, s, t)  # type: ignore[arg-type]
            levels.append(scales.sum() if self.paper else scales.mean() / spread(t, s).sqrt())
        return {"freekd": self.weight * self.joined(levels)}

    def _scales(self, prompts: FrequencyPrompts, student: Tensor, teacher: Tensor) -> Tensor:
        """The masked difference at every scale, ``(scales,)``; the transform is linear, so one of the difference
        suffices.
        """
        number = prompts.scales(teacher.shape[2:])
        _, differences = haar(student - teacher, number)
        with torch.no_grad():
            _, highs = haar(teacher, number)
        levels = []
        for bank, (high, difference) in enumerate(zip(highs, differences, strict=True), start=1):
            with torch.no_grad():
                mask = mean_mask(prompts.masks(bank, high.sum(2))).unsqueeze(2)
            levels.append((mask * difference).abs().mean())
        return torch.stack(levels)
