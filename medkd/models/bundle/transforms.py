"""The transforms of a MONAI bundle as spacing, normalisation, masks and cropping of a ``teacher.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from medkd.core.errors import RunError
from medkd.models.bundle.config import Config, disabled, short

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


def _base(target: str) -> str:
    """A transform's name without the ending of those that work on dictionaries."""
    name = short(target)
    for end in ("Dict", "d", "D"):
        if name.endswith(end):
            return name.removesuffix(end)
    return name


def preprocessing(config: Config, known: Mapping[str, Any], stated: frozenset[str]) -> dict[str, Any]:
    """Spacing, normalisation, masks and cropping from the list of transforms, but for the keys that are ``stated``
    elsewhere.
    """
    channels = len(known["channels"]) if isinstance(known["channels"], list) else 1
    found: dict[str, Any] = {"normalization": ["none"] * channels, "crop": "none", "transpose": [2, 1, 0]}
    for key, entry in config.entries("preprocessing::transforms"):
        target = str(config.get(f"{key}::_target_"))
        base = _base(target)
        if base in _NEUTRAL or disabled(config, entry, key):
            continue
        if base not in _TRANSFORMS:
            _check_unknown(config, target, stated)
            continue
        part, reader = _TRANSFORMS[base]
        if part in stated:
            if isinstance(known[part], list):
                found[part] = known[part]  # a crop that follows must know what it follows
            continue
        reading = config.stating(part)
        problem = reader(_arguments(reading, entry, key), found, channels)
        if problem:
            raise RunError(
                f"{config.file}: the transform '{target}' {problem}, which medkd does not repeat; {reading.remedy}."
            )
    if "spacing" not in {*found, *stated}:
        says = config.stating("spacing").remedy
        raise RunError(f"{config.file}: no Spacing transform says which voxel size the network was trained on; {says}.")
    return found


def _check_unknown(config: Config, target: str, stated: frozenset[str]) -> None:
    """Refuse a transform that medkd does not know, unless somebody states what is done to the voxels."""
    if {"spacing", "normalization"} <= stated:
        return
    says = config.stating("spacing", "normalization").remedy
    raise RunError(
        f"{config.file}: the transform '{target}' is not one that medkd can repeat; {says} and include its effect."
    )


def _arguments(config: Config, entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The arguments of a transform that change values."""
    values = {}
    for name, value in entry.items():
        if not name.startswith("_") and name not in ("keys", "mode"):
            values[name] = config.plain(value, f"{key}::{name}")
    return values


def _spacing(values: dict[str, Any], found: dict[str, Any], channels: int) -> str | None:
    pixdim = values.get("pixdim")
    if not isinstance(pixdim, list) or not all(map(_is_length, pixdim)):
        return f"has pixdim {pixdim}"
    found["spacing"] = pixdim
    return None


def _is_length(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value > 0


def _orientation(values: dict[str, Any], found: dict[str, Any], channels: int) -> str | None:
    letters = str(values.get("axcodes", ""))
    axes = {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}
    order = [axes.get(letter, -1) for letter in letters]
    if sorted(order) != [0, 1, 2]:
        return f"has axcodes {letters!r}"
    found["transpose"] = [2 - axis for axis in order]  # from the order (z, y, x)
    return None


def _window(values: dict[str, Any], found: dict[str, Any], channels: int) -> str | None:
    low, high = values.get("a_min"), values.get("a_max")
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return f"has a_min {low} and a_max {high}"
    target = (values.get("b_min"), values.get("b_max"), values.get("clip"))
    if target != (0, 1, True):
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
    target = (values.get("minv", 0), values.get("maxv", 1))
    if target != (0, 1) or values.get("factor") is not None:
        return "maps to another range than 0..1"
    if channels > 1 and not values.get("channel_wise"):
        return "scales all channels together"
    return _normalise(found, "rescale_0_1", channels)


def _crop(values: dict[str, Any], found: dict[str, Any], channels: int) -> str | None:
    """The box of the voxels above 0; after a window, above its lower end."""
    margin = values.get("margin", 0)
    selection = values.get("select_fn")
    if selection is not None or margin not in (0, [0, 0, 0]) or values.get("k_divisible", 1) != 1:
        return "has a margin or a selection of its own"
    scheme = str(next(iter(found["normalization"]), "none"))
    if scheme != "none" and not scheme.startswith("window("):
        return "crops by normalised values"
    lowest = "0"
    if scheme != "none":
        lowest = scheme.removeprefix("window(").partition(",")[0]
    found["crop"] = f"above({lowest})"
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
