"""Reads the parameters of methods: text from the command line, and values from code, held against annotations."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from medkd.core.errors import MethodError
from medkd.core.serial import nearest

_WORDS = {"true": True, "false": False}


def annotations_of(method: type) -> Mapping[str, Any]:
    """The annotations of the parameters of a method's constructor; of one without, as in a user's own method, the kind
    of its default.
    """
    constructor = method.__init__  # type: ignore[misc]  # of the class that is given
    try:
        found = get_type_hints(constructor)
    except NameError:  # names that its module imports for type checkers only
        found = {}
    for name, parameter in inspect.signature(constructor).parameters.items():
        found.setdefault(name, _kind_of_default(parameter.default))
    return found


def _kind_of_default(default: Any) -> Any:
    if isinstance(default, (bool, str)):
        return type(default)
    return int | float if isinstance(default, (int, float)) else Any


def read_parameter(name: str, annotation: Any, value: Any) -> Any:
    """A parameter's value as its annotation wants it.

    Args:
        name: ``method.parameter``, for the error's text.
        annotation: ``bool``, ``int``, ``float``, ``str``, a ``Literal`` of texts, or one of these with ``None``.
        value: text, which is read as the annotation says, or the value itself.

    Raises:
        MethodError: it is no such value; for options the nearest is named.
    """
    kinds = _alternatives(annotation)
    if NoneType in kinds and _is_none(value, kinds):
        return None
    options = _options(kinds)
    if options:
        return _option(name, options, value)
    for kind in kinds:
        found = _as_kind(kind, value)
        if found is not None:
            return found
    wanted = " or ".join(words for kind, words in _WANTED.items() if kind in kinds)
    if not wanted:
        return value  # of a kind that only the method itself knows
    raise MethodError(f"{name} must be {wanted}, found {value!r}.")


_WANTED: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _is_none(value: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether None is meant; the word only where any other text would be wrong."""
    return value is None or (str not in kinds and str(value).lower() == "none")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, UnionType):
        return get_args(annotation)
    return (annotation,)


def _options(kinds: tuple[Any, ...]) -> tuple[str, ...]:
    for kind in kinds:
        if get_origin(kind) is Literal:
            return get_args(kind)
    return ()


def _option(name: str, options: tuple[str, ...], value: Any) -> str:
    if value not in options:
        raise MethodError(f"{name} must be one of {', '.join(options)}, found '{value}'.{nearest(str(value), options)}")
    return str(value)


def _as_kind(kind: Any, value: Any) -> Any:
    """The value as this kind, or None where it is none."""
    if kind is str:
        return value if isinstance(value, str) else None
    if kind is bool:
        return value if isinstance(value, bool) else _WORDS.get(str(value).lower())
    if isinstance(value, bool):
        return None
    return _number(kind, value)


def _number(kind: Any, value: Any) -> float | None:
    if kind not in (int, float) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if kind is float:
        return number
    return int(number) if number.is_integer() else None
