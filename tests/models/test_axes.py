"""Along which axes a student may be mirrored, for teachers whose patches lie otherwise in a scan than its own."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medkd.models.axes import PatchAxes
from medkd.models.segmentation import TrainedModel

STRAIGHT = (0, 1, 2)


def _plan(transpose: tuple[int, ...] = STRAIGHT, orientation: str | None = None) -> Any:
    return SimpleNamespace(transpose=transpose, orientation=orientation)


def _model(plan: Any, rank: int, mirrored: tuple[int, ...], known: bool = True, members: Any = ()) -> TrainedModel:
    return TrainedModel(
        networks=(),
        folds=(),
        plan=plan,
        configuration=SimpleNamespace(rank=rank),  # type: ignore[arg-type]
        labels=None,  # type: ignore[arg-type]
        channels=(),
        patch_size=(),
        mirror_axes=mirrored,
        mirror_axes_known=known,
        members=tuple(members),
    )


def _several(*members: TrainedModel) -> TrainedModel:
    return _model(members[0].plan, members[0].configuration.rank, (), members=members)


@pytest.mark.parametrize(
    ("teacher", "student", "allowed"),
    [
        (_model(_plan(), 3, (0, 1, 2)), (_plan(), 3), (0, 1, 2)),
        (_model(_plan(), 3, (0, 1)), (_plan(), 3), (0, 1)),
        (_model(_plan(), 2, (0, 1)), (_plan(), 3), (0, 1, 2)),  # slices know nothing of the axis across them
        (_model(_plan(), 2, (0,)), (_plan(), 3), (0, 1)),  # kept from the scan's last axis, its own second one
        (_model(_plan(), 3, (0, 1)), (_plan((2, 0, 1)), 3), (1, 2)),  # the scan's last axis is the student's first
        (_model(_plan((2, 0, 1)), 3, (1, 2)), (_plan(), 3), (0, 1)),
        (_model(_plan((2, 0, 1)), 3, (1, 2)), (_plan(), 2), (0,)),
        (_model(_plan(orientation="SLP"), 3, (0, 2)), (_plan(orientation="RAS"), 3), (0, 1)),  # not left and right
        (_model(_plan(orientation="RAS"), 3, (0, 1)), (_plan(), 3), ()),  # nobody knows which axis is which
        (_model(_plan(orientation="RAS"), 3, (0, 1, 2)), (_plan(), 3), (0, 1, 2)),
        (_model(_plan(), 3, (), known=False), (_plan(), 3), (0, 1, 2)),
        (_several(_model(_plan(), 2, (0, 1)), _model(_plan(), 3, (0, 1, 2))), (_plan(), 3), (0, 1, 2)),
        (_several(_model(_plan(), 2, (0,)), _model(_plan(), 3, (1, 2))), (_plan(), 3), (1,)),
        (_several(_model(_plan(), 3, (0, 1)), _model(_plan((2, 0, 1)), 3, (1, 2))), (_plan(), 3), (0, 1)),
        (_several(_model(_plan(), 3, (), known=False), _model(_plan(), 3, (2,))), (_plan(), 3), (2,)),
    ],
)
def test_a_student_is_mirrored_along_no_axis_of_the_scan_that_a_teacher_was_kept_from(
    teacher: TrainedModel, student: tuple[Any, int], allowed: tuple[int, ...]
) -> None:
    axes = PatchAxes(*student)
    assert teacher.allowed_axes(axes, range(axes.rank)) == allowed


def test_mirrored_axes_are_those_of_any_teacher_on_the_students_patch() -> None:
    student = PatchAxes(_plan((2, 0, 1)), 3)
    teacher = _several(_model(_plan(), 2, (1,)), _model(_plan(), 3, (0,)), _model(_plan(), 3, (1,), known=False))
    assert teacher.mirrored_axes(student) == (0, 1)  # the scan's 2 and 0


@pytest.mark.parametrize("rank", [2, 3])
def test_an_axis_of_the_patch_is_where_an_array_of_the_scan_says(rank: int) -> None:
    """Independent of the formula: a scan whose values are the positions along one axis, transposed, varies along it."""
    for order, axis in product(((0, 1, 2), (2, 0, 1), (1, 0, 2)), range(rank)):
        own = axis + 3 - rank
        found = PatchAxes(_plan(order), rank).of_scan(axis)
        varies = np.indices((2, 3, 4))[found].transpose(order)
        assert np.ptp(varies, axis=own).min() == varies.shape[own] - 1
