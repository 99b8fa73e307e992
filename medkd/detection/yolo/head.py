"""The head of ultralytics' detectors, run step by step, so that the towers can be read and continued inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.detection.base import Level


def hold(branch: nn.Module, feature: Tensor) -> Tensor:
    """The output of a branch's first block before its activation: ``norm(conv(x))``.

    A block is one convolution, or (YOLO11's classes) a depthwise and a pointwise one. Hooks would not do: ultralytics'
    activations may work in place and so overwrite what a hook has kept.
    """
    block = branch[0]  # type: ignore[index]  # a Sequential
    if isinstance(block, nn.Sequential):
        for part in list(block)[:-1]:
            feature = part(feature)
        block = block[-1]
    return block.bn(block.conv(feature))


def held_module(branch: nn.Module) -> str:
    """Path of the module below the branch whose output :func:`hold` is."""
    block = branch[0]  # type: ignore[index]  # a Sequential
    return f"0.{len(block) - 1}.bn" if isinstance(block, nn.Sequential) else "0.bn"


def finish(branch: nn.Module, held: Tensor) -> Tensor:
    """The rest of a branch: SiLU, the second block, the predictor."""
    feature = F.silu(held)
    for part in list(branch)[1:]:  # type: ignore[call-overload]  # a Sequential
        feature = part(feature)
    return feature


def levels_of(names: Sequence[str], strides: Sequence[int], feats: Sequence[Tensor]) -> tuple[Level, ...]:
    """The levels of maps ``feats``, with the place of their anchors."""
    levels, start = [], 0
    for name, stride, feature in zip(names, strides, feats, strict=True):
        rows, columns = feature.shape[-2:]
        levels.append(Level(name, stride, (rows, columns), start, start + rows * columns))
        start += rows * columns
    return tuple(levels)


def split_sides(boxes: Tensor, bins: int) -> Tensor:
    """Raw box outputs ``(B, 4 · bins, A)`` → ``(B, A, 4, bins)``."""
    batch, _, anchors = boxes.shape
    return boxes.view(batch, 4, bins, anchors).permute(0, 3, 1, 2)


def decode(sides: Tensor, levels: Sequence[Level]) -> Tensor:
    """Boxes ``(B, A, 4)`` in input pixels from ``(B, A, 4, bins)``.

    A side's distance from the cell's centre is, in strides, the mean of the distribution over 0, 1, … bins − 1 (Li et
    al., "Generalized Focal Loss", NeurIPS 2020, arXiv 2006.04388), or the number itself where there is one bin.
    """
    sides = sides.float()
    bins = sides.shape[-1]
    distance = (
        sides.softmax(-1) @ torch.arange(bins, dtype=sides.dtype, device=sides.device) if bins > 1 else sides[..., 0]
    )
    centres, strides = centres_of(levels, sides.device)
    return torch.cat([centres - distance[..., :2], centres + distance[..., 2:]], -1) * strides


def centres_of(levels: Sequence[Level], device: torch.device) -> tuple[Tensor, Tensor]:
    """Centres ``(A, 2)`` of the cells in strides, x first, and strides ``(A, 1)`` in pixels."""
    centres, strides = [], []
    for level in levels:
        rows, columns = (torch.arange(n, device=device, dtype=torch.float32) + 0.5 for n in level.shape)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centres.append(torch.stack([x, y], -1).view(-1, 2))
        strides.append(torch.full((len(centres[-1]), 1), float(level.stride), device=device))
    return torch.cat(centres), torch.cat(strides)


def run_head(
    head: Any, feats: list[Tensor], names: Sequence[str], second: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All of ``Detect`` in its training form, and what the towers held.

    Args:
        head: ``ultralytics.nn.modules.Detect``, not fused.
        feats: its input maps.
        names: their taps.
        second: also run the one-to-one head of an end-to-end detector, cut off from the neck as ultralytics trains it.

    Returns:
        What ``Detect`` returns in training, and ``NAME.class`` / ``NAME.box`` → the first block's output before its
        activation.
    """
    held: dict[str, Tensor] = {}
    boxes, scores = [], []
    for name, feature, box, score in zip(names, feats, head.cv2, head.cv3, strict=True):
        held[f"{name}.class"], held[f"{name}.box"] = hold(score, feature), hold(box, feature)
        scores.append(finish(score, held[f"{name}.class"]).flatten(2))
        boxes.append(finish(box, held[f"{name}.box"]).flatten(2))
    raw: dict[str, Any] = {"boxes": torch.cat(boxes, 2), "scores": torch.cat(scores, 2), "feats": feats}
    if second:
        raw = {"one2many": raw, "one2one": head.forward_head([f.detach() for f in feats], **head.one2one)}
    return raw, held
