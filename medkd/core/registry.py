"""Name → object registries for networks, methods and converters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from medkd.core.errors import MedkdError
from medkd.core.serial import nearest

T = TypeVar("T")
S = TypeVar("S")


class Registry(Generic[T]):
    """An ordered table of named objects.

    Args:
        kind: what is registered, for error texts (``"network"``).
        error: the error class raised for an unknown name.
    """

    def __init__(self, kind: str, error: type[MedkdError] = MedkdError) -> None:
        self._kind = kind
        self._error = error
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[S], S]:
        """Decorator that enters an object under ``name``; a name that is taken is a programming error."""

        def enter(entry: S) -> S:
            if name in self._entries:
                raise ValueError(f"{self._kind} '{name}' is registered twice")
            self._entries[name] = entry  # type: ignore[assignment]  # S is T or a subclass, which the caller keeps
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        """Return the entry; raises the registry's error with the nearest known name."""
        if name not in self._entries:
            raise self._error(
                f"Unknown {self._kind} '{name}'.{nearest(name, self._entries)} Known: "
                f"{', '.join(sorted(self._entries))}."
            )
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
