"""Terms that cannot teach a detector are found before it is trained; those that can are left in peace."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.core.run import LATEST
from medkd.detection import task
from medkd.detection.distiller import DetectorDistiller
from medkd.detection.silent import silent_terms
from medkd.distillation import Method
from tests.detection.test_matrix import FAST, MIXED, built, distillers, teacher
from tests.detection.toys import context

PAIRS = [("yolov8n", FAST["yolov8n"]), ("fcos_r18", FAST["fcos_r18"]), ("retinanet_r18", FAST["retinanet_r18"])]
PAIRS += [("faster_rcnn_r18", FAST["faster_rcnn_r18"]), *MIXED[:1]]


@pytest.mark.parametrize(("student", "expert"), PAIRS)
def test_no_method_is_silent_where_it_is_defined(student: str, expert: str) -> None:
    network = built(student)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = distillers(network, teacher(expert))
    silent = {name: silent_terms(distiller, network) for name, distiller in found.items()}
    assert found and not any(silent.values()), silent
    assert all(bool((before[name] == value).all()) for name, value in network.state_dict().items())


class _Deaf(Method):
    """One term that follows the student's boxes, one that looks at the teacher only, one behind a cut."""

    needs_teacher = True

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """The terms."""
        boxes = student.boxes  # type: ignore[attr-defined]
        return {
            "heard": boxes.float().square().mean(),
            "teacher_only": teacher.logits.square().mean(),
            "cut": student.logits.detach().square().mean(),
        }


def test_terms_without_a_way_to_the_student_are_named() -> None:
    network, expert = built("yolov8n"), teacher("yolov8n")
    distiller = DetectorDistiller(expert, _Deaf(context(network, expert)), network.anchors)
    assert silent_terms(distiller, network) == ("teacher_only", "cut")


@pytest.mark.parametrize("state", ["new", "going on"])
def test_a_new_training_is_warned_whether_it_may_go_on_or_not(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipes always give ``--continue``."""
    said: list[str] = []
    monkeypatch.setattr(task, "doubt", lambda text, *, strict: said.append(text))
    if state == "going on":
        (tmp_path / LATEST).touch()
    family_job = SimpleNamespace(resume=True, detector=SimpleNamespace(family="torchvision"), folder=tmp_path)
    lesson: Any = SimpleNamespace(
        job=SimpleNamespace(options=SimpleNamespace(resume=True, strict=False)),
        family_job=lambda: family_job,
        silent=lambda: "cut cannot teach",
    )
    task.DetectionLesson.prepare(lesson)
    assert said == (["cut cannot teach"] if state == "new" else [])
