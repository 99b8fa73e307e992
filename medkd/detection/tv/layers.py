"""The convolutions of the torchvision family's detectors on ResNets, for a student that starts from its teacher."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from torch import Tensor

from medkd.core.errors import RunError
from medkd.detection.layers import HINT, Chart, Layer, Pair
from medkd.networks.inheritance_twins import last_of_part

_BODY = "pyramid.bottom.body"
_NECK = "neck"  # the pyramid's maps, which the head takes one after the other
_STAGES = (1, 2, 3, 4)
_BLOCK = re.compile(rf"({re.escape(_BODY)}\.layer(\d)\.)(\d+)(\..*)?")
_RESNETS = ("r18", "r50", "r101")


def pair_of(student: Any, teacher: Any) -> Pair:
    """Two detectors of one kind on ResNets: stages have equal numbers, and differ in blocks and in the kind of block.

    Raises:
        RunError: a backbone is not a ResNet, or the pyramid is not torchvision's.
    """
    for detector in (student, teacher):
        if not detector.two_stage and detector.rule is not None:
            raise RunError(
                f"--init teacher does not know the pyramid of {detector.spec.name}; choose another detector, or {HINT}."
            )
        if detector.pyramid.backbone not in _RESNETS:
            raise RunError(
                "--init teacher knows the backbones ResNet-18, -50 and -101 of these detectors, but "
                f"{detector.spec.name} has {detector.pyramid.backbone}; choose others, or {HINT}."
            )
    return Pair(_Walk(student).chart(), _Walk(teacher).chart(), partial(_twin, _stages(student), _stages(teacher)))


def _stages(detector: Any) -> dict[int, tuple[int, bool]]:
    """Per stage the number of blocks, and whether they are bottlenecks of three convolutions."""
    found = {}
    for stage in _STAGES:
        blocks = _blocks(detector, stage)
        found[stage] = (len(blocks), hasattr(blocks[0], "conv3"))
    return found


def _blocks(detector: Any, stage: int) -> Any:
    return detector.get_submodule(f"{_BODY}.layer{stage}")


def _twin(ours: dict[int, tuple[int, bool]], theirs: dict[int, tuple[int, bool]], name: str) -> str:
    """The first block of a stage, which changes resolution and width, stands for the first one.

    Of a block of two convolutions the first one stands for the second of three, which has its width and stride.
    """
    block = _BLOCK.fullmatch(name)
    if block is None:
        return name
    stack, number, index, rest = block.group(1), int(block.group(2)), int(block.group(3)), block.group(4) or ""
    (our_count, our_kind), (their_count, their_kind) = ours[number], theirs[number]
    if index and our_count <= their_count:
        index = 1 + last_of_part(index - 1, our_count - 1, their_count - 1)
    if their_kind and not our_kind:
        rest = {".conv1": ".conv2", ".conv2": ".conv3"}.get(rest, rest)
    return f"{stack}{index}{rest}"


class _Walk:
    """Collects the layers of a detector; a feature has the name of its convolution or block."""

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        self.layers: dict[str, Layer] = {}
        self.groups: dict[str, str] = {}

    def chart(self) -> Chart:
        """Follow the features from the image to the head."""
        stages = self._backbone()
        self._pyramid(stages)
        if self.detector.two_stage:
            self._proposals()
        else:
            self._head()
        return Chart(self.layers, partial(_run, self.detector), self.groups)

    def _add(self, conv: str, norm: str | None, takes: str | None, gives: str, block: str | None = None) -> str:
        inputs = () if takes is None else (takes,)
        self.layers[conv] = Layer(conv=conv, norm=norm, takes=inputs, gives=(gives,), block=block)
        return gives

    def _backbone(self) -> list[str]:
        """The last feature of every stage."""
        last = self._add(f"{_BODY}.conv1", f"{_BODY}.bn1", None, f"{_BODY}.conv1")
        found = []
        for stage in _STAGES:
            for number, block in enumerate(_blocks(self.detector, stage)):
                path = f"{_BODY}.layer{stage}.{number}"
                self.groups[path] = f"layer{stage}"
                last = self._block(path, block, last)
            found.append(last)
        return found

    def _block(self, path: str, block: Any, takes: str) -> str:
        if block.downsample is not None:
            shortcut = f"{path}.downsample.0"
            self.groups[shortcut] = self.groups[path]
            self._add(shortcut, f"{path}.downsample.1", takes, shortcut)
        count = 3 if hasattr(block, "conv3") else 2
        feature = takes
        for number in range(1, count):
            feature = self._add(f"{path}.conv{number}", f"{path}.bn{number}", feature, f"{path}.conv{number}")
        return self._add(f"{path}.conv{count}", f"{path}.bn{count}", feature, path, block=path)

    def _pyramid(self, stages: list[str]) -> None:
        top: Any = self.detector.pyramid.top
        used = stages[-len(top.inner_blocks) :]
        for number, stage in reversed(list(enumerate(used))):
            inner = f"pyramid.top.inner_blocks.{number}.0"
            self.groups[inner] = "inner"  # the coarser map is added
            self._add(inner, None, stage, inner)
            self._add_level(f"pyramid.top.layer_blocks.{number}.0", inner)
        for number in (6, 7) if not self.detector.two_stage else ():
            self._add_level(f"pyramid.top.extra_blocks.p{number}", _NECK)

    def _add_level(self, conv: str, takes: str) -> None:
        self.groups[conv] = _NECK
        self._add(conv, None, takes, conv)

    def _head(self) -> None:
        head: Any = self.detector.head
        ends = {}
        for kind in ("class", "box"):
            feature = _NECK
            for number in range(len(head.class_tower.blocks)):
                path = f"head.{kind}_tower.blocks.{number}"
                feature = self._add(f"{path}.0", f"{path}.1", feature, f"{path}.0")
            ends[kind] = feature
        for name, kind in (("to_class", "class"), ("to_box", "box"), ("to_centerness", "box")):
            if getattr(head, name) is not None:
                self._add(f"head.{name}", None, ends[kind], f"head.{name}")

    def _proposals(self) -> None:
        feature = _NECK
        for number in range(len(self.detector.proposer.head.conv)):
            path = f"proposer.head.conv.{number}.0"
            feature = self._add(path, None, feature, path)
        for name in ("cls_logits", "bbox_pred"):
            self._add(f"proposer.head.{name}", None, feature, f"proposer.head.{name}")


def _run(detector: Any, images: Tensor) -> None:
    """Without the parts behind proposals, which have no convolutions."""
    maps = detector.pyramid(images)
    if detector.two_stage:
        detector.proposer.head(list(maps.values()))
    else:
        detector.predict(maps)
