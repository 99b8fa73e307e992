"""The structures of a label map: names, values, terms and colours that differ."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from medkd.core.labels import LabelSpec
from medkd.io.writing.terms import Colour, Term, Terms

_APART = (60, 30, 15, 1)  # sum of the differences of red, green and blue: the largest that is free is taken
_ATTEMPTS = 96
_GOLDEN = 0.618034
_SHADES = ((0.75, 0.9), (0.5, 0.95), (0.9, 0.6), (0.4, 0.7))  # saturation and brightness, round after round


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What some values of a label map mean.

    Attributes:
        name: as the data set calls it.
        values: of its voxels; several for a region.
        colour: red, green and blue from 0 to 255.
        term: what it is; None where that is not known.
    """

    name: str
    values: tuple[int, ...]
    colour: Colour
    term: Term | None = None


def mask_of(array: np.ndarray, structure: Structure) -> np.ndarray:
    """The voxels of a label map that belong to a structure, bool."""
    if len(structure.values) == 1:
        return array == structure.values[0]
    return np.isin(array, structure.values)


def structures_of(labels: LabelSpec, terms: Terms, dataset: str = "") -> tuple[Structure, ...]:
    """The labels or regions, as they are evaluated; regions may overlap."""
    return _coloured(labels.foreground, terms, dataset)


def painted_structures(labels: LabelSpec, terms: Terms, dataset: str = "") -> tuple[Structure, ...]:
    """One structure per value of a label map.

    Where labels are regions, a value is called after the smallest region that holds it, and those inside of this one
    that do not: "whole_tumor without tumor_core".
    """
    if not labels.regions:
        return structures_of(labels, terms, dataset)
    named = []
    for value in labels.values:
        if value not in (0, labels.ignore):
            named.append((_name_of_value(labels, value), (value,)))
    return _coloured(named, terms, dataset)


def overlapping(structures: Iterable[Structure]) -> tuple[str, str] | None:
    """The names of two structures that share a value; None where there are none."""
    owner: dict[int, str] = {}
    for structure in structures:
        for value in structure.values:
            if value in owner:
                return owner[value], structure.name
            owner[value] = structure.name
    return None


def _name_of_value(labels: LabelSpec, value: int) -> str:
    holding = [(len(values), name, set(values)) for name, values in labels.foreground if value in values]
    if not holding:
        return f"label_{value}"
    _, name, smallest = min(holding, key=lambda entry: entry[0])
    inside = [other for other, values in labels.foreground if set(values) < smallest and value not in values]
    return f"{name} without {' and '.join(inside)}" if inside else name


def _coloured(entries: Iterable[tuple[str, tuple[int, ...]]], terms: Terms, dataset: str) -> tuple[Structure, ...]:
    used: list[Colour] = []
    found = []
    for name, values in entries:
        term = terms.find(name, dataset)
        used.append(_free_colour(term, used))
        found.append(Structure(name=name, values=values, colour=used[-1], term=term))
    return tuple(found)


def _free_colour(term: Term | None, used: list[Colour]) -> Colour:
    """The term's own colour, a lighter one for a second side, or the next of the palette that none has yet."""
    own = None if term is None else term.colour
    if own is not None:
        red, green, blue = own
        lighter = (red + (255 - red) // 2, green + (255 - green) // 2, blue + (255 - blue) // 2)
        for colour in (own, lighter):
            if _is_free(colour, used, _APART[0]):
                return colour
    number = len(used)
    for apart in _APART:
        for attempt in range(number, number + _ATTEMPTS):
            if _is_free(palette(attempt), used, apart):
                return palette(attempt)
    return palette(number)  # thousands of structures: some must look alike


def palette(number: int) -> Colour:
    """The colour of the structure with this number, from 0: hues that lie far apart."""
    saturation, brightness = _SHADES[number // 12 % len(_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def _is_free(colour: Colour, used: list[Colour], apart: int) -> bool:
    return all(_distance(colour, other) >= apart for other in used)


def _distance(one: Colour, other: Colour) -> int:
    return sum(abs(first - second) for first, second in zip(one, other, strict=True))
