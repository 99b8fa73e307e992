"""What a MONAI bundle's configuration says, as the keys of a ``teacher.json``.

A bundle (MONAI Consortium, arXiv 2211.02701; the folder layout is MONAI's "bundle specification") holds
``configs/metadata.json``, ``configs/inference.json`` or ``.yaml`` and ``models/model.pt``. Its configuration is a small
programming language: strings that begin with ``$`` are Python. None of it is run. Networks and transforms are
recognised by name, their arguments must be plain values or references (``@name``) to plain values, and whatever else
matters is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medkd.core.errors import RunError
from medkd.core.files import read_json
from medkd.models.bundle.config import INFERENCE, METADATA, Config, disabled, read_file, short
from medkd.models.bundle.transforms import preprocessing

WEIGHTS = Path("models") / "model.pt"
_PREPROCESSING = ("spacing", "normalization", "crop", "transpose")


def read_bundle(path: Path, overriding: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a ``teacher.json`` that a bundle's configuration states; see
    :class:`medkd.models.description.ExternalModel`.

    ``train`` is not among them: a bundle does not say on which cases it was trained.

    Args:
        path: the bundle.
        overriding: keys that are stated elsewhere; what the bundle says about them is not looked at, so it cannot be
            refused.

    Raises:
        RunError: something that is needed is missing, is an expression, or is not known to medkd; it is named.
    """
    file = next(file for file in map(path.joinpath, INFERENCE) if file.is_file())
    config = Config(read_file(file), file)
    metadata = Config(read_json(path / METADATA), path / METADATA, ("channels",))
    found: dict[str, Any] = {"weights": WEIGHTS.as_posix()}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "network": lambda: _network(config.stating("network", "arguments"), "arguments" in overriding),
        "channels": lambda: {"channels": _names(metadata, "network_data_format::inputs::image::channel_def")},
        "labels": lambda: {"labels": _labels(config.stating("labels"), metadata.stating("labels"))},
        "patch_size": lambda: {"patch_size": config.stating("patch_size").numbers("inferer::roi_size")},
    }
    for key, part in parts.items():
        if key not in overriding:
            found |= part()
    if not set(_PREPROCESSING) <= set(overriding):
        found |= preprocessing(config.stating(*_PREPROCESSING), {**found, **overriding}, frozenset(overriding))
    return {**found, **overriding}


def _network(config: Config, arguments_stated: bool) -> dict[str, Any]:
    if arguments_stated:
        return {"network": short(str(config.get("network_def::_target_")))}
    definition = config.get("network_def")
    if not isinstance(definition, Mapping) or "_target_" not in definition:
        raise RunError(f"{config.file}: 'network_def' names no '_target_'; {config.remedy}.")
    arguments = {k: v for k, v in definition.items() if not k.startswith("_")}
    return {"network": short(str(definition["_target_"])), "arguments": arguments}


def _labels(config: Config, metadata: Config) -> dict[str, int]:
    """Classes by their channels, provided that a softmax over them is meant: a bundle does not say what label values
    regions have.
    """
    names = _names(metadata, "network_data_format::outputs::pred::channel_def")
    doubt = _doubt(config, metadata, names)
    if doubt:
        raise RunError(
            f"{doubt}, so the channels {', '.join(names)} may be regions, whose label values the bundle does not say; "
            f"{metadata.remedy}, regions in the order of the channels with their regions_class_order, for example "
            '{"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}.'
        )
    return {name: i for i, name in enumerate(names)}


def _doubt(config: Config, metadata: Config, names: list[str]) -> str | None:
    """Why the output channels may be no classes; None where nothing speaks against it."""
    if isinstance(config.content, Mapping):
        last = config.content.get("postprocessing")
        if _has_sigmoid(config, last, "postprocessing"):
            return f"{config.file}: 'postprocessing' applies a sigmoid"
    if not names or names[0].casefold() != "background":
        first = repr(names[0]) if names else "missing"
        return f"{metadata.file}: channel 0 of the outputs is {first}, not the background"
    return None


def _has_sigmoid(config: Config, value: Any, key: str, depth: int = 0) -> bool:
    """Whether an ``Activations`` at any depth applies a sigmoid, or may apply one where this is an expression."""
    config.count(key, depth)
    value = config.followed(value)
    if isinstance(value, list):
        parts = enumerate(value)
        return any(_has_sigmoid(config, part, f"{key}::{i}", depth + 1) for i, part in parts)
    if not isinstance(value, Mapping) or disabled(config, value, key):
        return False
    if str(value.get("_target_")).rpartition(".")[2].startswith("Activations"):
        stated = config.followed(value.get("sigmoid"))
        flags = stated if isinstance(stated, list) else [stated]
        return any(flag not in (None, False) for flag in flags)
    inner = value.get("transforms")
    return _has_sigmoid(config, inner, f"{key}::transforms", depth + 1)


def _names(metadata: Config, key: str) -> list[str]:
    """Names of the channels, by their numbers."""
    named = metadata.get(key)
    if not isinstance(named, Mapping) or set(named) != set(map(str, range(len(named)))):
        raise RunError(
            f"{metadata.file}: '{key}' must number its names from 0, found {str(named)[:80]}; {metadata.remedy}."
        )
    return [str(named[str(i)]) for i in range(len(named))]
