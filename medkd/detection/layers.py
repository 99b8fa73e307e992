"""The convolutions of a detector as a student needs them that starts from its teacher: what they take, what they
give, and which of the teacher's they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.detection.base import Detector

HINT = "use --init random"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution of a detector.

    Attributes:
        conv: path of its module.
        norm: path of the norm behind it; None where there is none.
        takes: the features that its inputs are, concatenated; none for the image.
        gives: the features that its outputs are, of equal width.
        block: path of the residual block (with ``downsample``, None for the input itself) whose shortcut is added to
            the normed output before an activation; None where nothing is.
    """

    conv: str
    norm: str | None
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    block: str | None = None


@dataclass(frozen=True)
class Chart:
    """All convolutions of a detector, every one after those that feed it.

    Attributes:
        layers: path of the convolution → what is known about it.
        groups: feature → features of one group have the same channels, since they are added up, or one is pooled from
            the other; a feature that is missing is a group of its own.
        run: a forward pass through all layers.
    """

    layers: Mapping[str, Layer]
    run: Callable[[Tensor], Any]
    groups: Mapping[str, str] = field(default_factory=dict)

    def group(self, feature: str) -> str:
        """Of which group a feature is."""
        return self.groups.get(feature, feature)

    def widths(self, detector: nn.Module) -> dict[str, int]:
        """Channels of every group."""
        found = {}
        for layer in self.layers.values():
            conv: Any = detector.get_submodule(layer.conv)
            for feature in layer.gives:
                found[self.group(feature)] = conv.out_channels // len(layer.gives)
        return found


Twin = Callable[[str], str]
"""Path or feature of the student → that of the teacher which it stands for."""


@dataclass(frozen=True)
class Pair:
    """Student and teacher of one kind.

    Attributes:
        student: its layers.
        teacher: its layers.
        twin: which of the teacher's a layer or feature of the student stands for.
    """

    student: Chart
    teacher: Chart
    twin: Twin


def chart_pair(student: Detector, teacher: Detector) -> Pair:
    """Describe a student and a teacher from which it can start.

    Raises:
        RunError: they are not of one kind, a layer of the student has no counterpart, or it is wider somewhere.
    """
    describe = _description(student, teacher)
    pair = describe(student, teacher)
    _check_layers(pair, student, teacher)
    _check_widths(pair, student, teacher)
    return pair


def _description(student: Detector, teacher: Detector) -> Callable[[Any, Any], Pair]:
    if student.family == teacher.family == "yolo":
        from medkd.detection.yolo.layers import pair_of

        return pair_of
    if student.family == teacher.family == "torchvision" and type(student) is type(teacher):
        from medkd.detection.tv.layers import pair_of as pair_of_torchvision

        return pair_of_torchvision
    raise RunError(
        f"--init teacher needs two detectors of one kind, but the student is a {student.spec.name} and the teacher a "
        f"{teacher.spec.name}; choose another teacher, or {HINT}."
    )


def _check_layers(pair: Pair, student: Detector, teacher: Detector) -> None:
    for path in pair.student.layers:
        if pair.twin(path) not in pair.teacher.layers:
            raise RunError(
                f"--init teacher needs a student that is nowhere deeper than its teacher, but {path} of the "
                f"{student.spec.name} has no counterpart in the {teacher.spec.name}; choose a smaller student, or "
                f"{HINT}."
            )


def _check_widths(pair: Pair, student: Detector, teacher: Detector) -> None:
    theirs = pair.teacher.widths(teacher)
    for layer in pair.student.layers.values():
        ours: Any = student.get_submodule(layer.conv)
        width = ours.out_channels // len(layer.gives)
        for feature in layer.gives:
            available = theirs[pair.teacher.group(pair.twin(feature))]
            if width > available:
                raise RunError(
                    f"--init teacher needs a student that is nowhere wider than its teacher, but {layer.conv} of the "
                    f"{student.spec.name} has {width} channels and its counterpart in the {teacher.spec.name} "
                    f"{available}; choose a smaller student, or {HINT}."
                )
