"""Which predictions of a folder were made with which weights, proven by their content: times of files prove nothing,
since copying, restoring and unpacking set them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medkd.core.serial import load, save

MADE_WITH_FILE = "made_with.json"
"""Beside predictions."""


@dataclass(frozen=True, kw_only=True)
class MadeWith:
    """``made_with.json``.

    Attributes:
        weights: a hash of each network that predicted.
        settings: whatever else the predictions depend on, by name.
        files: name of a file beside this one → hash of its content.
    """

    weights: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    schema: int = 1


class KnownPredictions:
    """The predictions of a folder that certain networks made; what is there of others does not count.

    Args:
        folder: of the predictions.
        weights: a hash of each network that predicts now.
        settings: whatever else they depend on, by name.
    """

    def __init__(self, folder: Path, weights: Sequence[str], settings: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._made = MadeWith(weights=tuple(weights), settings=dict(settings or {}))
        file = folder / MADE_WITH_FILE
        before = load(MadeWith, file) if file.exists() else self._made
        alike = before.weights == self._made.weights and before.settings == self._made.settings
        self._files = dict(before.files) if alike else {}

    def has(self, file: Path) -> bool:
        """Whether a file is there as these networks made it."""
        return file.name in self._files and file.is_file() and content_digest(file) == self._files[file.name]

    def add(self, file: Path) -> None:
        """Note a file that these networks have just made."""
        self._files[file.name] = content_digest(file)
        made = MadeWith(
            weights=self._made.weights, settings=self._made.settings, files=dict(sorted(self._files.items()))
        )
        save(self._folder / MADE_WITH_FILE, made)


def content_digest(file: Path) -> str:
    """A hash of a file's content."""
    found = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()
