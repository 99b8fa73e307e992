"""What a weight file says of its network beyond names and shapes of tensors, so that weights which fit and mean
something else are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from medkd.core.checkpoint import SAFETENSORS, load_checkpoint
from medkd.core.errors import RunError

_TWINS = re.compile(r"(r50|r101)(_caffe)?")  # backbones of equal tensors that take images in different units
_CAFFE = (
    0.04  # RMS norm of the first filters behind their norm: torchvision's take images of deviation 1, Caffe's of 60
)
_COMMENT = re.compile(r"#[^\n]*")


def stated_settings(file: Path) -> str:
    """The configuration that mmdetection writes into a checkpoint, as text that is only searched; empty without one."""
    if file.suffix == SAFETENSORS:
        return ""
    meta = load_checkpoint(file).get("meta")
    texts = [meta.get(key) for key in ("config", "cfg")] if isinstance(meta, Mapping) else []
    return "\n".join(_COMMENT.sub("", text) for text in texts if isinstance(text, str))


def stated(text: str, name: str) -> str | None:
    """The value of a setting, without quotes; the last one holds, as the text of a base comes first.

    >>> stated("backbone=dict(style='caffe'), norm_on_bbox = True", "style")
    'caffe'
    """
    found = re.findall(rf"\b{name}['\"]?\s*[=:]\s*['\"]?(\w[\w.]*)", text)
    return found[-1] if found else None


def check_settings(file: Path, text: str, network: str, expected: Mapping[str, Sequence[str]]) -> None:
    """Refuse weights whose configuration computes something else with equal tensors.

    Args:
        file: of the weights, for error texts.
        text: their configuration.
        network: name of the detector.
        expected: setting → the detector's value, and other spellings of it.

    Raises:
        RunError: the text states another value.
    """
    for name, values in expected.items():
        other = stated(text, name)
        if other is not None and other not in values:
            raise RunError(
                f"{file} was trained with {name}={other}, but {network} has {name}={values[0]}, with equal tensors; "
                "give weights of its configuration."
            )


def check_units(backbone: str, file: Path, given: Mapping[str, Tensor]) -> None:
    """Refuse a ResNet whose first filters were trained on images in other units (Caffe's: 0 to 255, blue first).

    Args:
        backbone: its name, ``r50_caffe``.
        file: of the weights, for error texts.
        given: its tensors; names begin with ``conv1.`` and ``bn1.``.

    Raises:
        RunError: they are of the other kind.
    """
    kind = _TWINS.fullmatch(backbone)
    names = ("conv1.weight", "bn1.weight", "bn1.running_var")
    if kind is None or any(name not in given for name in names):
        return
    filters, scale, variance = (given[name].detach().double() for name in names)
    gains: Any = filters.flatten(1).norm(dim=1) * scale.abs() / (variance + 1e-5).sqrt()
    caffe = float(gains.square().mean().sqrt()) < _CAFFE
    if caffe != bool(kind[2]):
        found, own = ("Caffe's", "torchvision's") if caffe else ("torchvision's", "Caffe's")
        raise RunError(
            f"{file} holds a ResNet for images in {found} units, but {backbone} takes {own}, with tensors of the same "
            f"names; give {own} weights, or choose a detector on {kind[1]}{'_caffe' if caffe else ''}."
        )
