"""The head of dense detectors: two towers, shared by all levels, and what is predicted at their ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.detection.tv.backbones import CHANNELS, GROUPS

BLOCKS = 4
_PRIOR = 0.01  # probability of an object that training starts from


class Tower(nn.Module):
    """Four blocks of convolution and group normalisation, each followed by a ReLU that overwrites nothing.

    Group normalisation does not depend on the batch, which is one or two images for large radiographs.

    Args:
        hold: the output of this block (1 to 3), before its activation, is given out.
        norm: whether there is a normalisation.
        bias: whether convolutions have a bias.
    """

    def __init__(self, hold: int, norm: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.hold = hold
        blocks = []
        for _ in range(BLOCKS):
            layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=bias)
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            blocks.append(nn.Sequential(layer, nn.GroupNorm(GROUPS, CHANNELS)) if norm else nn.Sequential(layer))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The held map and the tower's output, both ``(B, 256, rows, columns)``."""
        for block in self.blocks[: self.hold - 1]:
            x = F.relu(block(x))
        held = self.blocks[self.hold - 1](x)
        return held, self.finish(held)

    def finish(self, held: Tensor) -> Tensor:
        """The tower's output from a held map on."""
        x = F.relu(held)
        for block in self.blocks[self.hold :]:
            x = F.relu(block(x))
        return x


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """What a dense head predicts.

    Attributes:
        classes: ``K``.
        per_cell: anchors per cell.
        hold: see :class:`Tower`.
        bins: per side of a box; 0 for one number per side.
        centerness: whether there is a centre-ness.
        scaled: whether each level has a trained factor for the box values, since its boxes differ in size.
        norm: whether towers are normalised.
        bias: whether their convolutions have a bias.
        centre_of_class: centre-ness is read from the class tower.
    """

    classes: int
    per_cell: int
    hold: int
    bins: int = 0
    centerness: bool = False
    scaled: bool = False
    norm: bool = True
    bias: bool = False
    centre_of_class: bool = False


@dataclass(frozen=True)
class LevelPrediction:
    """What the head says on one level; ``a`` anchors, row by row.

    Attributes:
        held: ``class`` and ``box`` → held map of the tower, ``(B, 256, rows, columns)``.
        logits: ``(B, K, a)``.
        box: raw box values ``(B, a, 4)`` or ``(B, a, 4, bins)``.
        centerness: logits ``(B, a)``, or None.
    """

    held: dict[str, Tensor]
    logits: Tensor
    box: Tensor
    centerness: Tensor | None


class DenseHead(nn.Module):
    """Class tower and box tower, followed by one convolution each; centre-ness is read from one of them.

    Args:
        shape: what is predicted.
        levels: names of the levels.
    """

    def __init__(self, shape: HeadShape, levels: Sequence[str]) -> None:
        super().__init__()
        self.shape = shape
        self.class_tower = Tower(shape.hold, shape.norm, shape.bias)
        self.box_tower = Tower(shape.hold, shape.norm, shape.bias)
        self.to_class = _predictor(shape.per_cell * shape.classes, -math.log((1 - _PRIOR) / _PRIOR))
        self.to_box = _predictor(shape.per_cell * 4 * max(shape.bins, 1), 0.0)
        self.to_centerness = _predictor(shape.per_cell, 0.0) if shape.centerness else None
        self.scales = nn.ModuleDict({name: _Scale() for name in levels}) if shape.scaled else None

    def forward(self, level: str, feature: Tensor) -> LevelPrediction:
        """All predictions on one level from its neck map ``(B, 256, rows, columns)``."""
        held_class, end_class = self.class_tower(feature)
        held_box, end_box = self.box_tower(feature)
        end_centre = end_class if self.shape.centre_of_class else end_box
        centre = None if self.to_centerness is None else _flatten(self.to_centerness(end_centre), 1).squeeze(-1)
        return LevelPrediction(
            {"class": held_class, "box": held_box}, self._logits(end_class), self._box(level, end_box), centre
        )

    def logits_from(self, held: Tensor) -> Tensor:
        """Class logits ``(B, K, a)`` from the class tower's held map on."""
        return self._logits(self.class_tower.finish(held))

    def box_from(self, level: str, held: Tensor) -> Tensor:
        """Raw box values from the box tower's held map on."""
        return self._box(level, self.box_tower.finish(held))

    def _logits(self, x: Tensor) -> Tensor:
        return _flatten(self.to_class(x), self.shape.classes).transpose(1, 2)

    def _box(self, level: str, x: Tensor) -> Tensor:
        raw = self.to_box(x).float()
        raw = raw if self.scales is None else self.scales[level](raw)
        flat = _flatten(raw, 4 * max(self.shape.bins, 1))
        return flat.unflatten(-1, (4, self.shape.bins)) if self.shape.bins else flat


class _Scale(nn.Module):
    """A trained factor, 1 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _predictor(channels: int, bias: float) -> nn.Conv2d:
    layer = nn.Conv2d(CHANNELS, channels, 3, padding=1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]  # the layer has one
    return layer


def _flatten(x: Tensor, values: int) -> Tensor:
    """``(B, anchors per cell · values, rows, columns)`` → float ``(B, rows · columns · anchors per cell, values)``."""
    return x.float().unflatten(1, (-1, values)).permute(0, 3, 4, 1, 2).flatten(1, 3)
