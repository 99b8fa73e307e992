"""What the YOLO detectors are built of: ultralytics' own files, and its YOLOv8 neck and head on other backbones."""

from __future__ import annotations

from typing import Any

from torch import nn

SIZES = "nsmlx"
FAMILIES = {
    "yolov8": "YOLOv8{size}, anchor-free, DFL boxes, CSPDarknet",
    "yolo11": "YOLO11{size}, anchor-free, DFL boxes, attention",
    "yolo26": "YOLO26{size}, end-to-end head without NMS, no DFL",
}
STANDARD: dict[str, str] = {}
for _family, _text in FAMILIES.items():
    for _size in SIZES:
        STANDARD[f"{_family}{_size}"] = _text.format(size=_size)
"""Name → one line, of the detectors whose description ultralytics ships (``NAME.yaml``)."""

Row = list[Any]

OTHER: dict[str, tuple[str, list[Row], tuple[int, int]]] = {
    "yolov8_r18": (
        "YOLOv8s neck and head on torchvision's ResNet-18",
        [
            [-1, 1, "TorchVision", [512, "resnet18", None, True, 2, True]],
            [0, 1, "Index", [128, 6]],
            [0, 1, "Index", [256, 7]],
        ],
        (512, 8),
    ),
    "yolov8_efficientnet_es": (
        "YOLOv8s neck and head on timm's EfficientNet-EdgeTPU-small",
        [[-1, 1, "TimmFeatures", ["efficientnet_es"]], [0, 1, "Index", [48, 0]], [0, 1, "Index", [144, 1]]],
        (192, 2),
    ),
}
"""Name → one line, rows up to the maps of stride 8 and 16, and (channels, place in the backbone's list) of stride
32.
"""


class TimmFeatures(nn.Module):
    """Builds a timm backbone by name with random weights; its forward gives the maps of stride 8, 16 and 32.

    The result is timm's own module and not an instance of this class, so that a checkpoint of the whole detector can be
    read where timm is, without medkd. It is a class because ultralytics' parser takes nothing else.
    """

    def __new__(cls, name: str) -> nn.Module:  # type: ignore[misc]  # see above
        """Build it."""
        import timm

        return timm.create_model(name, features_only=True, out_indices=(2, 3, 4), pretrained=False)


def description(name: str) -> str | dict[str, Any]:
    """What ``ultralytics.nn.tasks.DetectionModel`` takes: the name of a file that it ships, or rows of our own.

    The own ones are the students of Li et al., "SFD-KD", in the shape that ultralytics' parser can build: a backbone,
    SPPF, and neck and head of YOLOv8s (depth 0.33, width 0.5) on strides 8, 16 and 32.
    """
    if name in STANDARD:
        return f"{name}.yaml"
    _, rows, (channels, place) = OTHER[name]
    backbone = [*rows, [0, 1, "Index", [channels, place]], [-1, 1, "SPPF", [1024, 5]]]
    head: list[Row] = [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 3, "C2f", [512]],  # 7
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 1], 1, "Concat", [1]],
        [-1, 3, "C2f", [256]],  # 10: stride 8
        [-1, 1, "Conv", [256, 3, 2]],
        [[-1, 7], 1, "Concat", [1]],
        [-1, 3, "C2f", [512]],  # 13: stride 16
        [-1, 1, "Conv", [512, 3, 2]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 3, "C2f", [1024]],  # 16: stride 32
        [[10, 13, 16], 1, "Detect", ["nc"]],
    ]
    return {"nc": 80, "scales": {"s": [0.33, 0.5, 1024]}, "scale": "s", "backbone": backbone, "head": head}
