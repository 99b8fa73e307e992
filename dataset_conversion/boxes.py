"""Boxes as annotations state them, whatever their format, and what can be wrong with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from medkd.core.boxes import box_faults
from medkd.io.checks import Finding

Size = tuple[int, int]
Box = tuple[float, ...]
NamedBox = tuple[str, Box]

_ROUNDING = 1.0
"""Pixels that a box may stick out of the image without being worth a word: annotation tools round."""
_EQUAL = 0.5  # pixels
_SMALLEST = 4  # pixels of an image's side; a box within the first pixel of a larger one states fractions
_CORRECT = "correct the annotation, or remove the image"


@dataclass(frozen=True, kw_only=True)
class Crowds:
    """What one file states about crowds on an image.

    Attributes:
        ignored: class name and box around a crowd, which is not learnt and not judged.
    """

    ignored: tuple[NamedBox, ...] = ()

    def ignored_within(self, size: Size, categories: Collection[str]) -> list[NamedBox]:
        """The crowds of some classes, cut at the image's border; those of no area are left out."""
        kept: list[NamedBox] = []
        for name, (left, top, right, bottom) in self.ignored:
            cut = (max(left, 0.0), max(top, 0.0), min(right, float(size[0])), min(bottom, float(size[1])))
            if name in categories and cut[2] > cut[0] and cut[3] > cut[1]:
                kept.append((name, cut))
        return kept


@dataclass(frozen=True)
class Drawn(Crowds):
    """The boxes of one image as one file states them.

    Attributes:
        file: where they stand.
        boxes: class name and (x_min, y_min, x_max, y_max) in pixels each.
        size: (width, height) of the image according to the file; None where it does not say.
        unknown: classes that the file uses but does not name.
        unusable: annotations that give no box of one object, in words.
    """

    file: Path
    boxes: tuple[NamedBox, ...] = ()
    size: Size | None = None
    unknown: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()

    def joined(self, other: Drawn) -> Drawn:
        """The annotations of both, which are of the same image."""
        size = self.size or other.size
        unusable, ignored = self.unusable + other.unusable, self.ignored + other.ignored
        return Drawn(self.file, self.boxes + other.boxes, size, self.unknown + other.unknown, unusable, ignored=ignored)


def clean_boxes(
    case: str, drawn: Drawn, size: Size, categories: Collection[str]
) -> tuple[list[NamedBox], list[Finding]]:
    """Boxes that can be trained on, and what was wrong.

    A box that sticks out of the image is cut at its border (a warning if by more than a pixel), one that is there twice
    is kept once (a warning). A box of no area or wholly outside, an unknown class and an unusable annotation are
    errors: an image that lacks one of its boxes would teach that there is nothing.

    Args:
        case: case id.
        drawn: what the annotation says.
        size: (width, height) of the image.
        categories: the classes that are known.
    """
    findings = _faults_of_annotation(case, drawn, categories)
    kept: list[NamedBox] = []
    for name, box in drawn.boxes:
        cut, finding = _cut(case, drawn.file, name, box, size)
        if finding is not None:
            findings.append(finding)
        if cut is None:
            continue
        if _is_there(name, cut, kept):
            found = f"{_text(name, box)} twice"
            findings.append(_finding(case, drawn.file, "each box once", found, "one was kept", error=False))
        else:
            kept.append((name, cut))
    return kept, findings


def _faults_of_annotation(case: str, drawn: Drawn, categories: Collection[str]) -> list[Finding]:
    """Classes that nobody knows, and annotations without a box."""
    stated = dict.fromkeys(drawn.unknown)
    for name, _ in drawn.boxes:
        if name not in categories:
            stated[name] = None
    findings = []
    for name in stated:
        expected = f"the classes {', '.join(categories)}"
        findings.append(_finding(case, drawn.file, expected, f"'{name}'", "name it, or correct the file"))
    for text in drawn.unusable:
        expected = "a bbox of four numbers, or polygons, of one object"
        action = "correct it, or remove the image"
        findings.append(_finding(case, drawn.file, expected, text, action))
    return findings


def _is_there(name: str, box: Box, boxes: Sequence[NamedBox]) -> bool:
    same_class = [twin for other, twin in boxes if other == name]
    return any(max(map(_gap, box, twin)) <= _EQUAL for twin in same_class)


def disagreement(first: Sequence[NamedBox], second: Sequence[NamedBox], tolerance: float) -> str | None:
    """How two statements about the same image differ, in words; None where they agree within ``tolerance`` pixels."""
    if len(first) != len(second):
        return f"{len(second)} boxes instead of {len(first)}"
    rest = list(second)
    for name, box in first:

        def distance(other: NamedBox, name: str = name, box: Box = box) -> tuple[bool, float]:
            return other[0] != name, max(map(_gap, box, other[1]))

        near = min(rest, key=distance)
        another_class, pixels = distance(near)
        if another_class:
            return f"the classes {_classes(second)} instead of {_classes(first)}"
        if not pixels <= tolerance:
            return f"a box of {name} that lies {pixels:.3g} px away"
        rest.remove(near)
    return None


def _classes(boxes: Sequence[NamedBox]) -> str:
    return ", ".join(sorted(name for name, _ in boxes))


def _cut(case: str, file: Path, name: str, box: Box, size: Size) -> tuple[Box | None, Finding | None]:
    """The box within the image and a finding, if there is one; None instead of a box that cannot be used."""
    expected = f"a box inside the image of {size[0]}×{size[1]} px"
    stated = _text(name, box)
    if not all(map(math.isfinite, box)):
        return None, _finding(case, file, expected, stated, _CORRECT)
    if max(box) <= 1 and min(box) >= 0 and min(size) > _SMALLEST:
        action = "multiply it by the image's width and height"
        return None, _finding(case, file, f"{expected} in pixels", f"{stated}, fractions of the image", action)
    cut = tuple(map(_within, box, size * 2))
    outside = max(map(_gap, box, cut))
    if fault := box_faults(cut, *size):
        found = f"{stated} with {fault if outside <= _ROUNDING else 'nothing inside'}"
        return None, _finding(case, file, f"{expected} and with area", found, _CORRECT)
    if outside <= _ROUNDING:
        return cut, None
    found = f"{stated}, {outside:.3g} px outside"
    return cut, _finding(case, file, expected, found, "it was cut at the border", error=False)


def _finding(case: str, file: Path, expected: str, found: str, action: str, *, error: bool = True) -> Finding:
    return Finding(case=case, file=str(file), expected=expected, found=found, action=action, error=error)


def _within(value: float, limit: int) -> float:
    """A coordinate inside of the image, in thousandths of a pixel."""
    inside = min(max(value, 0.0), float(limit))
    return round(inside, 3)


def _gap(a: float, b: float) -> float:
    return abs(a - b)


def _text(name: str, box: Sequence[float]) -> str:
    return f"{name} [{', '.join(f'{v:.6g}' for v in box)}]"
