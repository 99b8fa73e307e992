"""Which detectors can be taught by comparing class scores alone."""

from __future__ import annotations

from medkd.core.errors import MethodError
from medkd.detection.base import Detector
from medkd.distillation.base import Method


def check_scores(student: Detector, teacher: Detector, method: Method) -> None:
    """Refuse methods on scores where the scores are of other places, or are not those that a detector infers with.

    Raises:
        MethodError: the student's one-to-many head would be taught although it detects with its one-to-one head, or the
            cells of student and teacher have their centres half a stride apart.
    """
    on_scores = [m for m in method.modules() if isinstance(m, Method) and m.needs_teacher and m.outputs_only]
    if not on_scores or student.two_stage or teacher.two_stage:
        return
    name = type(on_scores[0]).__name__
    if student.end_to_end:
        raise MethodError(
            f"{name} would teach the scores of {student.spec.name}'s one-to-many head, but it detects with its "
            "one-to-one head, which training cuts off from the rest; choose a method on features, or a student "
            "without an end-to-end head."
        )
    if student.cell_centre != teacher.cell_centre:
        raise MethodError(
            f"{name} compares scores cell by cell, but the cells of {teacher.spec.name} and {student.spec.name} have "
            "their centres half a stride apart; choose a method on features, or a teacher of the student's family."
        )
