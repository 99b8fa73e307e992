"""FourierKD: features are compared frequency by frequency."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant, zero_like
from medkd.distillation.options import positive
from medkd.distillation.pairs import Pair, PairMethod, pointwise, resize

IMAGINARY = 1  # place of the coordinate that follows the imaginary part, see _sphere


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
    Fourier transform over space is taken (of real maps half of it, whose inner columns count twice, for they stand for
    the other half, too). The student's amplitude is replaced by a
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
        self, context: Context, weight: float | None = None, taps: str = "bottleneck", variant: Variant = "default"
    ) -> None:
        super().__init__(context, "fourier", taps)
        self.paper = variant == "paper"
        detection = context.task == "detection"
        if self.paper:
            own = 7.0 if detection else 41.0
        else:
            own = 1.0 if detection else 0.2
        self.weight = positive("fourier", "weight", own if weight is None else weight)
        self.fusions = nn.ModuleList(SpectrumFusion(pair) for pair in self.pairs)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``fourier``."""
        levels = []
        for level, (s, t) in enumerate(self.features(student, teacher)):
            generator = torch.Generator(t.device).manual_seed(1000 * target.progress.step + level)
            levels.append(self._level(self.fusions[level], s, t, generator))
        return {"fourier": self.weight * self.joined(levels)}

    def _level(self, fusion: nn.Module, student: Tensor, teacher: Tensor, generator: torch.Generator) -> Tensor:
        size = teacher.shape[2:]
        adapted = resize(fusion.adapt(student), size)  # type: ignore[operator]
        compared = adapted
        if self.paper and student.shape[1] == teacher.shape[1]:
            compared = resize(student, size)
        likeness = F.cosine_similarity(compared.flatten(2), teacher.flatten(2), dim=2)
        attention = 1 - likeness
        if not self.paper:
            attention = attention.detach()
        axes = tuple(range(2, teacher.ndim))
        f_s = torch.fft.rfftn(adapted, dim=axes, norm="ortho")
        f_t = torch.fft.rfftn(teacher, dim=axes, norm="ortho")
        amplitude = f_s.abs()
        fused = fusion(amplitude, f_t.abs())
        noise = torch.rand(fused.shape, generator=generator, device=fused.device)
        fused = fused * noise
        g_s = fused * f_s / (amplitude + 1e-8)
        attention = attention.view(*attention.shape, *(1,) * self.context.rank)
        columns = Columns(teacher.shape[-1], f_t.real)
        total = zero_like(fused)
        coordinates = zip(_sphere(g_s), _sphere(f_t), strict=True)
        for part, (ours, theirs) in enumerate(coordinates):
            difference = columns.difference(ours, theirs, odd=part == IMAGINARY)
            total = total + columns.mean(attention * difference) / 2
        return total


class Columns:
    """Means over a whole spectrum of which only a half is there, as it is for real maps.

    The other half mirrors it: a real part has the same value there, an imaginary one the opposite. Of the half's
    columns the first, and the last of an even size, are there once in the whole, the others twice.

    Args:
        size: of the real map along the last axis.
        half: a half spectrum ``(B, C, …, size // 2 + 1)``, for its kind and device.
    """

    def __init__(self, size: int, half: Tensor) -> None:
        places = torch.arange(half.shape[-1], device=half.device)
        self.alone = ((places == 0) | (2 * places == size)).to(half.dtype)
        self.shares = (2 - self.alone) * (half.shape[-1] / size)  # their mean is 1

    def mean(self, values: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
        """Mean over the whole of what does not change its sign, over all axes or these."""
        weighted = values * self.shares
        return weighted.mean() if axes is None else weighted.mean(axes, keepdim=True)

    def difference(self, student: Tensor, teacher: Tensor, odd: bool) -> Tensor:
        """Squared differences of both once they have zero mean and unit variance per channel over batch and
        frequencies; in a doubled column the mean of both places.

        Args:
            student: ``(B, C, *frequencies)``.
            teacher: alike.
            odd: whether the values of the other half have the opposite sign.
        """
        kept = self.alone if odd else torch.ones_like(self.alone)  # of a value, in the mean of both places
        s, mean_s = self._scaled(student, kept)
        t, mean_t = self._scaled(teacher, kept)
        return _squares(s - t, mean_s - mean_t, kept)

    def _scaled(self, values: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Values and their mean, both divided by their spread."""
        axes = (0, *range(2, values.ndim))
        mean = self.mean(values * kept, axes)
        variance = self.mean(_squares(values, mean, kept), axes)
        root = (variance + 1e-5).sqrt()
        return values / root, mean / root


def _squares(values: Tensor, mean: Tensor, kept: Tensor) -> Tensor:
    """``(x − m)²`` where the value is kept, and where it has both signs the mean of both, ``x² + m²``."""
    around = (values - mean * kept).square()
    return around + mean.square() * (1 - kept)


def _sphere(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Stereographic coordinates of complex numbers."""
    square = z.real.square() + z.imag.square()
    below = square + 1
    return 2 * z.real / below, 2 * z.imag / below, (square - 1) / below
