"""Channel-wise distillation of neck maps: where each channel fires."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.core.features import Outputs, Target
from medkd.detection.methods.registry import DETECTION_METHODS
from medkd.distillation.base import Context, Variant
from medkd.distillation.options import positive
from medkd.distillation.pairs import PairMethod, adapter, resize


@DETECTION_METHODS.register("cwd")
class DetectorCWD(PairMethod):
    """Channel-wise distillation between detectors: every channel of a neck map, softened over space, imitates the
    teacher's.

    ``φ_c(v) = exp(F_c(v) / τ) / Σ_u exp(F_c(u) / τ)`` and::

        L = w τ² · mean_l mean over (n, c) of Σ_v φ_T log(φ_T / φ_S)

    A trainable 1x1 convolution brings student channels to the teacher's where they differ, a map of another size is
    resized linearly. ``variant="paper"`` sums over levels with the weight of the authors' detectors, 10.

    Citation: C. Shu, Y. Liu, J. Gao, Z. Yan, C. Shen, ICCV 2021, arXiv 2011.13256.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means the variant's own.
        temperature: ``τ``.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the necks share no stride, or a parameter is out of its range.
    """

    citation = "Shu, Liu, Gao, Yan, Shen; ICCV 2021; arXiv 2011.13256"
    detection = True

    def __init__(
        self,
        context: Context,
        weight: float | None = None,
        temperature: float = 1.0,
        taps: str = "all",
        variant: Variant = "default",
    ) -> None:
        super().__init__(context, "cwd", taps)
        self.paper = variant == "paper"
        self.weight = positive("cwd", "weight", weight if weight is not None else (10.0 if self.paper else 1.0))
        self.temperature = positive("cwd", "temperature", temperature)
        self.adapters = nn.ModuleList(adapter(pair) for pair in self.pairs)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``cwd``."""
        levels = []
        for adapt, (s, t) in zip(self.adapters, self.features(student, teacher), strict=True):
            log_s, log_t = (
                F.log_softmax(x.flatten(2) / self.temperature, 2) for x in (resize(adapt(s), t.shape[2:]), t)
            )
            levels.append((log_t.exp() * (log_t - log_s)).sum(2).mean())
        total = torch.stack(levels)
        return {"cwd": self.weight * self.temperature**2 * (total.sum() if self.paper else total.mean())}
