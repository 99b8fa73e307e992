"""Which feature maps of student and teacher a method compares, and how they are brought together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Stage, Tap, pair_by_stride
from medkd.distillation.base import Context, Method, Needs
from medkd.distillation.options import tap_named

Pair = tuple[Tap, Tap]
WEAK = 0.1  # gain of an adapter before an error that is not standardised
STAGES: dict[str, tuple[Stage, ...]] = {
    "encoder": ("encoder",),
    "bottleneck": ("bottleneck",),
    "decoder": ("decoder",),
    "deep": ("encoder", "bottleneck"),
    "all": ("encoder", "bottleneck", "decoder"),
}


def choose_pairs(method: str, context: Context, taps: str) -> list[Pair]:
    """The pairs of taps that a method compares, finest first.

    Args:
        method: the method's name, for error texts.
        context: the taps of both networks.
        taps: ``last`` (the finest decoder pair), ``encoder``, ``bottleneck``, ``decoder``, ``deep`` (encoder and
            bottleneck), ``all``,
            or names: ``student:teacher[,student:teacher …]``. Between detectors, every word means the necks' maps of
                equal stride.

    Raises:
        MethodError: a name is unknown, or the two networks have no such pair.
    """
    if ":" in taps:
        named = [entry.partition(":") for entry in taps.split(",")]
        return [
            (
                tap_named(method, "taps", context.student_taps, s.strip()),
                tap_named(method, "taps", context.teacher_taps, t.strip()),
            )
            for s, _, t in named
        ]
    if taps != "last" and taps not in STAGES:
        raise MethodError(
            f"{method}.taps must be one of last, {', '.join(STAGES)}, or STUDENT:TEACHER names, found '{taps}'."
        )
    if context.task == "detection":
        return _neck_pairs(method, context)
    pairs = pair_by_stride(context.student_taps, context.teacher_taps, STAGES["decoder" if taps == "last" else taps])
    if taps in ("last", "bottleneck") and not pairs:  # a network may lack the stage: then the deepest pair there is
        pairs = pair_by_stride(context.student_taps, context.teacher_taps, STAGES["all"])[-1:]
    if not pairs:
        known = [", ".join(t.name for t in side) or "none" for side in (context.student_taps, context.teacher_taps)]
        raise MethodError(
            f"{method} found no pair of taps for '{taps}': the student has {known[0]}, the teacher {known[1]}; name "
            "them."
        )
    return pairs[:1] if taps == "last" else pairs


def _neck_pairs(method: str, context: Context) -> list[Pair]:
    """Every pair of neck maps with the same stride, finest first."""
    pairs = [
        (s, t) for s, t in pair_by_stride(context.student_taps, context.teacher_taps, ("neck",)) if s.stride == t.stride
    ]
    if not pairs:
        known = [
            ", ".join(f"{t.name} ({t.stride[0]})" for t in side if t.stage == "neck")
            for side in (context.student_taps, context.teacher_taps)
        ]
        raise MethodError(
            f"{method} found no neck maps of equal stride: the student has {known[0]}, the teacher {known[1]}."
        )
    return pairs


class PairMethod(Method):
    """A method that compares pairs of feature maps.

    Args:
        context: taps, outputs and geometry.
        name: the method's name, for error texts.
        taps: see :func:`choose_pairs`.

    Attributes:
        pairs: student tap and teacher tap of every pair, finest first.
    """

    def __init__(self, context: Context, name: str, taps: str) -> None:
        super().__init__(context)
        self.pairs = choose_pairs(name, context, taps)

    def needs(self) -> Needs:
        """Both features of every pair."""
        return Needs(
            tuple(dict.fromkeys(s.name for s, _ in self.pairs)), tuple(dict.fromkeys(t.name for _, t in self.pairs))
        )

    def features(self, student: Outputs, teacher: Outputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Student and teacher features ``(B, C, *spatial)`` of every pair; channels and sizes may differ."""
        for s, t in self.pairs:
            yield student.features[s.name], teacher.features[t.name]


def resize(features: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``(B, C, *spatial)`` linearly to ``size``; unchanged where the size fits."""
    if tuple(features.shape[2:]) == tuple(size):
        return features
    return F.interpolate(
        features, size=tuple(size), mode="trilinear" if features.ndim == 5 else "bilinear", align_corners=False
    )


def pointwise(rank: int, channels_in: int, channels_out: int, *, bias: bool = True) -> nn.Module:
    """A trainable 1x1 convolution, Kaiming-normal; what brings student channels to the teacher's."""
    layer = (nn.Conv3d if rank == 3 else nn.Conv2d)(channels_in, channels_out, 1, bias=bias)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def adapter(pair: Pair, *, always: bool = False, gain: float = 1.0) -> nn.Module:
    """A 1x1 convolution from the student's to the teacher's channels, or nothing where they are equal.

    Its first weights are multiplied by ``gain``. A squared error behind a random convolution of full strength is at
    first reduced most quickly by making the student's map small, which starves the layers after it; behind a weak one
    (:data:`WEAK`) the convolution first learns what can be read out of the map, and then pulls at it.
    """
    student, teacher = pair
    if student.channels == teacher.channels and not always:
        return nn.Identity()
    layer = pointwise(student.rank, student.channels, teacher.channels)
    with torch.no_grad():
        layer.weight.mul_(gain)  # type: ignore[operator, union-attr]
    return layer


def voxels(pair: Pair, context: Context) -> int:
    """Voxels of the teacher's feature map at the training patch."""
    return prod(max(p // s, 1) for p, s in zip(context.patch_size, pair[1].stride, strict=True))
