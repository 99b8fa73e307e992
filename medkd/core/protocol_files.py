"""Reading protocols: those that come with medkd, and JSON files of a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from medkd.core.errors import PlanError
from medkd.core.files import read_json
from medkd.core.plugins import Lazy
from medkd.core.protocol import DetectionProtocol, Protocol, ProtocolFile
from medkd.core.serial import from_data, nearest

FOLDER = Path(__file__).parents[1] / "protocols"
V = TypeVar("V")
# what a protocol's rows may name is known on higher floors, which are imported when a protocol is read
_check_rows = Lazy("medkd.training.published:check_protocol")
_check_detection_rows = Lazy("medkd.detection.published:check_protocol")


def protocol_names() -> tuple[str, ...]:
    """The protocols that come with medkd."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def read_protocols(name: str) -> ProtocolFile:
    """Read a protocol by its name, or a JSON file of the user's own.

    Raises:
        PlanError: there is no such protocol; the nearest name is given.
        DataError: the file is damaged or has an unknown key.
    """
    path = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    if not path.exists():
        raise PlanError(
            f"Unknown protocol '{name}'.{nearest(name, protocol_names())} Known: {', '.join(protocol_names())}, or a "
            ".json file."
        )
    return from_data(ProtocolFile, read_json(path), str(path))


def find_protocol(text: str, extra: Mapping[str, Any]) -> Protocol:
    """The protocol that ``--protocol`` names, for one data set.

    Args:
        text: ``NAME`` or ``FILE.json``, with ``:VARIANT`` where the data set does not say which variant it follows.
        extra: of the data set's description; ``medkd.format`` names the variant.

    Raises:
        PlanError: protocol or variant do not exist, it is one for detection, or a setting is unknown.
        DataError: the file is damaged or has an unknown key.
    """
    content, name, variant = _named(text, extra)
    if not content.variants:
        raise PlanError(f"The protocol {content.name} is for detection; it cannot plan a segmentation data set.")
    protocol = _variant(content.variants, content.name, name, variant)
    protocol = replace(protocol, name=f"{content.name}:{variant}", reference=content.reference)
    _check(protocol)
    if protocol.rows:
        _check_rows(protocol)
    return protocol


def find_detection_protocol(text: str, extra: Mapping[str, Any]) -> tuple[str, DetectionProtocol]:
    """The protocol that ``--protocol`` names, for one detection data set, and its full name.

    Args:
        text: ``NAME`` or ``FILE.json``, with ``:VARIANT`` where several variants are for this data set.
        extra: of the data set's description; ``medkd.format`` starts the names of its variants.

    Raises:
        PlanError: protocol or variant do not exist, it is one for segmentation, or several variants fit.
        DataError: the file is damaged or has an unknown key.
    """
    content, name, variant = _named(text, extra)
    if not content.detection:
        raise PlanError(f"The protocol {content.name} is for segmentation; it cannot plan a detection data set.")
    if variant not in content.detection:
        fitting = _beginning_with(variant, content.detection)
        variant = fitting[0] if len(fitting) == 1 else variant
    full, protocol = f"{content.name}:{variant}", _variant(content.detection, content.name, name, variant)
    if protocol.rows:
        _check_detection_rows(full, protocol)
    return full, protocol


def _named(text: str, extra: Mapping[str, Any]) -> tuple[ProtocolFile, str, str]:
    """The file that ``NAME:VARIANT`` is about, the name, and the variant, which the data set may say."""
    name, colon, variant = text.rpartition(":")
    if not colon:
        name, variant = text, str(extra.get("medkd", {}).get("format", ""))
    return read_protocols(name), name, variant


def _beginning_with(data_set: str, variants: Mapping[str, Any]) -> list[str]:
    """The variants that a data set has several of: ``fracatlas_512`` for ``fracatlas``."""
    if not data_set:
        return []
    return [known for known in variants if known.startswith(f"{data_set}_")]


def _variant(variants: Mapping[str, V], title: str, name: str, variant: str) -> V:
    if variant not in variants:
        known = _beginning_with(variant, variants) or list(variants)
        said = f"no variant '{variant}'"
        if not variant or len(known) < len(variants):
            said = "several variants, and the data set does not say which one it follows"
        raise PlanError(
            f"The protocol {title} has {said}; give --protocol {name}:VARIANT with one of {', '.join(known)}."
        )
    return variants[variant]


def _check(protocol: Protocol) -> None:
    """Words that the file's form does not check."""
    allowed = (
        ("configuration", protocol.preprocessing.configuration, ("2d", "3d_fullres")),
        ("interpolation", protocol.preprocessing.interpolation, ("spline", "linear")),
        ("decay", protocol.training.decay, ("epoch", "step")),
        ("blending", protocol.inference.blending, ("gaussian", "constant")),
    )
    for what, value, known in allowed:
        if value not in known:
            raise PlanError(f"Protocol {protocol.name}: {what} must be one of {', '.join(known)}, found '{value}'.")
