"""Terms that cannot teach are found, and only those."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.core.run import NetworkSpec
from medkd.distillation import METHODS, Context, Method, build_method, parameters_of
from medkd.distillation.gradient_check import sentence, silent_terms
from medkd.networks import build_network
from tests.distillation.toys import ToyNetwork, context, plain_context

EVERY = [
    (n, v) for n in METHODS for v in ("default", "paper") if v == "default" or "variant" in parameters_of(METHODS[n])
]


@pytest.mark.parametrize(("name", "variant"), EVERY)
@pytest.mark.parametrize(("rank", "regions"), [(2, False), (3, False), (3, True)])
def test_every_term_of_every_method_teaches(name: str, variant: str, rank: int, regions: bool) -> None:
    if regions and name in ("nkd", "dkd"):
        pytest.skip("not defined for regions")
    about = context(ToyNetwork(rank), ToyNetwork(rank, 6), rank, regions)
    parameters = {f"{name}.variant": "paper"} if variant == "paper" else {}
    method = build_method(name, about, parameters)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    state = torch.get_rng_state()
    assert silent_terms(method) == ()
    assert torch.equal(torch.get_rng_state(), state), "the check must not change what is random afterwards"
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


def test_two_classes_leave_nothing_to_the_other_classes_of_dkd_and_nkd() -> None:
    about = plain_context(outputs=2)
    assert silent_terms(build_method("dkd", about)) == ("dkd_others",)
    assert silent_terms(build_method("nkd", about)) == ("nkd_others",)


def test_dist_leaves_out_its_term_among_two_classes_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    method = build_method("dist", plain_context(outputs=2))
    assert "dist leaves out dist_inter" in caplog.text
    assert silent_terms(method) == ()


def test_relations_of_a_map_of_one_voxel_are_found(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    student, teacher = (
        build_network(NetworkSpec(name=n, in_channels=1, num_outputs=3, patch_size=(32,) * 3))
        for n in ("unet_tiny", "res_unet")
    )
    about = Context(
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        num_outputs=3,
        regions=False,
        spacing=(1.0,) * 3,
        patch_size=(8,) * 3,
    )
    silent = silent_terms(build_method("rkd", about))
    assert silent == ("rkd_distance", "rkd_angle")
    assert sentence(silent).startswith("The terms rkd_distance, rkd_angle have no gradient to the student")
    assert silent_terms(build_method("rkd", about, {"rkd.taps": "encoder"})) == ()


def test_a_constant_and_a_cut_off_term_are_found() -> None:
    class Cut(Method):
        """Three terms."""

        def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
            """One that teaches, one of nothing, one that is cut off."""
            z = student.logits
            return {"good": z.square().mean(), "constant": z.sum() * 0 + 1, "cut": z.detach().square().mean()}

    silent = silent_terms(Cut(plain_context()))
    assert silent == ("constant", "cut")
    assert sentence(silent[:1]).startswith("The term constant has no gradient") and sentence(()) == ""
