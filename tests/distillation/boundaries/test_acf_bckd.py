"""ACF-BCKD is its two halves, with all their parameters."""

from __future__ import annotations

import inspect

import torch

from medkd.distillation import build_method, parameters_of
from medkd.distillation.boundaries.acf import ACF
from medkd.distillation.boundaries.acf_bckd import ACFBCKD
from medkd.distillation.boundaries.bckd import BCKD
from tests.distillation.toys import ToyNetwork, batch, context, step, trained


def test_terms_are_those_of_both_halves() -> None:
    student, teacher = ToyNetwork(3), trained(3, False)
    image, target = batch(3)
    about = context(student, teacher, 3)
    both = build_method(
        "acf_bckd", about, {"acf_bckd.feature_weight": 0.5, "acf_bckd.hard_weight": 2.0, "acf_bckd.floor": 0.2}
    )
    acf = build_method("acf", about, {"acf.weight": 0.5})
    acf.load_state_dict(both.acf.state_dict())  # type: ignore[union-attr]
    bckd = build_method("bckd", about, {"bckd.hard_weight": 2.0, "bckd.floor": 0.2})
    expected = {**step(acf, student, teacher, image, target), **step(bckd, student, teacher, image, target)}
    found = step(both, student, teacher, image, target)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[k], expected[k]) for k in expected)


def test_every_parameter_of_the_halves_can_be_set() -> None:
    renamed = {"weight": "feature_weight"}
    wanted = {renamed.get(name, name): p for half in (ACF, BCKD) for name, p in parameters_of(half).items()}
    offered = parameters_of(ACFBCKD)
    assert offered.keys() == wanted.keys()
    assert all(
        offered[name].default == p.default and p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        for name, p in wanted.items()
    )


def test_only_the_connector_is_trained() -> None:
    method = build_method("acf_bckd", context(ToyNetwork(3), trained(3, False), 3))
    assert {name.partition(".")[0] for name, _ in method.named_parameters()} == {"acf"}
