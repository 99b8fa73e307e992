"""What DICOM objects say of the program and the model that made them, and of patient and study, which they repeat."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from medkd import __version__
from medkd.io.writing.terms import Code

MANUFACTURER = "medkd"
_LONGEST = 64  # characters of DICOM's long strings


@dataclass(frozen=True)
class Maker:
    """The model that predicted.

    Attributes:
        name: of its folder; no path.
        digest: a hash of its weights, which tells them from others.
    """

    name: str = "medkd"
    digest: str = ""

    @property
    def algorithm(self) -> str:
        """Its name within DICOM's limits."""
        return long_string(self.name) or MANUFACTURER

    @property
    def serial_number(self) -> str:
        """Stands for the device: the weights."""
        return long_string(self.digest[:32]) or "unknown"

    @property
    def version(self) -> str:
        """Of medkd."""
        return __version__


def long_string(text: str, longest: int = _LONGEST) -> str:
    """A text within the limits of DICOM's long strings: one line, no backslash, cut off where it is too long.

    >>> long_string("a\\\\b  c", 4)
    'a/b'
    """
    return " ".join(text.replace("\\", "/").split())[:longest].strip()


def character_set(texts: list[str], source: Any) -> Any:
    """The source's own character set where the texts are plain, else Unicode."""
    if all(text.isascii() for text in texts):
        return source.get("SpecificCharacterSet")
    return "ISO_IR 192"


@contextmanager
def quiet_highdicom() -> Iterator[None]:
    """highdicom tells what it copies, and has opinions on patients' names; neither is for the user."""
    logger = logging.getLogger("highdicom")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def concept(code: Code) -> Any:
    """A code as a highdicom concept."""
    import highdicom

    return highdicom.sr.CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)
