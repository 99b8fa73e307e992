"""Detectors on torchvision's parts. Importing this registers them; torchvision and timm are imported when one is
built.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from medkd.detection.base import DETECTORS, Detector, DetectorEntry, DetectorSpec

if TYPE_CHECKING:
    from medkd.detection.job import DetectionJob

_FASTER = ("r18", "r50", "r101", "efficientnet_lite0", "efficientnet_es")
_KINDS = {
    "faster_rcnn": ("Faster R-CNN", (*_FASTER, "resnest50", "swin_t", "pvt_v2_b5")),
    "retinanet": ("RetinaNet", ("r18", "r50", "r101", "x101_64x4d", "swin_t", "pvt_v2_b2", "mobilenet_v2")),
    "fcos": ("FCOS", ("r18", "r50", "r101")),
    "gfl": ("GFL (generalized focal loss)", ("r18", "r50", "r101")),
    "atss": ("ATSS", ("r18", "r50", "r101")),
    "reppoints": ("RepPoints (moments)", ("r18", "r50", "r101", "x101_32x4d", "x101_32x4d_dcn")),
    "reppoints_minmax": ("RepPoints (smallest box)", ("r50",)),
    "mmdet_retinanet": ("mmdetection's RetinaNet", ("r18", "r50", "r101")),
    "mmdet_gfl": ("mmdetection's GFL", ("r18", "r50", "r101")),
    "mmdet_atss": ("mmdetection's ATSS", ("r18", "r50", "r101")),
    "mmdet_fcos": ("mmdetection's FCOS", ("r50_caffe", "r101_caffe")),
}
_BACKBONES = {
    "r18": "ResNet-18",
    "r50": "ResNet-50",
    "r101": "ResNet-101",
    "r50_caffe": "Caffe's ResNet-50",
    "r101_caffe": "Caffe's ResNet-101",
    "x101_64x4d": "ResNeXt-101 (64x4d)",
    "x101_32x4d": "ResNeXt-101 (32x4d)",
    "x101_32x4d_dcn": "ResNeXt-101 (32x4d), deformable from its second stage on,",
    "mobilenet_v2": "MobileNetV2",
    "pvt_v2_b2": "PVTv2-B2",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "efficientnet_es": "EfficientNet-EdgeTPU-S",
    "resnest50": "ResNeSt-50",
    "swin_t": "Swin-T",
    "pvt_v2_b5": "PVTv2-B5",
}


def fit(job: DetectionJob) -> None:
    """Train one fold; see :func:`medkd.detection.tv.training.fit`."""
    from medkd.detection.tv.training import fit as train

    train(job)


def _build(kind: str, backbone: str, spec: DetectorSpec) -> Detector:
    from medkd.detection.tv.dense_models import ATSS, FCOS, GFL, RetinaNet
    from medkd.detection.tv.faster_rcnn import FasterRCNN
    from medkd.detection.tv.mmdetection import MMDetATSS, MMDetFCOS, MMDetGFL, MMDetRetinaNet
    from medkd.detection.tv.reppoints import RepPoints

    kinds: dict[str, Callable[[DetectorSpec, str], Detector]] = {
        "faster_rcnn": FasterRCNN,
        "retinanet": RetinaNet,
        "fcos": FCOS,
        "gfl": GFL,
        "atss": ATSS,
        "reppoints": RepPoints,
        "mmdet_retinanet": MMDetRetinaNet,
        "mmdet_gfl": MMDetGFL,
        "mmdet_atss": MMDetATSS,
        "mmdet_fcos": MMDetFCOS,
        "reppoints_minmax": partial(RepPoints, transform="minmax"),
    }
    return kinds[kind](spec, backbone)


for _kind, (_label, _names) in _KINDS.items():
    for _name in _names:
        _about = f"{_label} with {_BACKBONES[_name]} and a feature pyramid"
        DETECTORS.register(f"{_kind}_{_name}")(DetectorEntry("torchvision", partial(_build, _kind, _name), _about))
