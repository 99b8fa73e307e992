"""Where the libraries keep first weights of detectors: ImageNet's of their backbones, COCO's of whole ones."""

from __future__ import annotations

from medkd.detection.yolo.architectures import STANDARD
from medkd.models.pretrained import COCO, IMAGENET, Source

_TORCHVISION = "https://download.pytorch.org/models/"
_IN_TORCHVISION = {
    "r18": "resnet18-f37072fd.pth",
    "r50": "resnet50-0676ba61.pth",
    "r101": "resnet101-63fe2227.pth",
    "x101_64x4d": "resnext101_64x4d-173b62eb.pth",
    "swin_t": "swin_t-704ceda3.pth",
}
IN_TIMM = {
    "x101_32x4d": "resnext101_32x4d",
    "x101_32x4d_dcn": "resnext101_32x4d",
    "mobilenet_v2": "mobilenetv2_100",
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "efficientnet_es": "efficientnet_es",
    "resnest50": "resnest50d",
    "pvt_v2_b2": "pvt_v2_b2",
    "pvt_v2_b5": "pvt_v2_b5",
}
"""Backbone → its name in timm."""
_COCO = {
    "faster_rcnn_r50": "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    "retinanet_r50": "retinanet_resnet50_fpn_coco-eeacb38b.pth",
    "fcos_r50": "fcos_resnet50_fpn_coco-99b0c9b7.pth",
}
_BACKBONES = (*_IN_TORCHVISION, *IN_TIMM)


def sources_of(name: str) -> dict[str, Source]:
    """What ``imagenet`` and ``coco`` mean for a detector; nothing for one from outside the package.

    >>> sorted(sources_of("retinanet_r50"))
    ['coco', 'imagenet']
    """
    if name in STANDARD:
        return {COCO: Source("ultralytics", f"{name}.pt")}
    found = {}
    fitting = [backbone for backbone in _BACKBONES if name.endswith(f"_{backbone}")]
    if fitting:
        found[IMAGENET] = _backbone(fitting[0])
    if name in _COCO:
        found[COCO] = Source("torchvision", _TORCHVISION + _COCO[name])
    return found


def _backbone(name: str) -> Source:
    if name in IN_TIMM:
        return Source("timm", IN_TIMM[name])
    return Source("torchvision", _TORCHVISION + _IN_TORCHVISION[name])
