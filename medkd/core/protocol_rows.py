"""What a protocol sets for one training: its rows for the method, the network and the teacher, put together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from medkd.core.errors import PlanError
from medkd.core.protocol import ProtocolRow
from medkd.core.serial import from_data, nearest, to_data

T = TypeVar("T")
NO_PROTOCOL = "none"
"""Value of ``--protocol`` that leaves out the plan's."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """What the rows that match a training say.

    Attributes:
        parameters: ``method.parameter`` → value.
        training: setting of the variant → value.
        sources: name of a parameter or setting → where it is from.
        notes: of the rows.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def method_parts(method: str | None) -> list[str]:
    """The methods that are joined by ``+``; none for a network that is trained alone.

    >>> method_parts("kd + cwd")
    ['kd', 'cwd']
    """
    return [part.strip() for part in method.split("+")] if method else []


def published_for(rows: Iterable[ProtocolRow], method: str | None, network: str, teacher: str | None) -> Published:
    """What the rows say about one training.

    Args:
        rows: of the protocol's variant.
        method: with which the teacher teaches; None for a network alone.
        network: that is trained.
        teacher: the teacher's network, where it is one of medkd's.

    >>> row = ProtocolRow(source="kd.py", method="kd", parameters={"weight": 10.0})
    >>> published_for([row], "kd+cwd", "unet_tiny", None).parameters
    {'kd.weight': 10.0}
    """
    parameters: dict[str, Any] = {}
    training: dict[str, Any] = {}
    sources: dict[str, str] = {}
    notes: list[str] = []
    for row in rows:
        if not _matches(row, method_parts(method), network, teacher):
            continue
        named = {f"{row.method}.{name}": value for name, value in row.parameters.items()}
        parameters |= named
        training |= row.training
        sources |= dict.fromkeys([*named, *row.training], row.source)
        if row.note:
            notes.append(row.note)
    return Published(parameters, training, sources, tuple(notes))


def _matches(row: ProtocolRow, methods: Sequence[str], network: str, teacher: str | None) -> bool:
    if row.method and row.method not in methods:
        return False
    if row.networks and network not in row.networks:
        return False
    return not row.teachers or teacher in row.teachers


def with_settings(rule: T, settings: Mapping[str, Any], where: str) -> T:
    """A rule with other values for some of its settings.

    Raises:
        DataError: there is no such setting, or its value has the wrong form.
    """
    if not settings:
        return rule
    return from_data(type(rule), {**to_data(rule), **settings}, where)


def check_rows(
    rows: Sequence[ProtocolRow], where: str, rule: Any, methods: Mapping[str, Iterable[str]], networks: Iterable[str]
) -> None:
    """See that every row of a protocol can apply to something.

    Args:
        rows: of a variant.
        where: the protocol's name, for error texts.
        rule: of the variant, whose settings rows may change.
        methods: name of a method → its parameters.
        networks: all names.

    Raises:
        PlanError: a row sets nothing, or what it names does not exist.
        DataError: a row changes a setting that there is not.
    """
    known = list(networks)
    for row in rows:
        title = f"Protocol {where}: the row from {row.source}"
        if not row.parameters and not row.training:
            raise PlanError(f"{title} sets nothing; give it parameters or training, or remove it.")
        for name in (*row.networks, *row.teachers):
            if name not in known:
                raise PlanError(f"{title} is for the unknown network '{name}'.{nearest(name, known)}")
        _check_method(row, title, methods)
        with_settings(rule, row.training, f"{title}: training")


def _check_method(row: ProtocolRow, title: str, methods: Mapping[str, Iterable[str]]) -> None:
    """See that a row's method is there, and has the parameters that the row sets."""
    if not row.method:
        if row.parameters or row.teachers:
            raise PlanError(f"{title} has parameters or teachers and no method that takes them; name its method.")
        return
    if row.method not in methods:
        raise PlanError(f"{title} is for the unknown method '{row.method}'.{nearest(row.method, methods)}")
    own = list(methods[row.method])
    for name in row.parameters:
        if name not in own:
            raise PlanError(
                f"{title} sets '{name}', which the method '{row.method}' does not have.{nearest(name, own)} Known: "
                f"{', '.join(own) or 'none'}."
            )


def merged_parameters(found: Published, explicit: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol's parameters of the method with the user's in their place; the log names those that win.

    >>> merged_parameters(Published({"kd.weight": 10.0, "kd.temperature": 1.0}), {"kd.weight": "2"})
    {'kd.weight': '2', 'kd.temperature': 1.0}
    """
    for name, value in found.parameters.items():
        if name in explicit and str(explicit[name]) != str(value):
            _log.info("%s is %s as given, not the protocol's %s", name, explicit[name], value)
    return {**found.parameters, **explicit}


def published_lines(found: Published, explicit: Mapping[str, Any]) -> dict[str, str]:
    """What ``run.json`` keeps of the protocol's rows: name → value and source, without what the user set."""
    lines = {}
    for name, value in {**found.training, **found.parameters}.items():
        if name not in explicit:
            lines[name] = f"{value} ({found.sources[name]})"
    return lines
