"""Builds methods by name: reads their parameters from text by annotation, and joins several."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch.nn as nn
from torch import Tensor

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Progress, Target
from medkd.core.registry import Registry
from medkd.core.serial import nearest
from medkd.distillation.base import METHODS, Context, Method, Needs
from medkd.distillation.parameters import annotations_of, read_parameter

Methods = Registry[type[Method]]


def build_method(
    name: str, context: Context, method_parameters: Mapping[str, Any] | None = None, own: Methods | None = None
) -> Method:
    """Build a method by name, or several joined by ``+``, whose terms are summed.

    Args:
        name: registry name, for example ``"kd"`` or ``"acf+kd"``.
        context: taps, outputs and geometry.
        method_parameters: ``"method.parameter"`` → value; text is read as what the parameter's annotation says.
        own: methods of a branch that come before those of :data:`METHODS` with the same name.

    Raises:
        MethodError: an unknown method or parameter, a bad value, or a method that is not defined for this context.
    """
    kinds = _named(name, context.task, own)
    chosen = _parameters(name, kinds, method_parameters or {})
    built = {part: kind(context, **chosen[part]) for part, kind in kinds.items()}
    if len(built) == 1:
        return built[next(iter(built))]
    return JoinedMethods(context, built)


def check_method(name: str, method_parameters: Mapping[str, Any], task: str, own: Methods | None = None) -> None:
    """See that a method, or several joined by ``+``, exists for a task and takes some parameters; builds nothing.

    Args:
        name: as for :func:`build_method`.
        method_parameters: likewise.
        task: ``segmentation`` or ``detection``.
        own: as for :func:`build_method`.

    Raises:
        MethodError: an unknown method or parameter, a bad value, or a method that is not defined for the task.
    """
    _parameters(name, _named(name, task, own), method_parameters)


def parameters_of(method: type[Method]) -> dict[str, inspect.Parameter]:
    """The keyword parameters of a method's constructor, by name."""
    parameters = dict(inspect.signature(method.__init__).parameters)
    for given in ("self", "context"):
        parameters.pop(given, None)
    return parameters


def _named(name: str, task: str, own: Methods | None) -> dict[str, type[Method]]:
    """The classes of the methods that ``name`` joins, by their names."""
    names = [part.strip() for part in name.split("+")]
    if len(set(names)) != len(names):
        raise MethodError(f"'{name}' names a method twice; every method can be used once.")
    kinds = {}
    for part in names:
        kinds[part] = own[part] if own is not None and part in own else METHODS[part]
        if task == "detection" and not kinds[part].detection:
            raise MethodError(f"'{part}' is not defined for detectors; see medkd_list methods for those that are.")
    return kinds


def _parameters(
    name: str, kinds: Mapping[str, type[Method]], method_parameters: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The parameters of every method, read and checked."""
    chosen: dict[str, dict[str, Any]] = {part: {} for part in kinds}
    for key, value in method_parameters.items():
        part, _, parameter = key.partition(".")
        if part not in kinds or not parameter:
            raise MethodError(
                f"Setting '{key}' does not belong to '{name}'; write METHOD.PARAMETER=VALUE with one of: "
                f"{', '.join(kinds)}."
            )
        known = parameters_of(kinds[part])
        if parameter not in known:
            raise MethodError(
                f"Method '{part}' has no parameter '{parameter}'.{nearest(parameter, known)} Known: "
                f"{', '.join(known) or 'none'}."
            )
        chosen[part][parameter] = read_parameter(key, annotations_of(kinds[part])[parameter], value)
    return chosen


class JoinedMethods(Method):
    """Several methods at once; terms are prefixed with their method's name.

    Args:
        context: taps, outputs and geometry.
        parts: the methods by their names.
    """

    def __init__(self, context: Context, parts: Mapping[str, Method]) -> None:
        super().__init__(context)
        self.parts = nn.ModuleDict(parts)
        methods = parts.values()
        self.outputs_only = all(m.outputs_only for m in methods)  # type: ignore[misc]
        self.needs_teacher = any(m.needs_teacher for m in methods)  # type: ignore[misc]
        self.averages = any(m.averages for m in methods)  # type: ignore[misc]
        self.by_sample = all(m.by_sample for m in methods)  # type: ignore[misc]
        self.continues_teacher = any(m.continues_teacher for m in methods)  # type: ignore[misc]

    def needs(self) -> Needs:
        """What any of them needs."""
        total = Needs()
        for _, method in self._methods():
            total = total | method.needs()
        return total

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """All terms of all methods."""
        terms = {}
        for name, method in self._methods():
            for term, value in method(student, teacher, target).items():
                terms[f"{name}.{term}"] = value
        return terms

    def wants_average(self, progress: Progress) -> bool:
        """Whether one of them does."""
        return any(method.wants_average(progress) for _, method in self._methods())

    def pairwise(self, batch: int) -> int:
        """The sum."""
        return sum(method.pairwise(batch) for _, method in self._methods())

    def announced(self, logits: int, features: int, batch: int) -> int:
        """The sum."""
        return sum(method.announced(logits, features, batch) for _, method in self._methods())

    @property
    def needs_preparation(self) -> bool:
        """Whether one of them does."""
        return any(method.needs_preparation for _, method in self._methods())

    def prepare(self, teacher: Any, batches: Any) -> None:
        """The first stages of those that have one that has not run."""
        for _, method in self._methods():
            if method.needs_preparation:
                method.prepare(teacher, batches)

    def _methods(self) -> Iterator[tuple[str, Method]]:
        for name, part in self.parts.items():
            if isinstance(part, Method):
                yield name, part
