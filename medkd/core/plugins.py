"""Code from outside the package: modules that a user names, installed entry points, and names that are imported late.

Nothing here imports what a file on disk names: only what the user named (``--import``), or installed (entry points).
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from medkd.core.errors import MedkdError

OWN_PACKAGES = ("medkd", "dataset_conversion")
"""Top-level packages whose modules come with medkd."""

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_importing: list[str] = []
_log = logging.getLogger(__name__)


class Lazy:
    """A function that is imported when it is called for the first time.

    Args:
        target: ``"module:function"``.

    >>> shout = Lazy("string:capwords")
    >>> shout("left lung")
    'Left Lung'
    """

    def __init__(self, target: str) -> None:
        self.target = target

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function."""
        return self.load()(*arguments, **options)

    def load(self) -> Any:
        """The function itself; its module is imported."""
        return resolve(self.target)

    def __repr__(self) -> str:
        return f"Lazy({self.target!r})"


def resolve(target: str) -> Any:
    """The object that ``"module:attribute"`` names; its module is imported.

    >>> resolve("math:sqrt")(16.0)
    4.0
    """
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def import_plugin(name: str) -> ModuleType:
    """Import a module that the user named, so that what it registers can be used; the current folder is searched last.

    Args:
        name: of the module, with dots, as in an ``import`` statement.

    Raises:
        MedkdError: this is not the name of a module, there is none of this name, or it cannot be imported.
    """
    if not is_module_name(name) or name.endswith(".py"):
        raise MedkdError(f"--import expects the name of a module, for example my_networks, found '{name}'.")
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)
    with _naming(name):
        try:
            return import_module(name)
        except MedkdError:
            raise
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise MedkdError(
                    f"The module '{name}' needs '{error.name}', which is not installed; install it, or leave out "
                    f"--import {name}."
                ) from error
            raise MedkdError(
                f"There is no module '{name}' in the current folder or the environment; install it, or run the command "
                "where it lies."
            ) from error
        except Exception as error:
            raise MedkdError(
                f"The module '{name}' cannot be imported ({type(error).__name__}: {error}); mend it, or leave out "
                f"--import {name}."
            ) from error


def is_module_name(text: str) -> bool:
    """Whether a text can be the name of a module.

    >>> is_module_name("my_package.networks"), is_module_name("networks/unet.py")
    (True, False)
    """
    return _MODULE.fullmatch(text) is not None


def registering_module(default: str) -> str:
    """The module that the user named and that is being imported now, else ``default``."""
    return _importing[-1] if _importing else default


def is_own(module: str) -> bool:
    """Whether a module comes with medkd.

    >>> is_own("medkd.networks.unet_tiny"), is_own("medkd_extras")
    (True, False)
    """
    return module.partition(".")[0] in OWN_PACKAGES


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group (``medkd.networks``), by name; the first of a name that is installed twice."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, point)
    return found


def load_installed(point: EntryPoint) -> Any:
    """What an entry point names: an object, or a module that registers something when it is imported.

    Raises:
        MedkdError: it cannot be imported.
    """
    with _naming(point.value.partition(":")[0]):
        try:
            return point.load()
        except Exception as error:
            package = point.dist.name if point.dist is not None else "an installed package"
            raise MedkdError(
                f"'{point.name}' of {package} ({point.group}: {point.value}) cannot be loaded "
                f"({type(error).__name__}: {error}); mend or uninstall {package}."
            ) from error


def each_installed(group: str, load: Callable[[EntryPoint], Any]) -> None:
    """Call ``load`` for every entry point of a group; one that cannot be loaded is a warning, since others can."""
    for point in installed(group).values():
        try:
            load(point)
        except MedkdError as error:
            _log.warning("%s", error)


@contextmanager
def _naming(module: str) -> Iterator[None]:
    _importing.append(module)
    try:
        yield
    finally:
        _importing.pop()
