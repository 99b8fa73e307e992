"""RepPoints against slow loops over the paper's definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.errors import MethodError, RunError
from medkd.detection.base import DETECTORS, DetectorSpec, Level
from medkd.detection.layers import chart_pair
from medkd.detection.methods import DETECTION_METHODS
from medkd.detection.tv.assign import match_found, match_nearest
from medkd.detection.tv.backbones import load_backbone_weights
from medkd.detection.tv.points import PointsHead
from medkd.distillation import build_method
from tests.detection.toys import context
from tests.detection.tv.builders import SIZE, batch, make

STRIDES = (8, 16, 32, 64, 128)


def slow_box(points: list[tuple[float, float]], factors: tuple[float, float]) -> list[float]:
    """Mean ± standard deviation · e^λ of each axis, by loops."""
    box = [0.0] * 4
    for axis in (0, 1):
        values = [point[axis] for point in points]
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        box[axis], box[axis + 2] = mean - spread * math.exp(factors[axis]), mean + spread * math.exp(factors[axis])
    return box


def test_points_become_boxes_by_their_moments_or_by_the_smallest_box() -> None:
    points = torch.randn(2, 5, 9, 2, generator=torch.Generator().manual_seed(0))
    head = PointsHead(3, "moment")
    assert head.factors is not None
    head.factors.data = torch.tensor([0.3, -0.2])
    found, smallest = head.boxes(points), PointsHead(3, "minmax").boxes(points)
    for image in range(2):
        for cell in range(5):
            listed = [(float(x), float(y)) for x, y in points[image, cell]]
            expected = slow_box(listed, (0.3, -0.2))
            assert found[image, cell].tolist() == pytest.approx(expected, abs=1e-5)
            across, down = ([point[axis] for point in listed] for axis in (0, 1))
            assert smallest[image, cell].tolist() == pytest.approx([min(across), min(down), max(across), max(down)])
    found.sum().backward()
    assert head.factors.grad is not None and bool(head.factors.grad.isfinite().all())


def test_a_convolution_reads_where_the_points_lie() -> None:
    """All points of every cell two rows below and one column right of it: a 1 × 1 convolution of the moved map."""
    head = PointsHead(3, "moment").eval()
    torch.nn.init.normal_(head.to_class.weight)
    last = head.to_first[2]
    torch.nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([2.0, 1.0] * 9)  # y, x
    feature = torch.randn(1, 256, 7, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = head(feature)
        tower = head.class_tower(feature)
        moved = torch.zeros_like(tower)
        moved[:, :, :-2, :-1] = tower[:, :, 2:, 1:]
        middle = head.class_conv.weight.sum((2, 3), keepdim=True)
        expected = head.to_class(F.relu(F.conv2d(moved, middle)))
    assert torch.equal(found.first, torch.tensor([1.0, 2.0]).expand(1, 42, 9, 2))  # x, y
    inside = found.logits.view(1, 3, 7, 6)[..., :5, :5], expected[..., :5, :5]
    assert torch.allclose(*inside, atol=1e-4)


def grid() -> tuple[Tensor, tuple[Level, ...]]:
    """The cells of a 128 × 128 input as boxes of no size."""
    cells, levels, start = [], [], 0
    for place, stride in enumerate(STRIDES):
        side = max(128 // stride, 1)
        for row in range(side):
            for column in range(side):
                cells.append([column * stride, row * stride] * 2)
        levels.append(Level(f"p{place + 3}", stride, (side, side), start, len(cells)))
        start = len(cells)
    return torch.tensor(cells, dtype=torch.float32), tuple(levels)


def slow_nearest(cells: Tensor, levels: tuple[Level, ...], boxes: Tensor) -> list[int]:
    found, distance = [-1] * len(cells), [math.inf] * len(cells)
    for place, (left, top, right, bottom) in enumerate(boxes.tolist()):
        width, height = right - left, bottom - top
        exponent = int((math.log2(width / 4) + math.log2(height / 4)) / 2)
        level = levels[min(max(exponent, 3), 7) - 3]
        best, where = math.inf, -1
        for cell in range(level.start, level.stop):
            x, y = cells[cell, :2].tolist()
            away = math.hypot((x - (left + right) / 2) / width, (y - (top + bottom) / 2) / height)
            if away < best:
                best, where = away, cell
        if best < distance[where]:
            found[where], distance[where] = place, best
    return found


@pytest.mark.parametrize("seed", range(8))
def test_first_points_learn_from_the_nearest_cell_of_the_boxs_level(seed: int) -> None:
    cells, levels = grid()
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(7, 2, generator=random) * 90
    boxes = torch.cat((corner, corner + 3 + torch.rand(7, 2, generator=random) * (128 if seed % 2 else 30)), 1)
    boxes[1] = boxes[0] + 0.5  # two objects for one cell
    assert match_nearest(cells, levels, boxes).tolist() == slow_nearest(cells, levels, boxes)


def slow_overlap(a: list[float], b: list[float]) -> float:
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(across, 0.0) * max(down, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("seed", range(8))
def test_found_boxes_are_matched_by_overlap_and_every_box_that_is_met_has_its_best(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(40, 2, generator=random) * 60
    found = torch.cat((corner, corner + 4 + torch.rand(40, 2, generator=random) * 30), 1)
    boxes = torch.cat((found[:3] + 4 * torch.rand(3, 4, generator=random), torch.tensor([[200.0, 200, 210, 210]])))
    expected = []
    table = [[slow_overlap(one, box) for box in boxes.tolist()] for one in found.tolist()]
    best = [max(row[place] for row in table) for place in range(4)]
    for row in table:
        top = max(row)
        place = row.index(top) if top >= 0.5 else (-1 if top < 0.4 else -2)
        for candidate in range(4):
            if best[candidate] > 0 and row[candidate] == best[candidate]:
                place = candidate
        expected.append(place)
    matched = match_found(found, (), boxes).tolist()
    assert matched == expected and 3 not in matched  # nothing meets the last one


def test_the_terms_are_the_papers_sums() -> None:
    detector = make("reppoints_r18").train()
    images, boxes, classes = batch()
    terms, outputs, target = detector.losses(images, boxes, classes)
    assert outputs.boxes is not None and outputs.first_boxes is not None
    assert (terms.keys(), outputs.first_boxes.shape) == ({"class", "first_box", "box"}, outputs.boxes.shape)
    strides = [level.stride for level in outputs.levels for _ in range(level.stop - level.start)]
    anchors = detector.grid.anchors(outputs.levels, images.device)  # type: ignore[union-attr,operator]
    cells = ((anchors[:, :2] + anchors[:, 2:]) / 2).repeat(1, 2)
    focal, sums, counts = 0.0, [0.0, 0.0], [0, 0]
    for image in range(2):
        own = boxes[image]
        first = slow_nearest(cells, outputs.levels, own)
        found = match_found(outputs.first_boxes[image].detach(), (), own).tolist() if len(own) else [-1] * len(cells)
        assert target.labels[image, 0].tolist() == [
            int(classes[image][place]) if place >= 0 else place for place in found
        ]
        for kind, (matched, predicted) in enumerate(((first, outputs.first_boxes), (found, outputs.boxes))):
            counts[kind] += max(sum(place >= 0 for place in matched), 1)
            for cell, place in enumerate(matched):
                if place >= 0:
                    away = (predicted[image, cell] - own[place]).abs() / (4 * strides[cell])
                    for value in away.tolist():
                        sums[kind] += value * value / 2 / 0.11 if value < 0.11 else value - 0.11 / 2
        for cell, place in enumerate(found):
            for kind in range(2 if place != -2 else 0):
                p = 1 / (1 + math.exp(-float(outputs.logits[image, kind, cell].detach())))
                hit = place >= 0 and int(classes[image][place]) == kind
                focal -= 0.25 * (1 - p) ** 2 * math.log(p) if hit else 0.75 * p**2 * math.log(1 - p)
    assert float(terms["first_box"].detach()) == pytest.approx(0.5 * sums[0] / counts[0], rel=1e-4)
    assert float(terms["box"].detach()) == pytest.approx(sums[1] / counts[1], rel=1e-4)
    assert float(terms["class"].detach()) == pytest.approx(focal / counts[1], rel=1e-3)


def test_later_terms_reach_the_first_points_by_a_tenth() -> None:
    """The head's gradient with respect to the first points' last bias, through the places of the taps alone."""
    head = PointsHead(2, "minmax")
    feature = torch.randn(1, 256, 6, 6, generator=torch.Generator().manual_seed(2))
    bias = head.to_first[2].bias
    head(feature).logits.sum().backward()
    tenth = bias.grad.clone()
    bias.grad = None
    of_class, of_box = head.class_tower(feature), head.box_tower(feature)
    whole = head.to_class(F.relu(head.class_conv(of_class, head.to_first(of_box) - head.taps)))
    whole.sum().backward()
    assert torch.allclose(10 * tenth, bias.grad, rtol=1e-4, atol=1e-7)


def counted(body: int, widths: tuple[int, int, int], classes: int) -> int:
    """Parameters by the layers that the paper and its configuration name."""
    norm, square = 2 * 256, 256 * 256 * 9
    neck = sum(256 * width + norm for width in widths) + 3 * (square + norm)
    neck += (256 * widths[-1] * 9 + norm) + (square + norm)  # p6 of the backbone's last map, p7 of p6
    towers = 2 * 3 * (square + norm)
    first = (square + 256) + (256 * 18 + 18)
    later = 2 * square + (256 * classes + classes) + (256 * 18 + 18)
    return body + neck + towers + first + later + 2  # two factors of the moments


@pytest.mark.parametrize(("name", "expected"), [("reppoints_r18", 20_290_486), ("reppoints_r50", 36_849_078)])
def test_numbers_of_parameters(name: str, expected: int) -> None:
    detector = DETECTORS[name].build(DetectorSpec(name, tuple(f"c{i}" for i in range(80)), SIZE))
    body = sum(p.numel() for p in detector.pyramid.bottom.parameters())  # type: ignore[union-attr]
    widths = (128, 256, 512) if name.endswith("r18") else (512, 1024, 2048)
    assert sum(p.numel() for p in detector.parameters()) == expected == counted(body, widths, 80)


def test_a_deformable_resnext_starts_as_the_plain_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    name = "reppoints_x101_32x4d_dcn"
    detector = DETECTORS[name].build(DetectorSpec(name, ("a",), SIZE)).eval()
    plain = DETECTORS["reppoints_x101_32x4d"].build(DetectorSpec("reppoints_x101_32x4d", ("a",), SIZE)).eval()
    torch.save(plain.pyramid.bottom.body.state_dict(), tmp_path / "x101.pth")  # type: ignore[union-attr]
    load_backbone_weights(detector, tmp_path / "x101.pth")
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours, theirs = (d.pyramid.bottom(images) for d in (detector, plain))  # type: ignore[union-attr,operator]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_what_it_cannot_do_is_one_sentence() -> None:
    detector = make("reppoints_r18")
    assert {tap.stage for tap in detector.taps} == {"neck"}
    with pytest.raises(RunError, match="has no tap"):
        detector.forward_from("p3.class", torch.zeros(1, 256, 8, 8))
    with pytest.raises(MethodError, match="towers"):
        build_method("crosskd", context(detector, detector), None, DETECTION_METHODS)
    with pytest.raises(RunError, match="--init random"):
        chart_pair(detector, detector)
