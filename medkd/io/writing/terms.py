"""Coded terms (SNOMED CT) and colours of structures and findings, by the names that data sets give them.

``terms.json`` lists them: the code with its meaning, what kind of thing it is, a colour, further names, and for names
that say little by themselves ("anterior") the data set in which they mean this.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.core.serial import nearest

FILE = Path(__file__).with_name("terms.json")
SNOMED = "SCT"
Colour = tuple[int, int, int]
_KEYS = {"scheme", "code", "meaning", "kind", "colour", "aliases", "within", "region"}
_SIDES = {
    "left": ("7771000", "Left"),
    "right": ("24028007", "Right"),
    "bilateral": ("51440002", "Right and left"),
}
_log = logging.getLogger(__name__)
_SHORT_SIDES = {"l": "left", "lt": "left", "r": "right", "rt": "right"}


@dataclass(frozen=True)
class Code:
    """One coded concept: coding scheme, value in it, and what it means in words."""

    scheme: str
    value: str
    meaning: str


UNKNOWN = Code(SNOMED, "261665006", "Unknown")
"""Category and type of a structure whose term is not known: DICOM wants both stated."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """What a structure is.

    Attributes:
        category: anatomical structure, morphologically abnormal structure, tissue or physical object.
        kind: the structure or finding itself.
        side: left, right or both, where the name says so.
        region: where a finding lies, where its name says so.
        colour: red, green and blue from 0 to 255; None where none was chosen.
    """

    category: Code
    kind: Code
    side: Code | None = None
    region: Code | None = None
    colour: Colour | None = None


class Terms:
    """The terms of a table, found by name.

    Args:
        table: name → entry, as in ``terms.json``.
        kinds: kind → code and meaning of the category.
        where: how errors call the table.

    Raises:
        DataError: an entry is not of that form.
    """

    def __init__(self, table: Mapping[str, Any], kinds: Mapping[str, Any], where: str) -> None:
        self.entries: dict[str, list[tuple[str, Term]]] = {}
        for name, entry in table.items():
            term = _term(name, entry, kinds, where)
            for spelling in (name, *entry.get("aliases", ())):
                self.entries.setdefault(plain(spelling), []).append((entry.get("within", ""), term))

    def find(self, name: str, dataset: str = "") -> Term | None:
        """The term of a structure; None where it is not known.

        A side in the name is understood ("kidney_left", "Head_of_femur_L"), and so is a finding with its place
        ("liver_tumor").

        Args:
            name: of a label.
            dataset: name of the data set, which tells what "anterior" is a part of.
        """
        words = plain(name)
        found = self._exact(words, dataset)
        if found is not None:
            return found
        for rest, side in _without_side(words):
            found = self._exact(rest, dataset) or self._placed(rest, dataset)
            if found is not None:
                return _with_side(found, side)
        return self._placed(words, dataset)

    def _exact(self, words: str, dataset: str) -> Term | None:
        known = self.entries.get(words, ())
        for within, term in known:
            if within and within in plain(dataset):
                return term
        for within, term in known:
            if not within:
                return term
        return None

    def _placed(self, words: str, dataset: str) -> Term | None:
        """A finding behind its anatomical structure: ``lung_cancer``."""
        parts = words.split("_")
        for cut in range(1, len(parts)):
            place = self._exact("_".join(parts[:cut]), dataset)
            finding = self._exact("_".join(parts[cut:]), dataset)
            if place is not None and finding is not None and finding.category != place.category:
                return Term(
                    category=finding.category,
                    kind=finding.kind,
                    side=finding.side,
                    region=place.kind,
                    colour=finding.colour,
                )
        return None


@cache
def known_terms() -> Terms:
    """The table that medkd brings."""
    table = read_json(FILE)
    return Terms(table["terms"], table["kinds"], str(FILE))


def terms_with(path: Path | None, structures: Iterable[str] = ()) -> Terms:
    """The table that medkd brings, with the entries of a file of the user's, which go first.

    The file is an object from names to entries of the same form: ``{"rectus": {"scheme": "SCT", "code": "…", "meaning":
    "…", "colour": [180, 60, 50]}}``. Entries that none of the structures is called by are told.

    Args:
        path: of the file; None for none.
        structures: names of the model's structures or classes, where they are known.

    Raises:
        DataError: the file is missing, or of another form.
    """
    if path is None:
        return known_terms()
    own = read_json(path)
    if not isinstance(own, dict) or not all(isinstance(entry, dict) for entry in own.values()):
        raise DataError(f"{path}: expected an object from names of structures to their terms; see docs/dicom.md.")
    _tell_unused(path, own, list(structures))
    brought = read_json(FILE)
    taken = {plain(spelling) for name, entry in own.items() for spelling in (name, *_aliases(entry, name, str(path)))}
    terms = Terms(brought["terms"], brought["kinds"], str(FILE))
    for spelling in taken:
        terms.entries.pop(spelling, None)
    terms.entries.update(Terms(own, brought["kinds"], str(path)).entries)
    return terms


def _tell_unused(path: Path, own: Mapping[str, Any], structures: Sequence[str]) -> None:
    """Name the entries that no structure is called by, where the structures are known."""
    words = set[str]().union(*map(_words, structures))
    for name, entry in own.items() if structures else ():
        if words.isdisjoint(map(plain, (name, *_aliases(entry, name, str(path))))):
            hint = nearest(name, structures)
            _log.warning("%s: '%s' is the name of no structure of the model and is not used.%s", path, name, hint)


def _words(name: str) -> set[str]:
    """All by which the term of a structure may be found, see :meth:`Terms.find`."""
    found = {plain(name), *(rest for rest, _ in _without_side(plain(name)))}
    for words in list(found):
        parts = words.split("_")
        for cut in range(1, len(parts)):
            found |= {"_".join(parts[:cut]), "_".join(parts[cut:])}
    return found


def plain(name: str) -> str:
    """A name without case, accents and punctuation.

    >>> plain("Right Adrenal-Gland"), plain("leftVentricle"), plain("Ösophagus")
    ('right_adrenal_gland', 'left_ventricle', 'osophagus')
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    letters = unicodedata.normalize("NFKD", apart).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", letters).strip("_")


def _without_side(words: str) -> Iterator[tuple[str, str]]:
    """The name without each word that is a side, and that side."""
    parts = words.split("_")
    for place, part in enumerate(parts):
        side = part if part in _SIDES else ""
        if place in (0, len(parts) - 1):
            side = side or _SHORT_SIDES.get(part, "")
        if side and len(parts) > 1:
            yield "_".join(parts[:place] + parts[place + 1 :]), side


def _with_side(term: Term, side: str) -> Term:
    code = Code(SNOMED, *_SIDES[side])
    return Term(category=term.category, kind=term.kind, side=code, region=term.region, colour=term.colour)


def _term(name: str, entry: Mapping[str, Any], kinds: Mapping[str, Any], where: str) -> Term:
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise DataError(f"{where}: '{name}' has the unknown key '{unknown[0]}'; expected {', '.join(sorted(_KEYS))}.")
    kind = entry.get("kind", "anatomy")
    if kind not in kinds:
        raise DataError(f"{where}: the kind of '{name}' must be {' or '.join(kinds)}, found {kind!r:.100}.")
    _aliases(entry, name, where)
    region = entry.get("region")
    return Term(
        category=_code(name, SNOMED, kinds[kind], where),
        kind=_code(name, entry.get("scheme", SNOMED), (entry.get("code"), entry.get("meaning")), where),
        region=None if region is None else _code(name, SNOMED, region, where),
        colour=_colour(name, entry.get("colour"), where),
    )


def _aliases(entry: Mapping[str, Any], name: str, where: str) -> list[str]:
    aliases = entry.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise DataError(f"{where}: 'aliases' of '{name}' must be a list of names, found {aliases!r:.100}.")
    if not isinstance(entry.get("within", ""), str):
        raise DataError(f"{where}: 'within' of '{name}' must be a part of a data set's name.")
    return aliases


def _code(name: str, scheme: Any, pair: Any, where: str) -> Code:
    """A code within DICOM's limits: 16 characters for scheme and value, 64 for the meaning."""
    texts = [scheme, *(pair if isinstance(pair, (list, tuple)) else [pair])]
    if len(texts) != 3 or not all(isinstance(text, str) and text for text in texts):
        raise DataError(f"{where}: '{name}' needs 'code' and 'meaning' as texts, found {texts!r:.200}.")
    if max(len(texts[0]), len(texts[1])) > 16 or len(texts[2]) > 64 or any("\\" in text for text in texts):
        raise DataError(
            f"{where}: '{name}': a scheme and a code have at most 16 characters and a meaning 64, none of them a "
            f"backslash, found {texts!r:.200}."
        )
    return Code(*texts)


def _colour(name: str, colour: Any, where: str) -> Colour | None:
    if colour is None:
        return None
    whole = isinstance(colour, list) and len(colour) == 3 and all(type(part) is int for part in colour)
    if not whole or min(colour) < 0 or max(colour) > 255:
        raise DataError(f"{where}: the colour of '{name}' must be three whole numbers from 0 to 255, found {colour!r}.")
    red, green, blue = colour
    return red, green, blue
