"""Parameters of methods are read by their annotations, and refused in one sentence."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from medkd.core.errors import MethodError
from medkd.distillation import METHODS, Variant, build_method, parameters_of
from medkd.distillation.parameters import annotations_of, read_parameter
from tests.distillation.toys import ToyNetwork, context, plain_context

Size = Literal["small", "large"]


@pytest.mark.parametrize(
    ("annotation", "value", "found"),
    [
        (float, "2", 2.0),
        (float | None, "none", None),
        (float | None, None, None),
        (int, "1e3", 1000),
        (int, 4.0, 4),
        (bool, "False", False),
        (str, "true", "true"),
        (str | None, "none", "none"),
        (Size, "small", "small"),
        (Size | None, None, None),
    ],
)
def test_values_are_read_by_their_annotation(annotation: Any, value: Any, found: Any) -> None:
    read = read_parameter("kd.x", annotation, value)
    assert read == found and type(read) is type(found)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (float, "a lot", "kd.x must be a number, found 'a lot'"),
        (float, True, "kd.x must be a number, found True"),
        (int, "1.5", "kd.x must be a whole number, found '1.5'"),
        (bool, "maybe", "kd.x must be true or false, found 'maybe'"),
        (bool, 1, "kd.x must be true or false, found 1"),
        (int, None, "kd.x must be a whole number, found None"),
        (Size, "smal", "kd.x must be one of small, large, found 'smal'. Did you mean 'small'?"),
        (Size, 3, "kd.x must be one of small, large, found '3'."),
    ],
)
def test_other_values_are_refused(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(MethodError) as error:
        read_parameter("kd.x", annotation, value)
    assert message in str(error.value)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_variant_and_option_is_a_literal(name: str) -> None:
    """No option is free text but names of taps, which the networks decide."""
    annotations = annotations_of(METHODS[name])
    for parameter in parameters_of(METHODS[name]):
        if parameter == "variant":
            assert annotations[parameter] == Variant
        elif annotations[parameter] in (str, str | None):
            assert parameter in ("taps", "student_tap", "teacher_tap"), parameter


@pytest.mark.parametrize("name", [name for name in METHODS if "variant" in parameters_of(METHODS[name])])
def test_an_unknown_variant_is_refused_by_every_method(name: str) -> None:
    networks = ToyNetwork(2), ToyNetwork(2)
    with pytest.raises(MethodError, match=rf"{name}.variant must be one of default, paper, found 'papr'.*'paper'"):
        build_method(name, context(*networks, 2), {f"{name}.variant": "papr"})


def test_the_distances_of_a_boundary_are_an_option() -> None:
    with pytest.raises(MethodError, match=r"bckd.distances must be one of relative, voxel, mm, found 'milimetre'"):
        build_method("bckd", plain_context(), {"bckd.distances": "milimetre"})
