"""The student alone: no terms, no helpers, no teacher."""

from __future__ import annotations

from medkd.distillation import build_method
from tests.distillation.toys import ToyNetwork, batch, plain_context, step


def test_there_is_nothing_to_add_to_the_loss_and_nothing_to_train() -> None:
    method = build_method("none", plain_context())
    assert step(method, ToyNetwork(3), None, *batch(3)) == {}
    assert list(method.parameters()) == [] and method.state_dict() == {} and not method.needs_teacher


def test_it_can_be_joined_with_another_method() -> None:
    assert build_method("none+kd", plain_context()).needs_teacher
