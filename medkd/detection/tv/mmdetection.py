"""Detectors with mmdetection's architecture, and its published weights by a map of names.

The networks are mmdetection's, so that its weights fit; what trains them (assignment and losses) is that of medkd's
detectors of these names.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from medkd.core.errors import RunError
from medkd.detection.base import Detector
from medkd.detection.tv.backbones import PyramidRule
from medkd.detection.tv.dense_models import ATSS, FCOS, GFL, RetinaNet, around
from medkd.detection.tv.grid import centres
from medkd.detection.tv.published_weights import check_settings, check_units, stated_settings

PREFIX = "mmdet_"
"""Of the names of these detectors."""
NAMES: tuple[tuple[str, str], ...] = (
    (r"backbone\.(.+)\.conv_offset\.(\w+)", r"pyramid.bottom.body.\1.offset.\2"),
    (r"backbone\.(.+)", r"pyramid.bottom.body.\1"),
    (r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", r"pyramid.top.inner_blocks.\1.0.\2"),
    (r"neck\.lateral_convs\.(\d)\.gn\.(\w+)", r"pyramid.top.inner_blocks.\1.1.\2"),
    (r"neck\.fpn_convs\.([012])\.conv\.(\w+)", r"pyramid.top.layer_blocks.\1.0.\2"),
    (r"neck\.fpn_convs\.([012])\.gn\.(\w+)", r"pyramid.top.layer_blocks.\1.1.\2"),
    (r"neck\.fpn_convs\.3\.conv\.(\w+)", r"pyramid.top.extra_blocks.p6.\1"),
    (r"neck\.fpn_convs\.3\.gn\.(\w+)", r"pyramid.top.extra_blocks.p6.1.\1"),
    (r"neck\.fpn_convs\.4\.conv\.(\w+)", r"pyramid.top.extra_blocks.p7.\1"),
    (r"neck\.fpn_convs\.4\.gn\.(\w+)", r"pyramid.top.extra_blocks.p7.1.\1"),
    (r"bbox_head\.cls_convs\.(\d)\.conv\.(\w+)", r"head.class_tower.blocks.\1.0.\2"),
    (r"bbox_head\.cls_convs\.(\d)\.gn\.(\w+)", r"head.class_tower.blocks.\1.1.\2"),
    (r"bbox_head\.reg_convs\.(\d)\.conv\.(\w+)", r"head.box_tower.blocks.\1.0.\2"),
    (r"bbox_head\.reg_convs\.(\d)\.gn\.(\w+)", r"head.box_tower.blocks.\1.1.\2"),
    (r"bbox_head\.(?:retina_|atss_|gfl_|conv_)cls\.(\w+)", r"head.to_class.\1"),
    (r"bbox_head\.(?:retina_|atss_|gfl_|conv_)reg\.(\w+)", r"head.to_box.\1"),
    (r"bbox_head\.(?:atss_|conv_)centerness\.(\w+)", r"head.to_centerness.\1"),
    (r"bbox_head\.reppoints_cls_conv\.weight", r"head.class_conv.weight"),
    (r"bbox_head\.reppoints_cls_out\.(\w+)", r"head.to_class.\1"),
    (r"bbox_head\.reppoints_pts_init_conv\.(\w+)", r"head.to_first.0.\1"),
    (r"bbox_head\.reppoints_pts_init_out\.(\w+)", r"head.to_first.2.\1"),
    (r"bbox_head\.reppoints_pts_refine_conv\.weight", r"head.refine_conv.weight"),
    (r"bbox_head\.reppoints_pts_refine_out\.(\w+)", r"head.to_refined.\1"),
    (r"bbox_head\.moment_transfer", r"head.factors"),
)
"""Name in mmdetection → name here; the first that matches holds. ``bbox_head.scales.N.scale`` is
``head.scales.pM.factor`` of level M = N + 3."""

_SCALE = re.compile(r"bbox_head\.scales\.(\d)\.scale")
_CONSTANT = "bbox_head.integral.project"  # the numbers of GFL's bins
_CLASSES = "head.to_class."
_NORMED = re.compile(r"pyramid\.top\.extra_blocks\.(p\d)\.(\w+)")  # a convolution with a norm behind it
_TOWER = re.compile(r"head\.(class|box)_tower\.blocks\.(\d)\.(\d)\.(\w+)")
_BIAS = re.compile(r"head\.(class|box)_tower\.blocks\.\d\.0\.bias")
_BODY = "pyramid.bottom.body."
_FCOS = "FCOSHead"  # in configurations
_SCALED = 4.0  # of the anchors of mmdetection's detectors, in strides
_REMEDY = f"give the weights of its architecture to a detector whose name begins with {PREFIX} or reppoints_"
_log = logging.getLogger(__name__)


class MMDetRetinaNet(RetinaNet):
    """RetinaNet with mmdetection's towers (no normalisation), pyramid (``p6`` of the backbone) and anchors (not
    rounded).
    """

    rule: ClassVar[PyramidRule | None] = PyramidRule(from_backbone=True, relu=False)
    head_changes: ClassVar[Mapping[str, Any]] = {"norm": False, "bias": True}
    exact: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Sequence[str]]] = {"octave_base_scale": ("4",)}


class MMDetGFL(GFL):
    """GFL with mmdetection's pyramid, whose ``p7`` is made of ``p6`` as it is."""

    rule: ClassVar[PyramidRule | None] = PyramidRule(relu=False)
    published: ClassVar[Mapping[str, Sequence[str]]] = {"octave_base_scale": ("8",)}


class MMDetATSS(ATSS):
    """ATSS with mmdetection's pyramid, whose ``p7`` is made of ``p6`` as it is."""

    rule: ClassVar[PyramidRule | None] = PyramidRule(relu=False)
    published: ClassVar[Mapping[str, Sequence[str]]] = {"octave_base_scale": ("8",)}


class MMDetFCOS(FCOS):
    """mmdetection's first FCOS (``…_caffe_fpn_gn-head``): points in the middle of cells, exponential distances in
    pixels with a factor per level, centre-ness on the class tower.

    Its towers may have biases before their norms; published files do not, and then these are zero.
    """

    rule: ClassVar[PyramidRule | None] = PyramidRule()
    head_changes: ClassVar[Mapping[str, Any]] = {"scaled": True, "bias": True, "centre_of_class": True}
    cell_centre: ClassVar[float] = 0.5
    published: ClassVar[Mapping[str, Sequence[str]]] = {"norm_on_bbox": ("False",), "centerness_on_reg": ("False",)}

    def decode(self, raw: Tensor, anchors: Tensor, stride: int) -> Tensor:
        """See :meth:`~medkd.detection.tv.dense.DenseDetector.decode`."""
        return around(centres(anchors), raw.exp())


def is_mmdetection(state: Mapping[str, Tensor]) -> bool:
    """Whether weights have mmdetection's names."""
    return any(name.startswith(("neck.lateral_convs.", "bbox_head.")) for name in state)


def load_mmdetection(detector: Detector, given: Mapping[str, Tensor], file: Path, *, classes: bool = False) -> int:
    """Give a detector the weights of mmdetection's of the same architecture.

    Args:
        detector: of torchvision's family.
        given: the file's tensors.
        file: for error texts.
        classes: refuse the weights of other classes; else these are left out, and all others loaded.

    Returns:
        How many tensors were loaded.

    Raises:
        RunError: a name does not fit, a tensor is missing or of another shape, or all fit but mean something else.
    """
    if getattr(detector, "rule", None) is None:
        raise RunError(
            f"{file} is of mmdetection, whose architecture {detector.spec.name} does not have, even where weights fit; "
            f"{_REMEDY}."
        )
    own = detector.state_dict()
    text = stated_settings(file)
    check_settings(file, text, detector.spec.name, _expected(detector))
    found = _with_biases(detector, file, _translated(given, own), own, text)
    needed = [name for name in own if classes or not _of_other_classes(name, found, own)]
    needed = [name for name in needed if not name.endswith("num_batches_tracked")]
    _check(detector, file, needed, found, own)
    detector.load_state_dict({**own, **{name: found[name].reshape(own[name].shape) for name in needed}})
    scale = detector.spec.anchor_scale
    if detector.anchors and scale != _SCALED:
        _log.warning("%s was trained with an anchor_scale of %g, the plan has %g", file, _SCALED, scale)
    _log.info("%s starts from %s: %d of %d tensors", detector.spec.name, file, len(needed), len(own))
    return len(needed)


def _backbone(detector: Any) -> str:
    return str(detector.pyramid.backbone)


def _expected(detector: Any) -> dict[str, Sequence[str]]:
    """The settings of mmdetection's that decide over outputs, but not over tensors."""
    rule: PyramidRule = detector.rule
    return {
        "style": ("caffe" if _backbone(detector).endswith("_caffe") else "pytorch",),
        "add_extra_convs": ("on_input" if rule.from_backbone else "on_output", "True"),  # an older form, with others
        "relu_before_extra_convs": (str(rule.relu),),
        **getattr(detector, "published", {}),
    }


def _with_biases(
    detector: Detector, file: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor], text: str
) -> dict[str, Tensor]:
    """The tensors, with zeros for biases before a norm where a file has none of them.

    Raises:
        RunError: it has them, as files whose boxes are in strides do, and no configuration tells these apart.
    """
    biases = [name for name in own if _BIAS.fullmatch(name) and name.replace(".0.bias", ".1.weight") in own]
    if biases and not any(name in found for name in biases):
        return {**found, **{name: torch.zeros_like(own[name]) for name in biases}}
    if biases and _FCOS not in text:
        raise RunError(
            f"{file} has biases in its towers, as mmdetection's detectors with norm_on_bbox have, which "
            f'{detector.spec.name} is not, and no configuration that tells; give the file with its meta["config"].'
        )
    return dict(found)


def _translated(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names here, without what is not needed."""
    found = {}
    for name, value in given.items():
        new = renamed(name, own)
        if new is not None:
            found[new] = value
    return found


def _of_other_classes(name: str, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether it is a class predictor, which the file has for another number of classes."""
    return name.startswith(_CLASSES) and name in found and not _fits(found[name], own[name])


def _check(
    detector: Detector, file: Path, needed: Sequence[str], found: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    """See that every tensor has its place, and every place its tensor.

    Raises:
        RunError: one has not, or the backbone is for images in other units.
    """
    wrong = [name for name in needed if not _fits(found.get(name), own[name])]
    strange = [name for name in found if name not in own]
    what = f"it has no place for {strange[0]}" if strange else ""
    if wrong:
        what = f"{len(wrong)} of its {len(needed)} tensors are missing or of another shape, the first is {wrong[0]}"
    if what:
        name = detector.spec.name
        raise RunError(f"{file} has mmdetection's names, but does not fit {name}: {what}; {_REMEDY}.")
    body = {name.removeprefix(_BODY): value for name, value in found.items() if name.startswith(_BODY)}
    check_units(_backbone(detector), file, body)


def renamed(name: str, own: Mapping[str, Tensor]) -> str | None:
    """A name of mmdetection's as it is here; None for what is not needed."""
    scale = _SCALE.fullmatch(name)
    if name == _CONSTANT or name.endswith("num_batches_tracked"):
        return None
    if scale is not None:
        return f"head.scales.p{int(scale[1]) + 3}.factor"
    for pattern, replacement in NAMES:
        if re.fullmatch(pattern, name):
            return _nested(re.sub(pattern, replacement, name), own)
    return name


def _nested(name: str, own: Mapping[str, Tensor]) -> str:
    """The name where a convolution and its norm stand one level deeper, or towers are plain sequences."""
    if name in own:
        return name
    coarse, tower = _NORMED.fullmatch(name), _TOWER.fullmatch(name)
    if coarse is not None:
        return f"pyramid.top.extra_blocks.{coarse[1]}.0.{coarse[2]}"
    if tower is not None:  # three layers per block: convolution, norm, activation
        return f"head.{tower[1]}_tower.{3 * int(tower[2]) + int(tower[3])}.{tower[4]}"
    return name


def _fits(given: Tensor | None, own: Tensor) -> bool:
    """Whether a tensor has the shape of another; factors are single numbers there."""
    return given is not None and (given.shape == own.shape or (given.ndim == 0 and own.numel() == 1))
