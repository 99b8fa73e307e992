"""The convolutions of YOLOv8's detectors, for a student that starts from its teacher."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from medkd.core.errors import RunError
from medkd.detection.base import DetectorOutputs
from medkd.detection.layers import HINT, Chart, Layer, Pair
from medkd.detection.yolo.detectors import YoloDetector
from medkd.networks.inheritance_twins import last_of_part

_BLOCK = re.compile(r"(model\.(\d+)\.m\.)(\d+)(.*)")
_KNOWN = ("Conv", "C2f", "SPPF", "Upsample", "Concat", "Detect")


def pair_of(student: YoloDetector, teacher: YoloDetector) -> Pair:
    """Two YOLOv8 detectors: their layers have the same numbers, and stacks of blocks differ in length.

    Raises:
        RunError: one of them is of another generation, or on another backbone.
    """
    for detector in (student, teacher):
        kinds = [type(layer).__name__ for layer in _layers(detector)]
        strange = [kind for kind in kinds if kind not in _KNOWN]
        if strange:
            raise RunError(
                f"--init teacher knows the layers of YOLOv8's own sizes, but {detector.spec.name} has a {strange[0]}; "
                f"choose yolov8n to yolov8x for teacher and student, or {HINT}."
            )
    return Pair(_Walk(student).chart(), _Walk(teacher).chart(), partial(_twin, _depths(student), _depths(teacher)))


def _layers(detector: YoloDetector) -> list[Any]:
    return list(detector.network.model)


def _depths(detector: YoloDetector) -> dict[int, int]:
    """Number of blocks of each stack, by the layer's number."""
    found = {}
    for index, layer in enumerate(_layers(detector)):
        if type(layer).__name__ == "C2f":
            found[index] = len(layer.m)
    return found


def _twin(ours: dict[int, int], theirs: dict[int, int], name: str) -> str:
    block = _BLOCK.fullmatch(name)
    if block is None:
        return name
    stack, layer, index, rest = block.groups()
    if int(layer) not in theirs or theirs[int(layer)] < ours[int(layer)]:
        return name
    return f"{stack}{last_of_part(int(index), ours[int(layer)], theirs[int(layer)])}{rest}"


class _Walk:
    """Collects the layers of a detector; a feature has the name of its convolution, halves and pools with a suffix."""

    def __init__(self, detector: YoloDetector) -> None:
        self.detector = detector
        self.layers: dict[str, Layer] = {}
        self.groups: dict[str, str] = {}

    def chart(self) -> Chart:
        """Follow the features from the image to the head."""
        outputs: list[tuple[str, ...]] = []
        for index, layer in enumerate(_layers(self.detector)):
            origins = layer.f if isinstance(layer.f, list) else [layer.f]
            given = [outputs[origin] if outputs else () for origin in origins]
            kind = type(layer).__name__
            path = f"model.{index}"
            if kind == "Concat":
                outputs.append(tuple(feature for features in given for feature in features))
            elif kind == "Upsample":
                outputs.append(given[0])
            elif kind == "Detect":
                self._head(path, layer, given)
            else:
                step = {"Conv": self._conv, "C2f": self._stack, "SPPF": self._pools}[kind]
                outputs.append(step(path, layer, given[0]))
        return Chart(self.layers, self._run, self.groups)

    def _run(self, images: Tensor) -> None:
        self.detector.observe(images, DetectorOutputs(logits=images.new_zeros(0)))

    def _conv(self, path: str, layer: Any, takes: tuple[str, ...]) -> tuple[str, ...]:
        self.layers[f"{path}.conv"] = Layer(conv=f"{path}.conv", norm=f"{path}.bn", takes=takes, gives=(path,))
        return (path,)

    def _stack(self, path: str, layer: Any, takes: tuple[str, ...]) -> tuple[str, ...]:
        """A convolution whose second half goes through the blocks; all that arises is put together at the end."""
        first = f"{path}.cv1"
        features = [f"{first}.left", f"{first}.right"]
        self.layers[f"{first}.conv"] = Layer(
            conv=f"{first}.conv", norm=f"{first}.bn", takes=takes, gives=tuple(features)
        )
        for number, block in enumerate(layer.m):
            before = features[-1]
            inner = self._conv(f"{path}.m.{number}.cv1", block, (before,))
            features += self._conv(f"{path}.m.{number}.cv2", block, inner)
            if block.add:
                self.groups[features[-1]] = self.groups.get(before, before)
        return self._conv(f"{path}.cv2", layer, tuple(features))

    def _pools(self, path: str, layer: Any, takes: tuple[str, ...]) -> tuple[str, ...]:
        """A convolution, and pools of it, one behind the other."""
        features = list(self._conv(f"{path}.cv1", layer, takes))
        for number in range(layer.n):
            features.append(f"{path}.cv1.pool{number}")
            self.groups[features[-1]] = features[0]
        return self._conv(f"{path}.cv2", layer, tuple(features))

    def _head(self, path: str, layer: Any, levels: Sequence[tuple[str, ...]]) -> None:
        for branch in ("cv2", "cv3"):
            for level, takes in enumerate(levels):
                tower = f"{path}.{branch}.{level}"
                features = takes
                for number in (0, 1):
                    features = self._conv(f"{tower}.{number}", layer, features)
                self.layers[f"{tower}.2"] = Layer(conv=f"{tower}.2", norm=None, takes=features, gives=(f"{tower}.2",))
