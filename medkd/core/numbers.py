"""Whole numbers in names and settings."""

from __future__ import annotations

_LONGEST = 9  # digits; a longer one is no number of a fold, a case or a channel


def whole_number(text: str) -> int | None:
    """The whole number that a text is, by ASCII digits alone; None for anything else.

    ``"²".isdigit()`` is true, and ``int`` refuses it.

    >>> whole_number("007"), whole_number("²"), whole_number("-1"), whole_number("")
    (7, None, None, None)
    """
    if not text.isascii() or not text.isdigit() or len(text) > _LONGEST:
        return None
    return int(text)
