"""Attention-corrected features: the student learns the teacher's corrected features and its corrections."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Stage, Tap, Target, pair_by_stride
from medkd.distillation.base import METHODS, Context, Method, Needs, Variant
from medkd.distillation.features.attention_map import attention_distance, energy, resize_nearest
from medkd.distillation.options import positive, tap_named

PAPER_WEIGHT = 25000.0
# The paper averages over voxels; at its reference feature size of 48³ that is this weight on the sum over voxels.
DEFAULT_WEIGHT = PAPER_WEIGHT / 48**3


class AttentionConnector(nn.Module):
    """A channel gate and a spatial gate whose product ``A = m_c · m_s`` plays the part of the teacher's correction.

    ``m_c = h(W₂ relu(W₁ GAP(X)))`` with ``max(8, C/16)`` hidden units, ``m_s = h(K₇ * mean_c X)`` with one kernel of
    size 7, ``h`` the hard sigmoid ``clip((u + 3) / 6, 0, 1)``. The corrected student feature is ``F = X · A``, the
    correction ``R = W A + b`` with ``W`` a 1x1x1 convolution. Only energies ``mean_c F²`` and ``mean_c R²`` are needed;
    as ``A`` is an outer product they follow without
    forming ``A``: ``mean_c R² = m_s² mean a² + 2 m_s mean(a b) + mean b²`` with ``a = W m_c``.

    Args:
        channels: student channels ``C``.
        rank: spatial dimensions, 2 or 3.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        hidden = max(8, 8 * int(channels / 128 + 0.5))
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        self.spatial = (nn.Conv3d if rank == 3 else nn.Conv2d)(1, 1, 7, padding=3)
        self.mix = nn.Linear(channels, channels)
        for layer in (self.squeeze, self.excite, self.spatial, self.mix):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def gates(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Channel gate ``(B, C)`` and spatial gate ``(B, *spatial)`` of features ``(B, C, *spatial)``."""
        channel = F.hardsigmoid(self.excite(F.relu(self.squeeze(features.flatten(2).mean(2)))))
        spatial = F.hardsigmoid(self.spatial(features.mean(1, keepdim=True))).squeeze(1)
        return channel, spatial

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(B, *spatial)`` of the corrected feature and of the correction."""
        channel, spatial = self.gates(features)
        gated = torch.einsum("bcv,bc->bv", features.flatten(2).square(), channel.square()) / features.shape[1]
        corrected = gated.view_as(spatial) * spatial.square()
        scale, bias = F.linear(channel, self.mix.weight), self.mix.bias
        per_sample = (len(features), *(1,) * (features.ndim - 2))
        square = scale.square().mean(1).view(per_sample)
        cross = (scale * bias).mean(1).view(per_sample)
        correction = spatial.square() * square + 2 * spatial * cross + bias.square().mean()
        return corrected, correction


@METHODS.register("acf")
class ACF(Method):
    """Attention-corrected feature distillation, the feature half of ACF-BCKD.

    A teacher's residual block gives ``F_T = x + R_T``: a feature and the correction that led to it. A connector with
    two attention gates (:class:`AttentionConnector`, trained with the student, dropped at export) gives the student's
    ``F_S`` and ``R_S``::

        L = w · ( ‖q(F_S) − q(F_T)‖² + ‖q(R_S) − q(R_T)‖² )       summed over voxels, mean over the batch

    with ``q`` the channel-wise energy map scaled to unit norm, so that channels need not match; if sizes differ, the
    student's maps are resized by nearest neighbour. ``w = 25000 / 48³`` equals the paper's weight at its feature size
    and does not fade with the patch; ``variant="paper"`` is ``25000 · mean over voxels``. The teacher's correction is
    its block's output minus its input; the paper's SegResNet runs recorded the block's output instead, because it adds
    in place (``legacy_alias``).

    Citation: X. Yu, L. Teng, D. Zhang, J. Zheng, H. Chen, "Attention correction feature and boundary constraint
    knowledge distillation for efficient 3D medical image segmentation", Expert Systems with Applications 262:125670,
    2025.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means the variant's own.
        student_tap: where to read the student; None takes the finest decoder tap that pairs with a teacher's (the paper
            variant: the finest of all).
        teacher_tap: the teacher's tap, whose block must have a correction; None likewise.
        legacy_alias: use the teacher's feature as its correction too; reproduces the paper's SegResNet rows only.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: no tap of the teacher has a block correction, or a named tap does not exist.
    """

    citation = "Yu, Teng, Zhang, Zheng, Chen; Expert Systems with Applications 262:125670, 2025"
    by_sample = True
    per_logit, per_feature = 0.0, 2.5
    bound = "energy maps; the attention map is never formed, since it is an outer product"

    def __init__(
        self,
        context: Context,
        weight: float | None = None,
        student_tap: str | None = None,
        teacher_tap: str | None = None,
        legacy_alias: bool = False,
        variant: Variant = "default",
    ) -> None:
        super().__init__(context)
        self.paper = variant == "paper"
        own = PAPER_WEIGHT if self.paper else DEFAULT_WEIGHT
        self.weight = positive("acf", "weight", own if weight is None else weight)
        self.legacy_alias = legacy_alias
        self.student_tap, self.teacher_tap = choose_pair(context, student_tap, teacher_tap, self.paper)
        self.connector = AttentionConnector(self.student_tap.channels, context.rank)

    def needs(self) -> Needs:
        """One student feature; the teacher's feature and correction of one block."""
        name = self.teacher_tap.name
        return Needs((self.student_tap.name,), (name,), () if self.legacy_alias else (name,))

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``acf_feature`` and ``acf_correction``."""
        feature = teacher.features[self.teacher_tap.name]
        correction = feature if self.legacy_alias else teacher.corrections[self.teacher_tap.name]
        size = feature.shape[2:]
        weight = self.weight / prod(size) if self.paper else self.weight
        of_feature, of_correction = self.connector(student.features[self.student_tap.name])
        of_feature, of_correction = resize_nearest(of_feature, size), resize_nearest(of_correction, size)
        return {
            "acf_feature": weight * attention_distance(of_feature, energy(feature)),
            "acf_correction": weight * attention_distance(of_correction, energy(correction)),
        }


def choose_pair(context: Context, student_tap: str | None, teacher_tap: str | None, finest: bool) -> tuple[Tap, Tap]:
    """The student's tap and the teacher's tap with a correction that are compared.

    Args:
        context: the taps of both networks.
        student_tap: a name, or None to choose.
        teacher_tap: a name, or None to choose.
        finest: take the finest decoder tap of each network, whatever their strides, instead of the finest pair of like
            stride.

    Raises:
        MethodError: a named tap does not exist, or no teacher tap with a correction fits.
    """
    students = _wanted("student_tap", context.student_taps, student_tap)
    teachers = _with_correction(context.teacher_taps, teacher_tap)
    if student_tap and teacher_tap:
        return students[0], teachers[0]
    if finest:
        return _finest(students), _finest(teachers)
    stages: tuple[tuple[Stage, ...], ...] = (("decoder",), ("encoder", "bottleneck"))
    for group in stages:
        pairs = pair_by_stride(students, teachers, group)
        if pairs:
            return pairs[0]
    raise MethodError(
        "acf found no student tap in the same stage as a teacher tap with a correction; name both by student_tap and "
        "teacher_tap."
    )


def _wanted(parameter: str, taps: Sequence[Tap], name: str | None) -> list[Tap]:
    """The tap that is named, or all."""
    if name is None:
        return list(taps)
    return [tap_named("acf", parameter, taps, name)]


def _with_correction(taps: Sequence[Tap], name: str | None) -> list[Tap]:
    """The teacher's taps, or the one that is named, whose block has a correction; at least one."""
    found = [tap for tap in _wanted("teacher_tap", taps, name) if tap.correction]
    if found:
        return found
    known = ", ".join(tap.name for tap in taps if tap.correction) or "none"
    lacking = f"{name} has none" if name else "no tap of this teacher has one"
    raise MethodError(
        f"acf needs a teacher block whose correction (output − input) exists, but {lacking}; taps that have one: "
        f"{known}."
    )


def _finest(taps: Sequence[Tap]) -> Tap:
    """The finest decoder tap; before the normalisation where the network offers that, as the released configurations
    do.
    """
    decoder = [tap for tap in taps if tap.stage == "decoder"]
    return min(decoder or taps, key=lambda tap: (prod(tap.stride), not tap.raw))
