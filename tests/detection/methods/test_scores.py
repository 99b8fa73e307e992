"""Pairs of detectors whose scores cannot be compared, or are not those that the student infers with."""

from __future__ import annotations

import pytest

from medkd.core.errors import MethodError
from medkd.detection.base import Detector
from medkd.detection.methods import DETECTION_METHODS
from medkd.detection.methods.scores import check_scores
from medkd.distillation import build_method
from tests.detection.toys import context
from tests.detection.tv.builders import make as tv
from tests.detection.yolo.builders import make as yolo

CLASSES = ("a", "b")


def check(name: str, student: Detector, teacher: Detector) -> None:
    check_scores(student, teacher, build_method(name, context(student, teacher), None, DETECTION_METHODS))


@pytest.mark.parametrize("name", ["kd", "dkd", "pkd+kd"])
def test_an_end_to_end_student_is_not_taught_by_scores(name: str) -> None:
    student, teacher = yolo("yolo26n", categories=CLASSES), yolo("yolov8n", categories=CLASSES)
    with pytest.raises(MethodError, match=r"yolo26n's one-to-many head, but it detects with its one-to-one head") as e:
        check(name, student, teacher)
    assert "\n" not in str(e.value)
    check("pkd", student, teacher)
    check(name, teacher, student)  # its one-to-many head can teach


@pytest.mark.parametrize(("first", "second"), [("fcos_r18", "yolov8n"), ("yolo11n", "gfl_r18")])
def test_cells_half_a_stride_apart_are_not_compared(first: str, second: str) -> None:
    student, teacher = (yolo(n, categories=CLASSES) if n.startswith("yolo") else tv(n) for n in (first, second))
    with pytest.raises(MethodError, match=f"{second} and {first} have their centres half a stride apart"):
        check("kd", student, teacher)
    check("cwd", student, teacher)
    check("kd", student, student)
