"""Name → object registries for networks, methods, detectors and converters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, Generic, TypeVar

from medkd.core.errors import MedkdError
from medkd.core.plugins import (
    each_installed,
    installed,
    is_module_name,
    is_own,
    load_installed,
    registering_module,
)
from medkd.core.serial import nearest

T = TypeVar("T")
S = TypeVar("S")


class Registry(Generic[T]):
    """An ordered table of named objects, which other packages may add to.

    Args:
        kind: what is registered, for error texts (``"network"``).
        error: the error class raised for an unknown name.
        group: entry points of installed packages that add to the table (``"medkd.networks"``). One is loaded when its
            name is asked for and unknown, all when the table is listed; its value is an object, or a module that
            registers it.

    >>> shapes: Registry[int] = Registry("shape")
    >>> _ = shapes.register("triangle")(3)
    >>> shapes["triangle"], "square" in shapes, list(shapes)
    (3, False, ['triangle'])
    >>> shapes["triangel"]
    Traceback (most recent call last):
        ...
    medkd.core.errors.MedkdError: Unknown shape 'triangel'. Did you mean 'triangle'? Known: triangle.
    """

    def __init__(self, kind: str, error: type[MedkdError] = MedkdError, group: str | None = None) -> None:
        self._kind = kind
        self._error = error
        self._group = group
        self._entries: dict[str, T] = {}
        self._modules: dict[str, str] = {}

    def register(self, name: str, module: str | None = None) -> Callable[[S], S]:
        """Decorator that enters an object under ``name``; a name that is taken is a programming error.

        Args:
            name: of the entry.
            module: that registers it; None is the caller's.
        """
        registrar = registering_module(module or str(sys._getframe(1).f_globals.get("__name__", "__main__")))

        def enter(entry: S) -> S:
            if name in self._entries:
                raise ValueError(f"{self._kind} '{name}' is registered twice")
            self._entries[name] = entry  # type: ignore[assignment]  # S is T or a subclass, which the caller keeps
            self._modules[name] = registrar
            return entry

        return enter

    def foreign_module(self, name: str) -> str | None:
        """The module from outside the package that registered an entry; None for medkd's own and for unknown names."""
        module = self._modules.get(name)
        return None if module is None or is_own(module) else module

    def require(self, name: str, module: str | None, where: str) -> T:
        """The entry with which something on disk was made. A module that a file names is never imported.

        Args:
            name: of the entry.
            module: from outside the package that had registered it, as the file says; None for medkd's own.
            where: the file or folder, for error texts.

        Raises:
            MedkdError: the registry's error; the entry is not there, and the user has not named its module.
        """
        if module is None or name in self:
            return self[name]
        if not is_module_name(module) or module == "__main__":
            raise self._error(
                f"{where} was trained with the {self._kind} '{name}' of a script or notebook; put it into a module of "
                "its own, and give --import MODULE."
            )
        raise self._error(
            f"{where} was trained with the {self._kind} '{name}' of the module '{module}'; give --import {module} if "
            "you trust it."
        )

    def __getitem__(self, name: str) -> T:
        """Return the entry; raises the registry's error with the nearest known name."""
        if name not in self:
            own = "" if self._group is None else "; for one of your own give --import MODULE"
            known = ", ".join(sorted(self._entries))
            raise self._error(f"Unknown {self._kind} '{name}'.{nearest(name, self._entries)} Known: {known}{own}.")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._entries and self._group is not None:
            point = installed(self._group).get(str(name))
            if point is not None:
                self._load(point)
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        if self._group is not None:
            each_installed(self._group, self._load)
        return iter(self._entries)

    def _load(self, point: EntryPoint) -> None:
        if point.name in self._entries:
            return
        found = load_installed(point)
        if point.name in self._entries:
            return
        if isinstance(found, ModuleType):
            raise self._error(
                f"The entry point {point.value} of {self._group} registers no {self._kind} '{point.name}'; let it "
                "register one of this name, or name the object: module:object."
            )
        self.register(point.name, point.value.partition(":")[0])(found)


def foreign_modules(*named: tuple[Registry[Any], str]) -> dict[str, str]:
    """Name → module of those entries that come from outside the package, for ``modules`` of ``run.json``.

    Args:
        named: a registry and a name in it; several methods may be joined by ``+``.
    """
    found = {}
    for registry, joined in named:
        for name in joined.split("+"):
            module = registry.foreign_module(name.strip())
            if module is not None:
                found[name.strip()] = module
    return found
