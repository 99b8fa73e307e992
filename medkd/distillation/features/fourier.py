"""FourierKD: features are compared frequency by frequency."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context
from medkd.distillation.options import check_variant, positive
from medkd.distillation.pairs import Pair, PairMethod, pointwise, resize


class SpectrumFusion(nn.Module):
    """The student's adapter and the fusion of student and teacher amplitudes.

    ``A_f = α conv(A_S) + (1 − α) conv(A_T)`` with ``α = sigmoid(σ)`` per channel, ``σ`` trainable from 0.

    Args:
        pair: student tap and teacher tap.
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        student, teacher = pair
        self.adapt = pointwise(student.rank, student.channels, teacher.channels)
        self.of_student = pointwise(student.rank, teacher.channels, teacher.channels)
        self.of_teacher = pointwise(student.rank, teacher.channels, teacher.channels)
        self.sigma = nn.Parameter(torch.zeros(1, teacher.channels, *(1,) * student.rank))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Fused amplitudes of two amplitude spectra ``(B, C, *frequencies)``."""
        share = torch.sigmoid(self.sigma)
        return share * self.of_student(student) + (1 - share) * self.of_teacher(teacher)


@METHODS.register("fourier")
class FourierKD(PairMethod):
    """Fourier-domain distillation of feature maps: one deep map in segmentation, the neck's maps in detectors; no loss
    on logits.

    The student's map goes through a trainable 1x1 convolution to the teacher's channels. Of both maps the orthonormal
    Fourier transform over space is taken (half of it suffices for real maps). The student's amplitude is replaced by a
    trainable fusion of both amplitudes (:class:`SpectrumFusion`) times uniform noise, its phase stays. Every complex
    number ``z`` is put on the Riemann sphere, ``(2 Re z, 2 Im z, |z|² − 1) / (|z|² + 1)``, and every coordinate is
    standardised per channel over batch and frequencies::

        L = w · Σ_{3 coordinates} ½ mean_{n,c,f} a_nc (R_S − R_T)²,    a_nc = 1 − cos(S_nc, T_nc)

    ``a`` is of the adapted map and has no gradient; in the paper variant it has, and is of the student's own map,
    before the convolution, where student and teacher have equally many channels (else there is no ``cos`` of the two).
    The noise depends on the step number only, so a resumed run sees the same. The term is the mean over maps.
    ``variant="paper"`` is their sum with the paper's
    weights: 41, between detectors 7. In segmentation ``w = 1`` would begin with 1.5 times the gradient of Dice and
    cross-entropy; 0.2 leaves the labels in the lead.

    Citation: FourierKD, IEEE Signal Processing Letters, 2024, DOI 10.1109/LSP.2024.3515795.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means the variant's own, by default 0.2 in segmentation and 1 between detectors.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "FourierKD; IEEE SPL 2024; DOI 10.1109/LSP.2024.3515795"
    detection = True
    per_logit, per_feature = 0.0, 20.0
    bound = "spectra of the chosen maps, which are complex and therefore twice as large"

    def __init__(
        self, context: Context, weight: float | None = None, taps: str = "bottleneck", variant: str = "default"
    ) -> None:
        super().__init__(context, "fourier", taps)
        self.paper = check_variant("fourier", variant)
        detection = context.task == "detection"
        own = (7.0 if detection else 41.0) if self.paper else (1.0 if detection else 0.2)
        self.weight = positive("fourier", "weight", own if weight is None else weight)
        self.fusions = nn.ModuleList(SpectrumFusion(pair) for pair in self.pairs)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``fourier``."""
        levels = []
        for level, (s, t) in enumerate(self.features(student, teacher)):
            generator = torch.Generator(t.device).manual_seed(1000 * target.progress.step + level)
            levels.append(self._level(self.fusions[level], s, t, generator))
        total = torch.stack(levels)
        return {"fourier": self.weight * (total.sum() if self.paper else total.mean())}

    def _level(self, fusion: nn.Module, student: Tensor, teacher: Tensor, generator: torch.Generator) -> Tensor:
        adapted = resize(fusion.adapt(student), teacher.shape[2:])  # type: ignore[operator]
        own = self.paper and student.shape[1] == teacher.shape[1]
        compared = resize(student, teacher.shape[2:]) if own else adapted
        attention = 1 - F.cosine_similarity(compared.flatten(2), teacher.flatten(2), dim=2)
        attention = (attention if self.paper else attention.detach()).view(
            *teacher.shape[:2], *(1,) * self.context.rank
        )
        axes = tuple(range(2, teacher.ndim))
        f_s, f_t = (torch.fft.rfftn(x, dim=axes, norm="ortho") for x in (adapted, teacher))
        amplitude = f_s.abs()
        fused = fusion(amplitude, f_t.abs())
        fused = fused * torch.rand(fused.shape, generator=generator, device=fused.device)
        g_s = fused * f_s / (amplitude + 1e-8)
        differences = [(_standard(a) - _standard(b)).square() for a, b in zip(_sphere(g_s), _sphere(f_t), strict=True)]
        return torch.stack([(attention * d).mean() / 2 for d in differences]).sum()


def _sphere(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Stereographic coordinates of complex numbers."""
    square = z.real.square() + z.imag.square()
    return 2 * z.real / (square + 1), 2 * z.imag / (square + 1), (square - 1) / (square + 1)


def _standard(x: Tensor) -> Tensor:
    """Zero mean and unit variance per channel over batch and frequencies."""
    axes = (0, *range(2, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt()
