"""What networks publish and methods consume: taps, outputs, targets and progress (shared by both branches)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log2, prod
from typing import Literal

from torch import Tensor

Stage = Literal["encoder", "bottleneck", "decoder", "neck", "head"]


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A place in a network where a feature map can be read.

    Attributes:
        name: unique within the network, stable over versions (``enc0``, ``bottleneck``, ``dec1``); ``dec0`` is the
            finest.
        channels: channels of the feature map.
        stride: input voxels per feature voxel, per axis, so that different networks can be paired.
        module: dotted path of the module whose output is the feature map.
        stage: where in the network it lies.
        correction: whether module input and output have equal shapes, so that the block's correction ``output − input``
            exists (the residual branch of an additive block).
        raw: whether it is the output of a convolution before its normalisation and activation; such taps are there for
            methods that ask for them by name and are never paired by default.
    """

    name: str
    channels: int
    stride: tuple[int, ...]
    module: str
    stage: Stage
    correction: bool = False
    raw: bool = False

    @property
    def rank(self) -> int:
        """Spatial dimensions, 2 or 3."""
        return len(self.stride)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """One forward pass, seen by a method.

    Attributes:
        logits: ``(B, K, *spatial)`` at the input's resolution.
        features: tap name → ``(B, C, *spatial/stride)``, of the taps that the method asked for.
        corrections: tap name → output − input of the tap's block, for the taps whose correction was asked for.
        auxiliary: deep-supervision logits, finest first, without the full-resolution ones.
        average: logits ``(B, K, *spatial)`` of the mean probabilities over mirrorings, and over folds where there are
            several, at steps where the method asks for it, see ``Method.wants_average``.
        forward_from: runs the rest of this network from a tap: ``(tap name, feature) → logits``; None where not
            offered.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    corrections: Mapping[str, Tensor] = field(default_factory=dict)
    auxiliary: Sequence[Tensor] = ()
    average: Tensor | None = None
    forward_from: Callable[[str, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Progress:
    """Where training stands; schedules are pure functions of it, so that a resumed run continues exactly.

    Attributes:
        epoch: 0-based epoch.
        epochs: epochs of the whole run.
        step: 0-based optimiser step over the whole run.
    """

    epoch: int = 0
    epochs: int = 1
    step: int = 0

    @property
    def fraction(self) -> float:
        """Share of the epochs that is done, 0 at the start, towards 1 at the end."""
        return self.epoch / max(self.epochs, 1)


@dataclass(frozen=True)
class Target:
    """The ground truth of a batch.

    Attributes:
        labels: softmax: class indices ``(B, 1, *spatial)``, int64; regions: multi-hot ``(B, K, *spatial)``, float.
        valid: mask of annotated voxels ``(B, 1, *spatial)``, bool, or None when all are.
        progress: where training stands.
        labelled: which samples have labels, ``(B,)``, bool, on the host, or None when all have. Methods always find
            labels: of the other samples those that the teacher predicts, see
            :func:`medkd.distillation.completion.completed`.
    """

    labels: Tensor
    valid: Tensor | None = None
    progress: Progress = field(default_factory=Progress)
    labelled: Tensor | None = None


def pair_by_stride(student: Iterable[Tap], teacher: Iterable[Tap], stages: Sequence[Stage]) -> list[tuple[Tap, Tap]]:
    """Pair taps of the same stage group and the nearest stride, finest first; every tap is used at most once.

    For each student tap in one of ``stages`` the teacher tap of the same stage with the closest stride (sum over axes
    of ``|log2|`` ratios) is taken; where several student taps want the same teacher tap, the closest wins. Raw taps are
    left out.
    """
    students, teachers = _pairable(student, stages), _pairable(teacher, stages)
    candidates = []
    for i, own in enumerate(students):
        for j, other in enumerate(teachers):
            if own.stage == other.stage:
                candidates.append((_distance(own, other), i, j))
    used_students: set[int] = set()
    used_teachers: set[int] = set()
    pairs = []
    for _, i, j in sorted(candidates):
        if i not in used_students and j not in used_teachers:
            used_students.add(i)
            used_teachers.add(j)
            pairs.append((students[i], teachers[j]))
    return sorted(pairs, key=lambda pair: prod(pair[0].stride))


def _pairable(taps: Iterable[Tap], stages: Sequence[Stage]) -> list[Tap]:
    return [tap for tap in taps if tap.stage in stages and not tap.raw]


def _distance(a: Tap, b: Tap) -> float:
    distance = 0.0
    for own, other in zip(a.stride, b.stride, strict=True):
        distance += abs(log2(own / other))
    return distance
