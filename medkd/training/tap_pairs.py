"""The taps that a method reads, and what they give for a patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from medkd.core.features import Tap
from medkd.distillation import Method
from medkd.distillation.pairs import PairMethod


@dataclass(frozen=True)
class TapShape:
    """A tap and what it gives for one patch: ``shape`` is ``(C, *spatial)``."""

    name: str
    stage: str
    stride: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TapPair:
    """What a method compares; ``teacher`` or ``student`` is None for a feature that it takes without a partner."""

    method: str
    student: TapShape | None
    teacher: TapShape | None


def tap_pairs(method: Method, name: str, patch: tuple[int, ...]) -> tuple[TapPair, ...]:
    """The taps that a method reads, paired where it compares pairs, and what they give for a patch.

    Args:
        method: the method, or several joined.
        name: its name.
        patch: voxels per axis.
    """
    joined = getattr(method, "parts", None)
    if isinstance(joined, nn.ModuleDict):
        return tuple(pair for part, m in joined.items() if isinstance(m, Method) for pair in tap_pairs(m, part, patch))
    if isinstance(method, PairMethod):
        return tuple(TapPair(name, _shape(s, patch), _shape(t, patch)) for s, t in method.pairs)
    return _unpaired(method, name, patch)


def _unpaired(method: Method, name: str, patch: tuple[int, ...]) -> tuple[TapPair, ...]:
    """The taps of a method that compares no pairs; one on either side are shown together."""
    needs, context = method.needs(), method.context
    students = _named(context.student_taps, needs.student, patch)
    teachers = _named(context.teacher_taps, (*needs.teacher, *needs.teacher_corrections), patch)
    if len(students) == len(teachers) == 1:
        return (TapPair(name, students[0], teachers[0]),)
    alone = [TapPair(name, student, None) for student in students]
    return (*alone, *(TapPair(name, None, teacher) for teacher in teachers))


def _named(taps: Sequence[Tap], names: Sequence[str], patch: tuple[int, ...]) -> list[TapShape]:
    return [_shape(tap, patch) for tap in taps if tap.name in names]


def _shape(tap: Tap, patch: tuple[int, ...]) -> TapShape:
    return TapShape(
        tap.name, tap.stage, tap.stride, (tap.channels, *(-(-p // s) for p, s in zip(patch, tap.stride, strict=True)))
    )


def pair_table(pairs: Sequence[TapPair]) -> list[str]:
    """One line per pair, in columns; the method is named where there are several."""
    if not pairs:
        return ["none; outputs suffice, if anything is taught at all"]
    rows = [(_side(pair.student), _side(pair.teacher), pair.method) for pair in pairs]
    several = len({pair.method for pair in pairs}) > 1
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"{s:{widths[0]}} ↔ {t:{widths[1]}}{f'  ({name})' if several else ''}".rstrip() for s, t, name in rows]


def _side(tap: TapShape | None) -> str:
    if tap is None:
        return "-"
    stride = "×".join(map(str, tap.stride))
    return f"{tap.name} ({tap.stage}, stride {stride}, {' × '.join(map(str, tap.shape))})"
