"""The settings of predictions, beside which no others may be put."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from medkd.core.errors import RunError
from medkd.core.serial import load, save

SETTINGS_FILE = "predict_settings.json"
"""Beside predictions."""

_WHEREABOUTS = ("medkd", "run", "engine_version")  # may differ: other versions, or the run at another place

_SAID_SINCE = ("preprocessing",)  # earlier versions did not


def write_settings(path: Path, settings: Any, *, resume: bool) -> None:
    """Write the settings that predictions are made with.

    Args:
        path: of the file.
        settings: a dataclass.
        resume: the predictions that are there are kept, so they must have been made with the same settings.

    Raises:
        RunError: they were made with others.
    """
    if resume and path.exists() and not are_settled(path, settings):
        raise RunError(
            f"{path} says that the predictions there were made with other settings or weights; "
            "choose another folder, or leave out --continue."
        )
    save(path, settings)


def are_settled(path: Path, settings: Any) -> bool:
    """Whether the settings in a file are the same, but for what may differ.

    Args:
        path: of the file, which exists.
        settings: a dataclass.

    Raises:
        DataError: it is damaged.
    """
    old = load(type(settings), path)
    for field in fields(settings):
        before = getattr(old, field.name)
        unsaid = field.name in _SAID_SINCE and not before
        if before != getattr(settings, field.name) and field.name not in _WHEREABOUTS and not unsaid:
            return False
    return True
