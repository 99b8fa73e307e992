"""CrossKD between dense heads, against loops over anchors and sides; where the gradient goes; weights and refusals."""

from __future__ import annotations

from math import log

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.errors import MethodError
from medkd.core.features import Tap
from medkd.detection.base import DetectorOutputs
from medkd.detection.distiller import DetectorDistiller
from medkd.detection.methods import DETECTION_METHODS
from medkd.detection.methods.crosskd import DetectorCrossKD
from medkd.distillation import Context, build_method
from tests.detection.toys import ToyDense, batch, build, make, step, trained


def aligned(s: Tensor, t: Tensor) -> Tensor:
    """The student's map with the teacher's statistics, channel by channel."""
    out = torch.empty_like(t)
    for c in range(t.shape[1]):
        out[:, c] = (s[:, c] - s[:, c].mean()) / (s[:, c].std() + 1e-6) * t[:, c].std() + t[:, c].mean()
    return out


def rest(teacher: ToyDense, part: str, feature: Tensor) -> Tensor:
    """The teacher's tower after the tap, by hand."""
    x = F.silu(teacher.towers[part][1](F.silu(feature)))  # type: ignore[index]
    return teacher.scores(x) if part == "class" else teacher.sides(x)


def giou(a: list[float], b: list[float]) -> float:
    """Generalised intersection over union of two boxes."""
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / union - (hull - union) / hull


def box_distance(
    teacher: ToyDense, raw: Tensor, taught: DetectorOutputs, here: tuple[int, int], stride: int
) -> list[list[float]]:
    """Per image and anchor of a level, how far the cross boxes are from the teacher's."""
    start, stop = here
    flat, found = raw.flatten(2).transpose(1, 2), []
    boxes = None if teacher.bins else teacher.decode(flat, stride, tuple(raw.shape[2:]))
    for image in range(len(raw)):
        row = []
        for anchor in range(stop - start):
            if boxes is not None:
                assert taught.boxes is not None
                row.append(1 - giou(boxes[image, anchor].tolist(), taught.boxes[image, start + anchor].tolist()))
                continue
            assert taught.distribution is not None
            total = 0.0
            for side in range(4):
                p = taught.distribution[image, start + anchor, side].softmax(0).tolist()
                q = flat[image, anchor].view(4, teacher.bins)[side].softmax(0).tolist()
                total += sum(a * log(a / b) for a, b in zip(p, q, strict=True))
            row.append(total)
        found.append(row)
    return found


@pytest.mark.parametrize("kind", ["dense", "plain"])
def test_equals_loops_over_anchors(kind: str) -> None:
    student, teacher, data = make(kind, width=12), trained(kind), batch()
    assert isinstance(teacher, ToyDense)
    terms = step(build("crosskd", student, teacher, class_weight=2.0, box_weight=0.5), student, teacher, data)
    with torch.no_grad():
        _, outputs, target = student.losses(*data)
        taught = teacher.observe(data[0], outputs)
        class_sum = box_sum = certainty = 0.0
        for level in taught.levels:
            cross = {
                part: rest(
                    teacher,
                    part,
                    aligned(outputs.features[f"{level.tap}.{part}"], taught.features[f"{level.tap}.{part}"]),
                )
                for part in ("class", "box")
            }
            far = box_distance(teacher, cross["box"], taught, (level.start, level.stop), level.stride)
            for image in range(2):
                for anchor in range(level.start, level.stop):
                    if target.labels[image, 0, anchor] == -2:
                        continue
                    wanted = torch.sigmoid(taught.logits[image, :, anchor]).tolist()
                    given = torch.sigmoid(cross["class"][image].flatten(1)[:, anchor - level.start]).tolist()
                    for p, q in zip(given, wanted, strict=True):
                        class_sum += abs(p - q) * -(q * log(p) + (1 - q) * log(1 - p))
                    certainty += max(wanted)
                    box_sum += max(wanted) * far[image][anchor - level.start]
        positives = int((target.labels >= 0).sum())
    assert positives > 1 and float(terms["crosskd_class"].detach()) == pytest.approx(
        2 * class_sum / positives, rel=1e-3
    )
    assert float(terms["crosskd_box"].detach()) == pytest.approx(0.5 * box_sum / max(certainty, 1.0), rel=1e-3)


def test_gradient_stops_at_the_taps() -> None:
    student, teacher = make("dense"), trained("dense")
    torch.stack(list(step(build("crosskd", student, teacher), student, teacher, batch()).values())).sum().backward()
    assert isinstance(student, ToyDense)
    for part in ("class", "box"):
        first, last = student.towers[part]  # type: ignore[misc]
        assert first.weight.grad is not None and first.weight.grad.any() and last.weight.grad is None
    assert student.scores.weight.grad is None and student.sides.weight.grad is None
    assert student.neck.stem.weight.grad is not None and student.neck.stem.weight.grad.any()


def test_a_batch_without_boxes_is_not_blown_up() -> None:
    student, teacher = make("dense"), trained("dense")
    images, empty = batch()[0], batch(objects=(0, 0))
    terms = step(build("crosskd", student, teacher), student, teacher, (images, empty[1], empty[2]))
    assert all(torch.isfinite(t) and t < 1e3 for t in terms.values())


@pytest.mark.parametrize(
    ("name", "weights"), [("fcos_r18", (0.4, 0.75)), ("atss_r18", (1.0, 1.0)), ("gfl_r50", (1.0, 1.0))]
)
def test_weights_are_the_papers_for_the_teachers_head_unless_given(name: str, weights: tuple[float, float]) -> None:
    student, teacher = make("dense"), make("dense")
    teacher.spec = type(teacher.spec)(name, teacher.spec.categories, teacher.spec.image_size)
    plain, given = build("crosskd", student, teacher), build("crosskd", student, teacher, class_weight=3.0)
    for method in (plain, given):
        DetectorDistiller(teacher, method)
    assert isinstance(plain, DetectorCrossKD) and isinstance(given, DetectorCrossKD)
    assert (plain.class_weight, plain.box_weight) == weights and (given.class_weight, given.box_weight) == (
        3.0,
        weights[1],
    )


def test_heads_without_common_towers_are_refused() -> None:
    towers = [
        tuple(
            Tap(name=f"p{s}.{part}", channels=4, stride=(s, s), module="t", stage="head") for part in ("class", "box")
        )
        for s in (8, 16)
    ]
    with pytest.raises(MethodError, match=r"the student has p8\.class, p8\.box, the teacher p16\.class"):
        build_method(
            "crosskd",
            Context(
                student_taps=towers[0],
                teacher_taps=towers[1],
                num_outputs=3,
                regions=True,
                spacing=(1.0, 1.0),
                patch_size=(64, 64),
                task="detection",
            ),
            None,
            DETECTION_METHODS,
        )
    with pytest.raises(MethodError, match="the teacher none"):
        build_method(
            "crosskd",
            Context(
                student_taps=towers[0],
                teacher_taps=(),
                num_outputs=3,
                regions=True,
                spacing=(1.0, 1.0),
                patch_size=(64, 64),
                task="detection",
            ),
            None,
            DETECTION_METHODS,
        )
