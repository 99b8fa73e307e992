"""SFD-KD: whole features, and their low-frequency and low-rank part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant
from medkd.distillation.features.standardize import standardize
from medkd.distillation.options import at_least, positive
from medkd.distillation.pairs import Pair, PairMethod, pointwise, resize

# With this last bias the attention on singular values begins at sigmoid(4) = 0.98: close to the plain low-rank teacher.
START = 4.0


class Decoupling(nn.Module):
    """The trainable parts of one level: two adapters, the spectral filter, and the attention on singular values.

    Args:
        pair: student tap and teacher tap.
        k: singular values that are kept.
        rectify: normalise (batch) and rectify the adapted feature, as the original does.
        lowest: smallest attention, which keeps the trivial solution "both are zero" away.
    """

    def __init__(self, pair: Pair, k: int, rectify: bool, lowest: float) -> None:
        super().__init__()
        student, teacher = pair
        self.whole: nn.Module = pointwise(student.rank, student.channels, teacher.channels)
        if rectify:
            norm = nn.BatchNorm3d if student.rank == 3 else nn.BatchNorm2d
            self.whole = nn.Sequential(self.whole, norm(teacher.channels), nn.ReLU())
        same = student.channels == teacher.channels
        self.smooth = nn.Identity() if same else pointwise(student.rank, student.channels, teacher.channels)
        shape = (1, teacher.channels, *(1,) * student.rank)
        self.gain = nn.Parameter(torch.stack((torch.ones(shape), torch.zeros(shape))))  # real and imaginary part
        hidden = max(k // 2, 1)
        self.attention = nn.Sequential(nn.Linear(k, hidden), nn.ReLU(), nn.Linear(hidden, k))
        nn.init.constant_(self.attention[2].bias, START)  # type: ignore[arg-type]
        self.k = k
        self.lowest = lowest

    def low_pass(self, features: Tensor, cutoff: float) -> Tensor:
        """Scale every channel's spectrum by a trainable complex number and keep frequencies up to ``cutoff`` along
        every axis.
        """
        axes = tuple(range(2, features.ndim))
        size = features.shape[2:]
        spectrum = torch.fft.rfftn(features, dim=axes)
        spectrum = spectrum * torch.complex(self.gain[0], self.gain[1])
        for axis in axes:
            of_axis = torch.fft.rfftfreq if axis == axes[-1] else torch.fft.fftfreq
            frequencies = of_axis(size[axis - 2], device=features.device)
            shape = [1] * features.ndim
            shape[axis] = -1
            spectrum = spectrum * (frequencies.abs() <= cutoff).view(shape)
        return torch.fft.irfftn(spectrum, s=size, dim=axes)

    def low_rank(self, features: Tensor) -> Tensor:
        """``U_k diag(a s_k) V_kᵀ`` of the matrix (channels by voxels) of every sample, with attention ``a`` from ``s /
        s₁``.
        """
        matrix = features.flatten(2)
        with torch.no_grad():
            basis, values = leading_directions(matrix, self.k)
        relative = values / values[:, :1].clamp(min=1e-12)
        relative = torch.nn.functional.pad(relative, (0, self.k - relative.shape[1]))
        attention = torch.sigmoid(self.attention(relative))
        share = self.lowest + (1 - self.lowest) * attention
        share = share[:, : values.shape[1]].unsqueeze(1)
        if basis.shape[1] == matrix.shape[1]:  # directions of the channels
            low = (basis * share) @ (basis.transpose(1, 2) @ matrix)
        else:
            low = (matrix @ basis * share) @ basis.transpose(1, 2)
        return low.view_as(features)


def leading_directions(matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The leading singular vectors of ``(B, C, V)`` on its shorter side, ``(B, min(C, V), k')``, and singular values
    ``(B, k')``.

    They are the eigenvectors of the Gram matrix of that side, so the long side is never decomposed; ``k' = min(k, C,
    V)``.
    """
    short = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.transpose(1, 2)
    squares, vectors = torch.linalg.eigh(short @ short.transpose(1, 2))
    k = min(k, short.shape[1])
    leading = vectors.flip(2)[:, :, :k]
    values = squares.flip(1)[:, :k]
    return leading, values.clamp(min=0).sqrt()


@METHODS.register("sfd")
class SFD(PairMethod):
    """Structured feature decoupling.

    ``L = w · mean_l ( λ MO_l + (1 − λ) FO_l )`` with

    - ``MO = mean (norm(A S) − norm(T))²``, ``A`` a trainable 1x1 convolution, a student map of another size resized
      linearly;
    - ``FO = mean (norm(LP(S)) − norm(T_k))²``: the student low-passed with a trainable complex gain per channel
      (frequencies up to ``cutoff`` cycles per voxel along every axis), the teacher's channels-by-voxels matrix reduced
      to its ``k`` largest singular values, which a small trainable attention weighs.

    ``norm`` standardises per channel over batch and space, and the attention is at least ½: both keep away the solution
    in which everything is zero. The original builds its trainable parts anew at every step, so that nothing of them is
    learnt; here they are trained, saved and dropped at export. ``variant="paper"`` has no ``norm``, a rectified and
    batch-normalised ``A S``, ``k = 128`` and sums over levels.

    Citation: SFD-KD, structured feature decoupling for fracture detectors, 2025 (code adgo007/SFD-KD; no paper found).

    Args:
        context: taps, outputs and geometry.
        weight: ``w``.
        share: ``λ``.
        k: singular values kept; None means half of the teacher's channels, in the paper variant 128.
        cutoff: highest frequency kept, in cycles per voxel (the highest there is is ½).
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "SFD-KD; 2025; github.com/adgo007/SFD-KD"
    detection = True
    per_logit, per_feature = 0.0, 11.0
    bound = "singular vectors from the Gram matrix of the shorter side, so the long side is never decomposed"

    def __init__(
        self,
        context: Context,
        weight: float = 1.0,
        share: float = 0.5,
        k: int | None = None,
        cutoff: float = 0.25,
        taps: str = "decoder",
        variant: Variant = "default",
    ) -> None:
        super().__init__(context, "sfd", taps)
        self.paper = variant == "paper"
        self.weight = positive("sfd", "weight", weight)
        self.share = at_least("sfd", "share", share, 0.0)
        self.cutoff = positive("sfd", "cutoff", cutoff)
        kept = 128 if k is None and self.paper else k
        lowest = 0.0 if self.paper else 0.5
        self.parts = nn.ModuleList()
        for pair in self.pairs:
            channels = pair[1].channels
            if kept is None:
                width = max(channels // 2, 1)
            else:
                width = min(int(positive("sfd", "k", kept)), channels)
            self.parts.append(Decoupling(pair, width, self.paper, lowest))

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``sfd_whole`` and ``sfd_smooth``."""
        whole = []
        smooth = []
        for part, (s, t) in zip(self.parts, self.features(student, teacher), strict=True):
            if not isinstance(part, Decoupling):
                continue
            size = t.shape[2:]
            whole.append(self._apart(resize(part.whole(s), size), t))
            passed = part.low_pass(resize(part.smooth(s), size), self.cutoff)
            smooth.append(self._apart(passed, part.low_rank(t)))
        return {
            "sfd_whole": self.weight * self.share * self.joined(whole),
            "sfd_smooth": self.weight * (1 - self.share) * self.joined(smooth),
        }

    def _apart(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``mean (norm(S) − norm(T))²``, in the paper's variant without ``norm``."""
        if not self.paper:
            student = standardize(student)
            teacher = standardize(teacher)
        return (student - teacher).square().mean()
