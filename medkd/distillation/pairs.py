"""Which feature maps of student and teacher a method compares, and how they are brought together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Stage, Tap, pair_by_stride
from medkd.core.serial import nearest
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
        return [_named_pair(method, context, entry) for entry in taps.split(",")]
    if taps != "last" and taps not in STAGES:
        raise MethodError(
            f"{method}.taps must be one of last, {', '.join(STAGES)}, or STUDENT:TEACHER names, found "
            f"'{taps}'.{nearest(taps, ('last', *STAGES))}"
        )
    if context.task == "detection":
        return _neck_pairs(method, context)
    return _stage_pairs(method, context, taps)


def _named_pair(method: str, context: Context, entry: str) -> Pair:
    """The pair of ``student:teacher``."""
    student, _, teacher = entry.partition(":")
    return (
        tap_named(method, "taps", context.student_taps, student.strip()),
        tap_named(method, "taps", context.teacher_taps, teacher.strip()),
    )


def _stage_pairs(method: str, context: Context, word: str) -> list[Pair]:
    """The pairs of a stage, finest first; for a stage that a network may lack, the deepest pair there is."""
    student, teacher = context.student_taps, context.teacher_taps
    pairs = pair_by_stride(student, teacher, STAGES["decoder" if word == "last" else word])
    if word in ("last", "bottleneck") and not pairs:
        pairs = pair_by_stride(student, teacher, STAGES["all"])[-1:]
    if not pairs:
        ours, theirs = (", ".join(tap.name for tap in taps) or "none" for taps in (student, teacher))
        raise MethodError(
            f"{method} found no pair of taps for '{word}': the student has {ours}, the teacher {theirs}; name them."
        )
    return pairs[:1] if word == "last" else pairs


def _neck_pairs(method: str, context: Context) -> list[Pair]:
    """Every pair of neck maps with the same stride, finest first."""
    near = pair_by_stride(context.student_taps, context.teacher_taps, ("neck",))
    pairs = [pair for pair in near if pair[0].stride == pair[1].stride]
    if not pairs:
        ours, theirs = _necks(context.student_taps), _necks(context.teacher_taps)
        raise MethodError(f"{method} found no neck maps of equal stride: the student has {ours}, the teacher {theirs}.")
    return pairs


def _necks(taps: Sequence[Tap]) -> str:
    return ", ".join(f"{tap.name} ({tap.stride[0]})" for tap in taps if tap.stage == "neck")


class PairMethod(Method):
    """A method that compares pairs of feature maps.

    Args:
        context: taps, outputs and geometry.
        name: the method's name, for error texts.
        taps: see :func:`choose_pairs`.

    Attributes:
        pairs: student tap and teacher tap of every pair, finest first.
        paper: whether the paper's variant is wanted.
    """

    paper = False

    def __init__(self, context: Context, name: str, taps: str) -> None:
        super().__init__(context)
        self.pairs = choose_pairs(name, context, taps)

    def needs(self) -> Needs:
        """Both features of every pair."""
        students = dict.fromkeys(student.name for student, _ in self.pairs)
        teachers = dict.fromkeys(teacher.name for _, teacher in self.pairs)
        return Needs(tuple(students), tuple(teachers))

    def features(self, student: Outputs, teacher: Outputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Student and teacher features ``(B, C, *spatial)`` of every pair; channels and sizes may differ."""
        for s, t in self.pairs:
            yield student.features[s.name], teacher.features[t.name]

    def joined(self, levels: Sequence[Tensor]) -> Tensor:
        """The levels' losses as one: their mean, and in the paper's variant their sum, as released."""
        total = torch.stack(list(levels))
        return total.sum() if self.paper else total.mean()


class AdaptedMethod(PairMethod):
    """A method that brings student maps to the teacher's channels by trainable 1x1 convolutions, and to its size.

    Args:
        context: taps, outputs and geometry.
        name: the method's name, for error texts.
        taps: see :func:`choose_pairs`.
        always: a convolution also where the channels are equal.
        gain: see :func:`adapter`.
    """

    def __init__(self, context: Context, name: str, taps: str, *, always: bool = False, gain: float = 1.0) -> None:
        super().__init__(context, name, taps)
        self.adapters = nn.ModuleList(adapter(pair, always=always, gain=gain) for pair in self.pairs)

    def adapted(self, student: Outputs, teacher: Outputs) -> Iterator[tuple[Tensor, Tensor]]:
        """The student's adapted features and the teacher's features ``(B, C, *spatial)`` of every pair; alike in
        shape.
        """
        for adapt, (s, t) in zip(self.adapters, self.features(student, teacher), strict=True):
            yield resize(adapt(s), t.shape[2:]), t


def resize(features: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``(B, C, *spatial)`` linearly to ``size``; unchanged where the size fits."""
    if tuple(features.shape[2:]) == tuple(size):
        return features
    mode = "trilinear" if features.ndim == 5 else "bilinear"
    return F.interpolate(features, size=tuple(size), mode=mode, align_corners=False)


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
