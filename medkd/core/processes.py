"""How many processes ``torchrun``, or whatever sets the same variables, started to work together."""

from __future__ import annotations

import os

from medkd.core.errors import RunError


def started_together() -> int:
    """The processes that were started together; 1 where this one is alone.

    Raises:
        RunError: the variables hold no numbers.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 1
    return max(1, whole_variable("WORLD_SIZE"))


def whole_variable(name: str, otherwise: int | None = None) -> int:
    """The whole number in a variable of the environment.

    Args:
        name: of the variable.
        otherwise: what a missing one means.

    Raises:
        RunError: it holds something else, or is missing.
    """
    text = os.environ.get(name)
    if text is None and otherwise is not None:
        return otherwise
    if text is None or not text.isdecimal():
        raise RunError(f"Expected a whole number in the variable {name}, as torchrun sets it, found '{text}'.")
    return int(text)
