"""Checks of the ranges of method parameters, each with one clear sentence; their kinds are checked by annotation."""

from __future__ import annotations

from collections.abc import Sequence

from medkd.core.errors import MethodError
from medkd.core.features import Tap
from medkd.core.serial import nearest


def positive(method: str, name: str, value: float) -> float:
    """Return ``value`` as a float if it is above zero.

    Raises:
        MethodError: it is not a positive number.
    """
    if isinstance(value, (str, bool)) or not value > 0:
        raise MethodError(f"{method}.{name} must be a number above 0, found {value!r}.")
    return float(value)


def at_least(method: str, name: str, value: float, low: float) -> float:
    """Return ``value`` if it is a number not below ``low``.

    Raises:
        MethodError: it is below, or not a number.
    """
    if isinstance(value, (str, bool)) or not value >= low:
        raise MethodError(f"{method}.{name} must be a number of at least {low:g}, found {value!r}.")
    return value


def tap_named(method: str, name: str, taps: Sequence[Tap], value: str) -> Tap:
    """The tap called ``value``.

    Raises:
        MethodError: there is none; the nearest known one is named.
    """
    known = {tap.name: tap for tap in taps}
    if value not in known:
        raise MethodError(
            f"{method}.{name}: there is no tap '{value}'.{nearest(value, known)} Taps: {', '.join(known) or 'none'}."
        )
    return known[value]
