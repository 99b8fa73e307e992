"""Settings of a recipe as words of a command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from medkd.core.errors import DataError, RunError
from medkd.core.serial import nearest
from medkd.tasks import every_task


def check_option(name: str) -> None:
    """See that some training takes an option.

    Raises:
        DataError: none does.
    """
    known = set[str]()
    for task in every_task():
        known |= {field.name for field in fields(task.column("training_options"))}
    if name not in known:
        raise DataError(f"The recipe's settings hold '{name}', which no training takes.{nearest(name, known)}")


_SWITCHES: dict[str, Callable[[Any], list[str]]] = {
    "validate": lambda value: [] if value else ["--no-validate"],
    "mirror_axes": lambda value: ["--mirror-axes", *(map(str, value) if value else ["none"])],
    "teachers": lambda value: [word for teacher in value for word in ("--teacher", str(teacher))],
}
"""Options whose words differ from their names."""


def flag(name: str, value: Any) -> list[str]:
    """An option of a command: nothing where it is None or False, several words for a list."""
    if value is None:
        return []
    if name in _SWITCHES:
        return _SWITCHES[name](value)
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag] if value else []
    values = value if isinstance(value, (list, tuple)) else [value]
    return [flag, *map(text, values)]


def import_words(modules: Sequence[str]) -> list[str]:
    """Modules of the user's as a command is told to import them."""
    return [word for module in modules for word in ("--import", module)]


def text(value: Any) -> str:
    """A JSON value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(text, value)) if isinstance(value, (list, tuple)) else str(value)


def parse_pairs(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` → value by name.

    Raises:
        RunError: an entry is not of this form, or a name is given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            raise RunError(f"{option} expects NAME=VALUE, found '{pair}'.")
        if name in found:
            raise RunError(f"{option}: '{name}' is given twice; leave one out.")
        found[name] = value
    return found
