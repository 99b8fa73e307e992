"""Limits of the numbers that a user may set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import isfinite
from numbers import Integral, Real
from typing import Any

from medkd.core.errors import RunError

LARGEST_SEED = 2**32 - 1  # of numpy's global generator


def check_numbers(options: Any, least: Mapping[str, int], above_zero: Sequence[str]) -> None:
    """Refuse numbers of an options dataclass that are outside of their limits; None passes where it is a field's
    default.

    Args:
        options: a dataclass instance; errors name a field as the commands do, ``save_every`` as ``--save-every``.
        least: field → its smallest value, for whole numbers; ``seed`` also has a largest one.
        above_zero: fields that take any finite number above 0.

    Raises:
        RunError: a number is of another kind or outside of its limits.
    """
    defaults = {field.name: field.default for field in fields(options)}
    for name in (*least, *above_zero):
        value, expected = getattr(options, name), "a number above 0"
        if value is None and defaults[name] is None:
            continue
        if name in least:
            most = LARGEST_SEED if name == "seed" else None
            expected = f"a whole number of at least {least[name]}" + ("" if most is None else f" and at most {most}")
            fits = is_whole(value, least[name]) and (most is None or value <= most)
        else:
            fits = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value) and float(value) > 0
        if not fits:
            option = "--" + name.replace("_", "-")
            raise RunError(f"{option} expects {expected}, found {value!r}; leave it out for the default.")


def is_whole(value: object, least: int) -> bool:
    """Whether this is a whole number of at least ``least`` (and no truth value)."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
