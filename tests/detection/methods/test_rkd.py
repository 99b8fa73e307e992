"""Relational distillation among boxes and images, against loops over pairs and triples."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor

from medkd.core.features import Outputs, Tap
from medkd.detection.base import DetectionTarget
from medkd.detection.methods import DETECTION_METHODS
from medkd.detection.methods.rkd import DetectorRKD, box_embeddings, even_selection
from medkd.distillation import Context, Method, build_method


def method(strides: tuple[int, ...] = (8,), **settings: object) -> Method:
    """Between necks of these strides."""
    taps = tuple(Tap(name=f"p{s}", channels=3, stride=(s, s), module="neck", stage="neck") for s in strides)
    about = Context(
        student_taps=taps,
        teacher_taps=taps,
        num_outputs=3,
        regions=True,
        spacing=(1.0, 1.0),
        patch_size=(32, 32),
        task="detection",
    )
    return build_method("rkd", about, {f"rkd.{k}": v for k, v in settings.items()}, DETECTION_METHODS)


def huber(a: float, b: float) -> float:
    d = abs(a - b)
    return d * d / 2 if d < 1 else d - 0.5


def distances(rows: list[list[float]]) -> list[float]:
    every = [sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))) for a in rows for b in rows]
    mean = sum(every) / (len(rows) * (len(rows) - 1))
    return [d / mean for d in every]


def cosines(rows: list[list[float]]) -> list[float]:
    found = []
    for j in rows:
        for i in rows:
            for k in rows:
                a, b = ([x - y for x, y in zip(p, j, strict=True)] for p in (i, k))
                long = [sqrt(sum(x * x for x in v)) for v in (a, b)]
                found.append(
                    sum(x * y for x, y in zip(a, b, strict=True)) / (long[0] * long[1]) if min(long) > 0 else 0.0
                )
    return found


def slow(s: Tensor, t: Tensor) -> tuple[float, float]:
    """Distance term and angle term of one set of embeddings."""
    pairs = [(distances(s.tolist()), distances(t.tolist())), (cosines(s.tolist()), cosines(t.tolist()))]
    first, second = (sum(map(huber, a, b)) / len(a) for a, b in pairs)
    return first, second


def target(*boxes: Tensor) -> DetectionTarget:
    return DetectionTarget(torch.zeros(1), boxes=boxes, classes=tuple(torch.zeros(len(b)) for b in boxes))


def whole_cells(features: Tensor, image: int, rows: slice, columns: slice) -> Tensor:
    """What a box over whole cells should give for a map that is constant inside of it."""
    return features[image, :, rows, columns].mean((1, 2))


@pytest.mark.parametrize(("variant", "weights"), [("default", (1.0, 2.0)), ("paper", (25.0, 50.0))])
def test_equals_loops_over_boxes_and_images(variant: str, weights: tuple[float, float]) -> None:
    boxes = (torch.tensor([[0.0, 0, 16, 16], [8, 8, 32, 24]]), torch.zeros(0, 4), torch.tensor([[3.0, 5, 20, 30]]))
    maps = [torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)]
    terms = method(variant=variant)(*(Outputs(logits=torch.zeros(1), features={"p8": m}) for m in maps), target(*boxes))
    of_boxes = slow(*(box_embeddings(m, even_selection(boxes, 64), 8) for m in maps))
    of_images = slow(*(m.mean((2, 3)) for m in maps))
    for place, name in enumerate(("rkd_distance", "rkd_angle")):
        assert float(terms[name]) == pytest.approx(weights[place] * (of_boxes[place] + of_images[place]) / 2, rel=1e-3)


def test_a_boxs_embedding_is_the_mean_of_the_map_under_it() -> None:
    features = torch.zeros(2, 3, 8, 8)
    features[1, :, 2:6, 1:5] = torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1)
    inside = torch.tensor([[1.0, 12, 20, 32, 40]])  # image 1, well inside of the patch
    found = box_embeddings(features, inside, 8)
    assert torch.allclose(found[0], torch.tensor([1.0, -2.0, 3.0]), atol=1e-5)
    elsewhere = box_embeddings(features, torch.tensor([[0.0, 12, 20, 32, 40]]), 8)
    assert not elsewhere.any() and torch.equal(
        whole_cells(features, 1, slice(2, 6), slice(1, 5)), torch.tensor([1.0, -2.0, 3.0])
    )


@pytest.mark.parametrize("number", [0, 1, 2])
def test_too_few_boxes_and_images_give_zero_with_a_gradient(number: int) -> None:
    features = torch.randn(1, 3, 4, 4, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 16, 16], [8, 8, 32, 24]])[:number]
    terms = method()(
        Outputs(logits=torch.zeros(1), features={"p8": features}),
        Outputs(logits=torch.zeros(1), features={"p8": torch.randn(1, 3, 4, 4)}),
        target(boxes),
    )
    assert terms["rkd_angle"] == 0 and torch.stack(list(terms.values())).sum().requires_grad
    torch.stack(list(terms.values())).sum().backward()
    assert features.grad is not None and torch.isfinite(features.grad).all()


def test_an_even_selection_of_many_boxes() -> None:
    boxes = [torch.arange(40.0).view(10, 4), torch.zeros(0, 4), torch.ones(20, 4)]
    chosen = even_selection(boxes, 6)
    assert chosen.shape == (6, 5) and chosen[0].tolist()[0] == 0 and chosen[-1].tolist()[0] == 2
    assert 1 <= int((chosen[:, 0] == 0).sum()) <= 3
    assert even_selection(boxes, 64)[:, 0].tolist() == [0.0] * 10 + [2.0] * 20 and even_selection((), 5).shape == (0, 5)


def test_levels_of_middle_strides_are_taken_where_there_are_any() -> None:
    for strides, taken in (((4, 8, 16, 32, 64), [8, 16, 32]), ((4, 64), [4, 64])):
        found = method(strides)
        assert isinstance(found, DetectorRKD) and [s.stride[0] for s, _ in found.pairs] == taken
    named = method((4, 8), taps="p4:p4")
    assert isinstance(named, DetectorRKD) and [s.name for s, _ in named.pairs] == ["p4"]
