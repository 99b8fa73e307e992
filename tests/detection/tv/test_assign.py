from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from medkd.detection.base import Level
from medkd.detection.tv.assign import assign, match_adaptively, match_overlap, match_points
from medkd.detection.tv.grid import AnchorGrid

NAMES, STRIDES = ("p3", "p4", "p5", "p6", "p7"), (8, 16, 32, 64, 128)


def _grid(size: int = 128, scale: float = 4.0) -> tuple[Tensor, tuple[Level, ...]]:
    grid = AnchorGrid(NAMES, STRIDES, [[scale * s] for s in STRIDES], [1.0])
    levels = grid.levels({n: torch.zeros(1, 1, size // s, size // s) for n, s in zip(NAMES, STRIDES, strict=True)})
    return grid.anchors(levels, torch.device("cpu")), levels


def _boxes(seed: int, number: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, generator=generator) * 80
    return torch.cat((corners, corners + 8 + torch.rand(number, 2, generator=generator) * 60), 1)


def _slow_atss(anchors: Tensor, levels: tuple[Level, ...], boxes: Tensor) -> list[int]:
    owner, best = [-1] * len(anchors), [-1.0] * len(anchors)
    for g, box in enumerate(boxes):
        middle = (box[:2] + box[2:]) / 2
        candidates: list[int] = []
        for level in levels:
            own = range(level.start, level.stop)
            far = {i: float(((anchors[i, :2] + anchors[i, 2:]) / 2 - middle).norm()) for i in own}
            candidates += sorted(own, key=lambda i, far=far: far[i])[:9]
        overlap = {i: float(box_iou(anchors[i : i + 1], box[None])) for i in candidates}
        values = torch.tensor(list(overlap.values()))
        threshold = float(values.mean() + values.std())
        for i in candidates:
            x, y = ((anchors[i, :2] + anchors[i, 2:]) / 2).tolist()
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap[i] >= threshold and inside and overlap[i] > best[i]:
                owner[i], best[i] = g, overlap[i]
    return owner


@pytest.mark.parametrize("seed", range(4))
def test_atss_equals_a_slow_loop(seed: int) -> None:
    anchors, levels = _grid()
    boxes = _boxes(seed)
    found = match_adaptively(anchors, levels, boxes).tolist()
    assert found == _slow_atss(anchors, levels, boxes)
    assert len(set(found)) > 3


def _slow_fcos(anchors: Tensor, levels: tuple[Level, ...], boxes: Tensor) -> list[int]:
    owner = []
    for i, anchor in enumerate(anchors):
        level = next(lv for lv in levels if lv.start <= i < lv.stop)
        x, y = ((anchor[:2] + anchor[2:]) / 2).tolist()
        low, high = (
            (0 if level.stride == 8 else 4 * level.stride),
            (float("inf") if level.stride == 128 else 8 * level.stride),
        )
        fitting = []
        for g, (a, b, c, d) in enumerate(boxes.tolist()):
            sides = (x - a, y - b, c - x, d - y)
            near = max(abs(x - (a + c) / 2), abs(y - (b + d) / 2)) < 1.5 * level.stride
            if near and min(sides) > 0 and low < max(sides) < high:
                fitting.append(((c - a) * (d - b), g))
        owner.append(min(fitting)[1] if fitting else -1)
    return owner


@pytest.mark.parametrize("seed", range(3))
def test_fcos_equals_a_slow_loop(seed: int) -> None:
    anchors, levels = _grid(scale=1.0)
    boxes = _boxes(seed)
    found = match_points(anchors, levels, boxes).tolist()
    assert found == _slow_fcos(anchors, levels, boxes)
    assert len(set(found)) > 2


def test_retinanet_leaves_out_what_lies_between_its_thresholds_and_gives_every_box_an_anchor() -> None:
    anchors, levels = _grid()
    boxes = _boxes(1)
    found = match_overlap(anchors, levels, boxes)
    overlap, place = box_iou(anchors, boxes).max(1)
    forced = {
        int(i)
        for g in range(len(boxes))
        for i in torch.nonzero(box_iou(anchors, boxes)[:, g] == box_iou(anchors, boxes)[:, g].max())
    }
    for i in range(len(anchors)):
        if overlap[i] >= 0.5 or i in forced:
            assert found[i] == place[i]
        else:
            assert found[i] == (-1 if overlap[i] < 0.4 else -2)
    assert (found == -2).any()


@pytest.mark.parametrize("matching", [match_overlap, match_points, match_adaptively])
def test_a_batch_keeps_classes_boxes_and_images_apart(matching: object) -> None:
    anchors, levels = _grid(scale=1.0 if matching is match_points else 4.0)
    boxes, classes = (
        [_boxes(0), torch.zeros(0, 4), _boxes(2, 1)],
        [torch.arange(6), torch.zeros(0, dtype=torch.long), torch.tensor([4])],
    )
    result = assign(matching, anchors, levels, boxes, classes)  # type: ignore[arg-type]
    assert result.labels.shape == (3, len(anchors)) and result.boxes.shape == (3, len(anchors), 4)
    assert (result.labels[1] == -1).all() and set(result.labels[2].unique().tolist()) <= {-2, -1, 4}
    for image in (0, 2):
        for i in torch.nonzero(result.positive[image]).flatten().tolist():
            own = boxes[image][classes[image] == result.labels[image, i]]
            assert torch.equal(result.boxes[image, i], own[0])
    assert (result.boxes[~result.positive] == 0).all()
