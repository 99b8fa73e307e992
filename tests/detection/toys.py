"""Small detectors of both kinds, batches of blobs, and contexts to try methods on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.core.features import Tap
from medkd.detection.base import DetectionTarget, Detector, DetectorOutputs, DetectorSpec, Level
from medkd.detection.distiller import DetectorDistiller
from medkd.detection.methods import DETECTION_METHODS
from medkd.distillation import Context, Method, build_method

SIZE = 64
BINS = 5
STRIDES = (8, 16)
Batch = tuple[Tensor, list[Tensor], list[Tensor]]


class Neck(nn.Module):
    """Maps of stride 8 and 16 (and 4)."""

    def __init__(self, width: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(3))
        self.strides = tuple(strides)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``p2`` … by name."""
        x, maps = F.silu(self.stem(x - 0.5)), {}
        for stride, down in zip((4, 8, 16), self.down, strict=True):
            x = down(x)
            if stride in self.strides:
                maps[name_of(stride)] = x
            x = F.silu(x)
        return maps


def name_of(stride: int) -> str:
    """``p3`` for stride 8."""
    return f"p{stride.bit_length() - 1}"


def neck_taps(width: int, strides: Sequence[int]) -> list[Tap]:
    """The neck's taps."""
    return [Tap(name=name_of(s), channels=width, stride=(s, s), module="neck", stage="neck") for s in strides]


class ToyDense(Detector):
    """One anchor per cell, two towers of two blocks, with or without a distribution over distances; can be
    continued.
    """

    family = "torchvision"

    def __init__(self, spec: DetectorSpec, width: int = 8, strides: Sequence[int] = STRIDES, bins: int = BINS) -> None:
        super().__init__()
        self.spec, self.bins = spec, bins
        k = len(spec.categories)
        self.neck = Neck(width, strides)
        self.towers = nn.ModuleDict(
            {part: nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2)) for part in ("class", "box")}
        )
        self.scores = nn.Conv2d(width, k, 1)
        self.sides = nn.Conv2d(width, 4 * max(bins, 1), 1)
        nn.init.constant_(self.scores.bias, -2.0)
        towers = [
            Tap(name=f"{name_of(s)}.{part}", channels=width, stride=(s, s), module="towers", stage="head")
            for s in strides
            for part in ("class", "box")
        ]
        self.taps = (*neck_taps(width, strides), *towers)

    def head(self, neck: dict[str, Tensor]) -> DetectorOutputs:
        """Everything from neck maps."""
        features, logits, raw, boxes, levels = dict(neck), [], [], [], []
        start = 0
        for stride in self.neck.strides:
            name, x = name_of(stride), neck[name_of(stride)]
            for part in ("class", "box"):
                features[f"{name}.{part}"] = self.towers[part][0](x)
            logits.append(self.forward_from(f"{name}.class", features[f"{name}.class"]))
            sides = self.forward_from(f"{name}.box", features[f"{name}.box"])
            raw.append(sides)
            boxes.append(self.decode(sides, stride, tuple(x.shape[2:])) if self.bins else sides)
            levels.append(Level(name, stride, tuple(x.shape[2:]), start, start + logits[-1].shape[2]))
            start = levels[-1].stop
        distribution = torch.cat(raw, 1) if self.bins else None
        return DetectorOutputs(
            logits=torch.cat(logits, 2),
            features=features,
            boxes=torch.cat(boxes, 1),
            distribution=distribution,
            levels=tuple(levels),
        )

    def forward_from(self, tap: str, feature: Tensor) -> Tensor:
        """From a tower's tap."""
        name, _, part = tap.partition(".")
        x = F.silu(self.towers[part][1](F.silu(feature)))
        if part == "class":
            return self.scores(x).flatten(2)
        sides = self.sides(x).flatten(2).transpose(1, 2)
        if self.bins:
            return sides.reshape(len(x), -1, 4, self.bins)
        return self.decode(sides, 2 ** int(name[1:]), tuple(x.shape[2:]))

    def decode(self, sides: Tensor, stride: int, shape: tuple[int, ...]) -> Tensor:
        """Boxes from distances (softplus) or from their distributions (expectation), in strides."""
        rows, columns = torch.meshgrid(*(torch.arange(n, device=sides.device) + 0.5 for n in shape), indexing="ij")
        centres = torch.stack((columns, rows), 2).reshape(1, -1, 2)
        if sides.ndim == 4:
            distance = (sides.softmax(3) * torch.arange(self.bins, device=sides.device)).sum(3)
        else:
            distance = F.softplus(sides)
        return torch.cat((centres - distance[..., :2], centres + distance[..., 2:]), 2) * stride

    def assign(
        self, outputs: DetectorOutputs, boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> tuple[DetectionTarget, Tensor]:
        """Anchors in the middle half of a box are its own, others inside it are left out; the boxes per anchor."""
        labels, wanted = [], []
        for image, kind in zip(boxes, classes, strict=True):
            centres = torch.cat([self._centres(level) for level in outputs.levels])
            label = torch.full((len(centres),), -1)
            place = torch.zeros(len(centres), 4)
            for box, cls in zip(image, kind, strict=True):
                for shrink, value in ((0.0, -2), (0.25, int(cls))):
                    margin = (box[2:] - box[:2]) * shrink
                    inside = ((centres > box[:2] + margin) & (centres < box[2:] - margin)).all(1)
                    label[inside], place[inside] = value, box
            labels.append(label)
            wanted.append(place)
        return DetectionTarget(torch.stack(labels)[:, None], boxes=tuple(boxes), classes=tuple(classes)), torch.stack(
            wanted
        )

    def _centres(self, level: Level) -> Tensor:
        rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in level.shape), indexing="ij")
        return torch.stack((columns, rows), 2).reshape(-1, 2) * level.stride

    def _losses(
        self, outputs: DetectorOutputs, boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], DetectionTarget]:
        target, wanted = self.assign(outputs, boxes, classes)
        labels = target.labels[:, 0]
        truth = F.one_hot(labels.clamp(min=0), outputs.logits.shape[1]).transpose(1, 2) * (labels >= 0)[:, None]
        score = (
            F.binary_cross_entropy_with_logits(outputs.logits.float(), truth.float(), reduction="none")
            * (labels != -2)[:, None]
        )
        number = (labels >= 0).sum().clamp(min=1)
        error = (outputs.boxes.float() - wanted).abs().mean(2) * (labels >= 0)
        return {"class": score.sum() / number, "box": error.sum() / number / 8}, target

    def losses(
        self, images: Tensor, boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], DetectorOutputs, DetectionTarget]:
        """As promised."""
        outputs = self.head(self.neck(images))
        terms, target = self._losses(outputs, boxes, classes)
        return terms, outputs, target

    def observe(self, images: Tensor, student: DetectorOutputs) -> DetectorOutputs:
        """As promised."""
        return self.head(self.neck(images))

    def losses_from_neck(
        self, images: Tensor, neck: dict[str, Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """As promised."""
        return self._losses(self.head({**self.neck(images), **neck}), boxes, classes)[0]


class ToyTwoStage(Detector):
    """Scores fixed proposals and the true boxes by the mean of the map under them."""

    family = "torchvision"
    two_stage = True

    def __init__(self, spec: DetectorSpec, width: int = 8) -> None:
        super().__init__()
        self.spec = spec
        self.neck = Neck(width, (4, 8, 16))
        self.classify = nn.Linear(width, len(spec.categories) + 1)
        self.regress = nn.Linear(width, 4 * (len(spec.categories) + 1))
        self.taps = tuple(neck_taps(width, (4, 8, 16)))

    def score(self, neck: dict[str, Tensor], proposals: Sequence[Tensor]) -> DetectorOutputs:
        """Logits of proposals."""
        from torchvision.ops import roi_align

        pooled = roi_align(neck["p2"].float(), list(proposals), 3, 0.25, 2).mean((2, 3))
        deltas = self.regress(pooled)
        return DetectorOutputs(
            logits=self.classify(F.silu(pooled)),
            features=dict(neck),
            deltas=deltas.view(len(deltas), -1, 4),
            proposals=tuple(p.detach() for p in proposals),
        )

    def losses(
        self, images: Tensor, boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], DetectorOutputs, DetectionTarget]:
        """As promised."""
        return self._losses(self.neck(images), boxes, classes)

    def _losses(
        self, neck: dict[str, Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], DetectorOutputs, DetectionTarget]:
        fixed = torch.tensor([[4.0, 4, 20, 20], [30, 30, 60, 60]])
        proposals = [torch.cat((b.view(-1, 4), fixed)) for b in boxes]
        outputs = self.score(neck, proposals)
        labels = torch.cat([torch.cat((c + 1, torch.zeros(2, dtype=torch.long))) for c in classes])
        terms = {"class": F.cross_entropy(outputs.logits.float(), labels)}
        return terms, outputs, DetectionTarget(labels[:, None], boxes=tuple(boxes), classes=tuple(classes))

    def observe(self, images: Tensor, student: DetectorOutputs) -> DetectorOutputs:
        """As promised."""
        return self.score(self.neck(images), student.proposals)

    def losses_from_neck(
        self, images: Tensor, neck: dict[str, Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """As promised."""
        return self._losses({**self.neck(images), **neck}, boxes, classes)[0]


def make(kind: str, classes: int = 3, width: int = 8) -> Detector:
    """``dense``, ``dense4`` (also stride 4), ``plain`` (no distribution) or ``two-stage``."""
    spec = DetectorSpec(kind, tuple(f"c{i}" for i in range(classes)), SIZE)
    if kind == "two-stage":
        return ToyTwoStage(spec, width)
    return ToyDense(spec, width, (4, *STRIDES) if kind == "dense4" else STRIDES, 0 if kind == "plain" else BINS)


def batch(classes: int = 3, objects: Sequence[int] = (2, 1), size: int = SIZE) -> Batch:
    """Images with bright squares, brighter for a higher class; so many objects per image."""
    images, boxes, kinds = torch.rand(len(objects), 3, size, size) * 0.2, [], []
    for index, number in enumerate(objects):
        corner = torch.randint(0, size - 26, (number, 2))
        side = torch.randint(14, 26, (number, 1))
        boxes.append(torch.cat((corner, corner + side), 1).float().view(-1, 4))
        kinds.append(torch.randint(0, classes, (number,)))
        for box, kind in zip(boxes[-1].long().tolist(), kinds[-1].tolist(), strict=True):
            images[index, :, box[1] : box[3], box[0] : box[2]] += 0.4 + 0.2 * kind / classes
    return images, boxes, kinds


@cache
def trained(kind: str, classes: int = 3, width: int = 12) -> Detector:
    """A teacher after some training steps; the same object each time, so do not train it further."""
    torch.manual_seed(1)
    net = make(kind, classes, width)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(40):
        terms, _, _ = net.losses(*batch(classes))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    net.zero_grad(set_to_none=True)
    return net.eval().requires_grad_(False)


def context(student: Detector, teacher: Detector) -> Context:
    """The context of a pair."""
    dense, k = not student.two_stage, len(student.spec.categories)
    return Context(
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        num_outputs=k if dense else k + 1,
        regions=dense,
        spacing=(1.0, 1.0),
        patch_size=(SIZE, SIZE),
        task="detection",
    )


def build(name: str, student: Detector, teacher: Detector, **settings: object) -> Method:
    """A method for a pair of detectors."""
    return build_method(
        name, context(student, teacher), {f"{name}.{k}": v for k, v in settings.items()}, DETECTION_METHODS
    )


def step(method: Method, student: Detector, teacher: Detector | None, data: Batch) -> dict[str, Tensor]:
    """One training step's terms, after the first stage where there is one."""
    distiller = DetectorDistiller(teacher, method)
    if distiller.needs_preparation:
        distiller.prepare([data, data])
    _, outputs, target = student.losses(*data)
    return distiller.terms(data[0], outputs, target)


def twin(teacher: Detector) -> Detector:
    """A student that equals the teacher."""
    return copy.deepcopy(teacher).requires_grad_(True)


def changed(target: DetectionTarget, **fields: object) -> DetectionTarget:
    """Another target."""
    return replace(target, **fields)  # type: ignore[arg-type]
