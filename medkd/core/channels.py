"""Whether two lists of channel names mean the same images, and which machine made them.

Rule: names are compared without case, spaces and punctuation, and a few spellings of one sequence are one name (T1c,
T1ce, T1Gd). Names that say nothing about the image (a number, ``channel_0``, ``image``, the name of a normalisation)
agree with every name, and so does ``MRI`` with every name that is not of another machine (CT, PET, …).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPELLINGS = {
    "t1": ("t1w", "t1n", "t1native", "t1weighted", "mrt1"),
    "t1ce": ("t1c", "t1gd", "t1gad", "t1post", "t1contrast", "t1wce", "t1wc", "t1wgd", "t1cweighted", "ct1", "cet1"),
    "t2": ("t2w", "t2weighted", "mrt2"),
    "flair": ("t2f", "t2flair", "fl", "flairw"),
    "dwi": ("diffusion",),
    "adc": ("adcmap",),
    "ct": ("cta", "cect", "ncct", "computedtomography"),
    "pet": ("fdg", "fdgpet", "petct", "suv"),
    "mri": ("mr", "magneticresonance"),
}
_SAME: dict[str, str] = {}
for _name, _others in _SPELLINGS.items():
    _SAME |= dict.fromkeys((_name, *_others), _name)
_SILENT = re.compile(
    r"\d*|(channel|ch|c|image|img|input|modality|mod|scan|volume|data|series|sequence|nonorm|none|zscore|grayscale"
    r"|gray|grey|intensity|rescaleto01|rescale01|rgbto01|rgb01)\d*"
)
_MR = ("mri", "t1", "t1ce", "t2", "flair", "dwi", "adc", "pd", "pdw", "swi")
_OTHER_MACHINES = ("ct", "pet", "us", "ultrasound", "xray", "xr", "cr", "dx", "spect")


def differing_channels(theirs: Sequence[str], ours: Sequence[str]) -> str | None:
    """What tells two lists of channel names apart, as the end of ``has …``; None where nothing does, or where one of
    both has no names.

    Args:
        theirs: names in the order of the teacher's input.
        ours: names in the order of the student's.
    """
    if not theirs or not ours:
        return None
    found = list(map(_plain, theirs))
    expected = list(map(_plain, ours))
    if len(found) != len(expected):
        return "another number of input channels"
    if all(map(_agree, found, expected)):
        return None
    return "the same channels in another order" if sorted(found) == sorted(expected) else "other channels"


def machine(channel: str) -> str:
    """``"CT"`` or ``"MR"`` where a channel's name says so, else an empty text.

    >>> machine("CTA"), machine("T1Gd"), machine("image")
    ('CT', 'MR', '')
    """
    plain = _plain(channel)
    if plain == "ct":
        return "CT"
    return "MR" if plain in _MR else ""


def _plain(name: str) -> str:
    letters = re.sub(r"[^0-9a-z]", "", name.casefold())
    return "" if _SILENT.fullmatch(letters) else _SAME.get(letters, letters)


def _agree(first: str, second: str) -> bool:
    if not first or not second or first == second:
        return True
    if "mri" in (first, second):
        return not {first, second} & set(_OTHER_MACHINES)
    return False
