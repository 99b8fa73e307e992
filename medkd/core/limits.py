"""Limits of the numbers that a user may set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from math import isfinite
from numbers import Integral, Real
from typing import Any

from medkd.core.errors import DataError, RunError

LARGEST_SEED = 2**32 - 1  # of numpy's global generator
# options whose flag has another name than the argument of the function
_FLAGS = {
    "configurations": "--configuration",
    "gpu_memory_gb": "--gpu-memory",
    "mirror": "--tta",
    "orientation": "--reorient",
    "resume": "--continue",
    "folds": "-f",
    "method_parameters": "--set",
}
_commanded: ContextVar[bool] = ContextVar("commanded", default=False)


@contextmanager
def on_the_command_line() -> Iterator[None]:
    """Within this block errors name options as commands take them, ``--save-every``; elsewhere as functions do."""
    token = _commanded.set(True)
    try:
        yield
    finally:
        _commanded.reset(token)


def option_name(name: str) -> str:
    """How the caller knows an option: ``save_every`` in Python, ``--save-every`` on the command line.

    >>> option_name("save_every")
    'save_every'
    >>> with on_the_command_line():
    ...     option_name("save_every")
    '--save-every'
    """
    if not _commanded.get():
        return name
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def listed_names(names: Any, option: str) -> tuple[str, ...] | None:
    """The names that somebody lists, each once; None stays None.

    Args:
        names: what was given.
        option: its name as a function takes it.

    Raises:
        DataError: it is no list of texts (a text is one of letters), or a name stands twice.
    """
    if names is None:
        return None
    is_list = isinstance(names, Iterable) and not isinstance(names, (str, bytes, Mapping))
    listed = tuple(names) if is_list else ()
    if not is_list or not all(isinstance(name, str) for name in listed):
        raise DataError(f"{option_name(option)}: expected a list of names, found {names!r:.80}; write [name, …].")
    twice = [name for name in listed if listed.count(name) > 1]
    if twice:
        raise DataError(f"{option_name(option)}: expected each name once, found '{twice[0]:.80}' twice; leave one out.")
    return listed


def check_numbers(options: Any, least: Mapping[str, int], above_zero: Sequence[str]) -> None:
    """Refuse numbers of an options dataclass that are outside of their limits; None passes where it is a field's
    default.

    Args:
        options: a dataclass instance; errors name a field as the caller does, see :func:`option_name`.
        least: field → its smallest value, for whole numbers; ``seed`` also has a largest one.
        above_zero: fields that take any finite number above 0.

    Raises:
        RunError: a number is of another kind or outside of its limits.
    """
    defaults = {field.name: field.default for field in fields(options)}
    for name in (*least, *above_zero):
        value = getattr(options, name)
        if value is None and defaults[name] is None:
            continue
        expected = None
        if name in least:
            expected = _unmet_whole(value, least[name], LARGEST_SEED if name == "seed" else None)
        elif not _is_above_zero(value):
            expected = "a number above 0"
        if expected is not None:
            raise RunError(f"{option_name(name)} expects {expected}, found {value!r}; leave it out for the default.")


def _unmet_whole(value: object, least: int, most: int | None) -> str | None:
    """What is expected of a whole number, where this is not it; None where it is."""
    if is_whole(value, least) and (most is None or value <= most):  # type: ignore[operator]
        return None
    expected = f"a whole number of at least {least}"
    return expected if most is None else f"{expected} and at most {most}"


def _is_above_zero(value: object) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and isfinite(value) and float(value) > 0  # type: ignore[arg-type]


def is_whole(value: object, least: int) -> bool:
    """Whether this is a whole number of at least ``least`` (and no truth value)."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
