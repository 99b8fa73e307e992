"""Frozen dataclasses to JSON and back, with a schema number and helpful errors for unknown keys."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from medkd.core.errors import DataError
from medkd.core.files import read_json, understood, write_json

T = TypeVar("T")
_LARGEST = 2**63 - 1


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest of ``known``, or an empty string.

    >>> nearest("epoch", ["epochs", "seed"])
    " Did you mean 'epochs'?"
    >>> nearest("zzz", ["epochs", "seed"])
    ''
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""


def to_data(value: Any) -> Any:
    """Turn dataclasses, tuples and paths into what ``json`` can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        data = {}
        for field in dataclasses.fields(value):
            data[field.name] = to_data(getattr(value, field.name))
        return data
    if isinstance(value, Mapping):
        return {str(k): to_data(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_data(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") else value


def from_data(cls: type[T], data: Any, where: str) -> T:
    """Build the dataclass ``cls`` from JSON values.

    Args:
        cls: a dataclass whose field types are plain values, tuples, string-keyed mappings or other dataclasses.
        data: what ``json`` read.
        where: file (and key) for error texts.

    Raises:
        DataError: a key is unknown (the nearest known one is named), missing, or the value has the wrong form.
    """
    if not isinstance(data, Mapping):
        raise DataError(f"{where}: expected an object with the keys of {cls.__name__}, found {type(data).__name__}.")
    _refuse_newer(cls, data, where)
    data = _in_present_form(cls, data)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise DataError(f"{where}: unknown key '{key}'.{nearest(key, fields)}")
    hints = _hints(cls)  # type: ignore[arg-type]
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DataError(f"{where}: the key '{name}' is missing.")
    with understood(Path(where), f"a {cls.__name__} that makes sense"):
        return cls(**values)


def save(path: Path, value: Any) -> None:
    """Write a dataclass as a JSON file."""
    write_json(path, to_data(value))


def load(cls: type[T], path: Path, *, once: bool = False) -> T:
    """Read a dataclass from a JSON file; a newer ``schema`` than the class knows is refused, and an older one than the
    class says it reads (``oldest``; else only its own).

    Args:
        cls: the dataclass.
        path: of the file.
        once: see :func:`medkd.core.files.read_json`.

    Raises:
        DataError: see :func:`from_data` and :func:`medkd.core.files.read_json`.
    """
    data = read_json(path, once=once)
    known = getattr(cls, "schema", None)
    if isinstance(data, Mapping) and known is not None and data.get("schema", known) not in _readable(cls, known):
        raise _other_schema(str(path), data["schema"], known)
    return from_data(cls, data, str(path))


def _readable(cls: type, known: int) -> range:
    """The schemas that a class reads."""
    return range(getattr(cls, "oldest", known), known + 1)


def _in_present_form(cls: type, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A file of an older schema as one of the present one."""
    return {**data, "schema": getattr(cls, "schema", None)} if hasattr(cls, "oldest") else data


def _refuse_newer(cls: type, data: Mapping[str, Any], where: str) -> None:
    """Refuse a part of a file that a newer medkd wrote."""
    known = getattr(cls, "schema", None)
    stated = data.get("schema", known)
    if known is not None and (not isinstance(stated, int) or stated > known):
        raise _other_schema(where, stated, known)


def _other_schema(where: str, found: object, known: int) -> DataError:
    if isinstance(found, int) and found > known:
        return DataError(
            f"{where}: was written by a newer medkd (schema {found!s:.40}, this one reads {known}); update medkd, or "
            "make the file anew with this version."
        )
    return DataError(
        f"{where}: has schema {found!r:.40}, this medkd reads schema {known}; make the file anew with this version."
    )


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """A JSON value as what the type ``hint`` of a field says."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _optional(args, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_data(hint, value, where)
    if origin is tuple:
        return _tuple(args, value, where)
    if origin is typing.Literal:
        return _choice(args, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(args[1], value, where)
    return _plain(hint, value, where)


def _optional(args: tuple[Any, ...], value: Any, where: str) -> Any:
    """A value or None, of a union of one type and None."""
    if value is None and type(None) in args:
        return None
    kinds = [kind for kind in args if kind is not type(None)]
    return _convert(kinds[0], value, where)


def _choice(known: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in known:
        raise DataError(f"{where}: expected one of {', '.join(map(str, known))}, found {_short(value)}.")
    return value


def _mapping(kind: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: expected an object, found {type(value).__name__}.")
    return {key: _convert(kind, item, f"{where}.{key}") for key, item in value.items()}


def _tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a list, found {type(value).__name__}.")
    kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(kinds) != len(value):
        raise DataError(f"{where}: expected {len(kinds)} values, found {len(value)}.")
    items = []
    for place, item in enumerate(value):
        items.append(_convert(kinds[place], item, f"{where}[{place}]"))
    return tuple(items)


def _plain(hint: Any, value: Any, where: str) -> Any:
    """A number, text or truth value; numbers are finite, and truth values are no numbers."""
    is_truth = isinstance(value, bool)
    if hint is float and isinstance(value, (int, float)) and not is_truth:
        return _finite(value, where)
    if hint in (int, float, str, bool):
        fits = isinstance(value, hint) and not (hint is int and is_truth)
        if not fits:
            raise DataError(f"{where}: expected {hint.__name__}, found {_short(value)}.")
    if hint is int and abs(value) > _LARGEST:
        raise DataError(f"{where}: expected a number of at most 19 digits, found {_short(value)}.")
    return value


def _finite(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{where}: expected a finite number, found {_short(value)}.")
    return number


def _short(value: Any) -> str:
    """A value for an error text."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}…"
