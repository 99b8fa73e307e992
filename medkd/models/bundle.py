"""MONAI bundles: what their configuration says in plain values, as the description of an external model.

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

METADATA = Path("configs") / "metadata.json"
INFERENCE = tuple(Path("configs") / f"inference.{ending}" for ending in ("json", "yaml", "yml"))
WEIGHTS = Path("models") / "model.pt"
_PREPROCESSING = ("spacing", "normalization", "crop", "transpose")
# load, convert or move, without influence on the values
_NEUTRAL = (
    "LoadImage",
    "EnsureType",
    "EnsureChannelFirst",
    "AddChannel",
    "AsChannelFirst",
    "ToTensor",
    "ToDevice",
    "CastToType",
    "SelectItems",
)
_MOST_REFERENCES = 20  # one after the other
_DEEPEST = 50  # lists, objects and references inside each other


def is_bundle_folder(path: Path) -> bool:
    """Whether a folder is laid out as a MONAI bundle: metadata, a configuration for inference, and a folder of
    weights.
    """
    return (
        (path / METADATA).is_file()
        and any((path / file).is_file() for file in INFERENCE)
        and (path / "models").is_dir()
    )


def read_bundle(path: Path, overriding: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a ``teacher.json`` that a bundle's configuration states; see
    :class:`medkd.models.described.ExternalModel`.

    ``train`` is not among them: a bundle does not say on which cases it was trained.

    Args:
        path: the bundle.
        overriding: keys that are stated elsewhere; what the bundle says about them is not looked at, so it cannot be
            refused.

    Raises:
        RunError: something that is needed is missing, is an expression, or is not known to medkd; it is named.
    """
    file = next(path / file for file in INFERENCE if (path / file).is_file())
    config = _Config(_read(file), file)
    metadata = _Config(read_json(path / METADATA), path / METADATA, ("channels",))
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
        found |= _preprocessing(config.stating(*_PREPROCESSING), {**found, **overriding}, frozenset(overriding))
    return {**found, **overriding}


class _Config:
    """Plain values of a bundle's file; where they are refused, the text says which ``keys`` of a ``teacher.json`` stand
    for them.
    """

    def __init__(self, content: Any, file: Path, keys: tuple[str, ...] = ()) -> None:
        self.content, self.file = content, file
        named = f"{', '.join(keys[:-1])} and {keys[-1]}" if len(keys) > 1 else "".join(keys)
        self.remedy = f"state {named} in a teacher.json beside the bundle, see docs/nnunet-teacher.md"

    def stating(self, *keys: str) -> _Config:
        """The same values, read for other keys of a ``teacher.json``."""
        return _Config(self.content, self.file, keys)

    def get(self, key: str) -> Any:
        """The value at ``a::b::0``, references followed.

        Raises:
            RunError: it is missing or an expression.
        """
        return self.plain(self._find(key), key)

    def plain(self, value: Any, key: str, depth: int = 0) -> Any:
        """A value without references and expressions, at any depth.

        Raises:
            RunError: it holds an expression, or references that lead nowhere or to themselves.
        """
        value = self.followed(value)
        if isinstance(value, str) and value.startswith(("$", "@", "%")):
            raise RunError(
                f"{self.file}: '{key}' is the expression '{value[:80]}', which medkd does not run; {self.remedy}."
            )
        if depth > _DEEPEST:
            raise RunError(
                f"{self.file}: '{key[:80]}' refers to itself or is nested more than {_DEEPEST} levels deep; "
                f"{self.remedy}."
            )
        if isinstance(value, Mapping):
            return {k: self.plain(v, f"{key}::{k}", depth + 1) for k, v in value.items()}
        return (
            [self.plain(v, f"{key}::{i}", depth + 1) for i, v in enumerate(value)] if isinstance(value, list) else value
        )

    def followed(self, value: Any) -> Any:
        """What a reference, or a short chain of them, leads to; expressions and other values as they are.

        Raises:
            RunError: it leads nowhere.
        """
        for _ in range(_MOST_REFERENCES):
            if not (isinstance(value, str) and value.startswith("@")):
                break
            value = self._find(value[1:].replace("#", "::"))
        return value

    def entries(self, key: str) -> list[tuple[str, Mapping[str, Any]]]:
        """The objects of a list with their keys; what they hold may be expressions still.

        Raises:
            RunError: it is not a list of objects.
        """
        values = self._find(key)
        if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
            raise RunError(
                f"{self.file}: '{key}' must be a list of transforms, found {str(values)[:80]}; {self.remedy}."
            )
        return [(f"{key}::{i}", value) for i, value in enumerate(values)]

    def numbers(self, key: str) -> list[float]:
        """A list of positive numbers.

        Raises:
            RunError: it is none.
        """
        values = self.get(key)
        if (
            not isinstance(values, list)
            or not values
            or any(isinstance(v, bool) or not isinstance(v, (int, float)) or v <= 0 for v in values)
        ):
            raise RunError(f"{self.file}: '{key}' must list positive numbers, found {str(values)[:80]}; {self.remedy}.")
        return values

    def _find(self, key: str) -> Any:
        value = self.content
        for part in key.split("::"):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                raise RunError(f"{self.file}: '{key}' is missing; {self.remedy}.")
        return value


def _read(file: Path) -> Any:
    if file.suffix == ".json":
        return read_json(file)
    try:
        import yaml
    except ImportError as error:
        raise RunError(
            f"{file} is YAML, which needs PyYAML; install it (pip install pyyaml), or save the file as JSON."
        ) from error
    try:
        return yaml.safe_load(
            file.read_text(encoding="utf-8")
        )  # plain values only: tags that would make objects are errors
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(
            f"{file} is not plain YAML ({' '.join(str(error).split())[:160]}); mend it, or save it as JSON."
        ) from error


def _network(config: _Config, arguments_stated: bool) -> dict[str, Any]:
    if arguments_stated:
        return {"network": _short(str(config.get("network_def::_target_")))}
    definition = config.get("network_def")
    if not isinstance(definition, Mapping) or "_target_" not in definition:
        raise RunError(f"{config.file}: 'network_def' names no '_target_'; {config.remedy}.")
    arguments = {k: v for k, v in definition.items() if not k.startswith("_")}
    return {"network": _short(str(definition["_target_"])), "arguments": arguments}


def _labels(config: _Config, metadata: _Config) -> dict[str, int]:
    """Classes by their channels, provided that a softmax over them is meant: a bundle does not say what label values
    regions have.
    """
    names = _names(metadata, "network_data_format::outputs::pred::channel_def")
    doubt = None
    if isinstance(config.content, Mapping) and _has_sigmoid(
        config, config.content.get("postprocessing"), "postprocessing"
    ):
        doubt = f"{config.file}: 'postprocessing' applies a sigmoid"
    elif not names or names[0].casefold() != "background":
        doubt = (
            f"{metadata.file}: channel 0 of the outputs is {repr(names[0]) if names else 'missing'}, not the background"
        )
    if doubt:
        raise RunError(
            f"{doubt}, so the channels {', '.join(names)} may be regions, whose label values the bundle does not say; "
            f"{metadata.remedy}, "
            "regions in the order of the channels with their regions_class_order, for example "
            '{"labels": {"background": 0, '
            '"whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}.'
        )
    return {name: i for i, name in enumerate(names)}


def _has_sigmoid(config: _Config, value: Any, key: str, depth: int = 0) -> bool:
    """Whether an ``Activations`` at any depth applies a sigmoid, or may apply one where this is an expression."""
    value = config.followed(value)
    if depth > _DEEPEST:
        raise RunError(
            f"{config.file}: '{key[:80]}' refers to itself or is nested more than {_DEEPEST} levels deep; "
            f"{config.remedy}."
        )
    if isinstance(value, list):
        return any(_has_sigmoid(config, v, f"{key}::{i}", depth + 1) for i, v in enumerate(value))
    if not isinstance(value, Mapping) or _disabled(config, value, key):
        return False
    if str(value.get("_target_")).rpartition(".")[2].startswith("Activations"):
        stated = config.followed(value.get("sigmoid"))
        return any(flag not in (None, False) for flag in (stated if isinstance(stated, list) else [stated]))
    return _has_sigmoid(config, value.get("transforms"), f"{key}::transforms", depth + 1)


def _names(metadata: _Config, key: str) -> list[str]:
    """Names of the channels, by their numbers."""
    named = metadata.get(key)
    if not isinstance(named, Mapping) or sorted(named) != sorted(map(str, range(len(named)))):
        raise RunError(
            f"{metadata.file}: '{key}' must number its names from 0, found {str(named)[:80]}; {metadata.remedy}."
        )
    return [str(named[str(i)]) for i in range(len(named))]


def _short(target: str) -> str:
    """The class of a dotted path that lies in MONAI, or the path itself."""
    return target.rpartition(".")[2] if "." not in target or target.startswith("monai.") else target


def _disabled(config: _Config, entry: Mapping[str, Any], key: str) -> bool:
    return "_disabled_" in entry and config.plain(entry["_disabled_"], f"{key}::_disabled_") in (True, "true")


def _base(target: str) -> str:
    """A transform's name without the ending of those that work on dictionaries."""
    name = _short(target)
    return next((name.removesuffix(end) for end in ("Dict", "d", "D") if name.endswith(end)), name)


def _preprocessing(config: _Config, known: Mapping[str, Any], stated: frozenset[str]) -> dict[str, Any]:
    """Spacing, normalisation, masks and cropping from the list of transforms, but for the keys that are ``stated``
    elsewhere.
    """
    channels = len(known["channels"]) if isinstance(known["channels"], list) else 1
    found: dict[str, Any] = {"normalization": ["none"] * channels, "crop": "none", "transpose": [2, 1, 0]}
    for key, entry in config.entries("preprocessing::transforms"):
        target = str(config.get(f"{key}::_target_"))
        base = _base(target)
        if base in _NEUTRAL or _disabled(config, entry, key):
            continue
        if base not in _TRANSFORMS:
            if {"spacing", "normalization"} <= stated:
                continue  # whoever states what is done to the voxels has seen it
            says = config.stating("spacing", "normalization").remedy
            raise RunError(
                f"{config.file}: the transform '{target}' is not one that medkd can repeat; {says} and include its "
                "effect."
            )
        part, reader = _TRANSFORMS[base]
        if part in stated:
            if isinstance(known[part], list):
                found[part] = known[part]  # a crop that follows must know what it follows
            continue
        reading = config.stating(part)
        values = {
            k: reading.plain(v, f"{key}::{k}")
            for k, v in entry.items()
            if not k.startswith("_") and k not in ("keys", "mode")
        }
        problem = reader(values, found, channels)
        if problem:
            raise RunError(
                f"{config.file}: the transform '{target}' {problem}, which medkd does not repeat; {reading.remedy}."
            )
    if "spacing" not in {*found, *stated}:
        says = config.stating("spacing").remedy
        raise RunError(f"{config.file}: no Spacing transform says which voxel size the network was trained on; {says}.")
    return found


def _spacing(values: dict[str, Any], found: dict[str, Any], channels: int) -> str | None:
    pixdim = values.get("pixdim")
    if not isinstance(pixdim, list) or any(
        isinstance(v, bool) or not isinstance(v, (int, float)) or v <= 0 for v in pixdim
    ):
        return f"has pixdim {pixdim}"
    found["spacing"] = pixdim
    return None


def _orientation(values: dict[str, Any], found: dict[str, Any], channels: int) -> str | None:
    letters = str(values.get("axcodes", ""))
    axes = ["".join(pair) for pair in ("LR", "PA", "IS")]
    order = [next((i for i, pair in enumerate(axes) if letter in pair), -1) for letter in letters]
    if sorted(order) != [0, 1, 2]:
        return f"has axcodes {letters!r}"
    found["transpose"] = [2 - axis for axis in order]  # from the order (z, y, x)
    return None


def _window(values: dict[str, Any], found: dict[str, Any], channels: int) -> str | None:
    low, high = values.get("a_min"), values.get("a_max")
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return f"has a_min {low} and a_max {high}"
    if (values.get("b_min"), values.get("b_max"), values.get("clip")) != (0, 1, True):
        return "maps to another range than 0..1 with clipping"
    return _normalise(found, f"window({_decimal(low)}, {_decimal(high)})", channels)


def _z_score(values: dict[str, Any], found: dict[str, Any], channels: int) -> str | None:
    if values.get("subtrahend") is not None or values.get("divisor") is not None:
        return "has a fixed mean or deviation"
    if channels > 1 and not values.get("channel_wise"):
        return "normalises all channels together"
    found["use_mask_for_norm"] = [bool(values.get("nonzero"))] * channels
    return _normalise(found, "zscore", channels)


def _rescale(values: dict[str, Any], found: dict[str, Any], channels: int) -> str | None:
    if (values.get("minv", 0), values.get("maxv", 1)) != (0, 1) or values.get("factor") is not None:
        return "maps to another range than 0..1"
    if channels > 1 and not values.get("channel_wise"):
        return "scales all channels together"
    return _normalise(found, "rescale_0_1", channels)


def _crop(values: dict[str, Any], found: dict[str, Any], channels: int) -> str | None:
    """The box of the voxels above 0; after a window, above its lower end."""
    if (
        values.get("select_fn") is not None
        or values.get("margin", 0) not in (0, [0, 0, 0])
        or values.get("k_divisible", 1) != 1
    ):
        return "has a margin or a selection of its own"
    scheme = str(next(iter(found["normalization"]), "none"))
    if scheme != "none" and not scheme.startswith("window("):
        return "crops by normalised values"
    found["crop"] = "above(0)" if scheme == "none" else f"above({scheme[7:].split(',')[0]})"
    return None


def _decimal(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _normalise(found: dict[str, Any], scheme: str, channels: int) -> str | None:
    if set(found["normalization"]) != {"none"}:
        return "is a second normalisation"
    found["normalization"] = [scheme] * channels
    return None


_Reader = Callable[[dict[str, Any], dict[str, Any], int], str | None]
# the key of a teacher.json that stands for a transform, and what reads it
_TRANSFORMS: dict[str, tuple[str, _Reader]] = {
    "Spacing": ("spacing", _spacing),
    "Orientation": ("transpose", _orientation),
    "ScaleIntensityRange": ("normalization", _window),
    "NormalizeIntensity": ("normalization", _z_score),
    "ScaleIntensity": ("normalization", _rescale),
    "CropForeground": ("crop", _crop),
}
