"""Channel-wise distillation of neck maps, against the formula written out."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Tap, Target
from medkd.detection.methods import DETECTION_METHODS
from medkd.distillation import Context, Method, build_method

STRIDES = (8, 16)


def method(student: int = 2, teacher: int = 2, **settings: object) -> Method:
    """Between necks of so many channels."""
    ours, theirs = (
        [
            Tap(name=f"p{i + 3}", channels=channels, stride=(s, s), module="neck", stage="neck")
            for i, s in enumerate(STRIDES)
        ]
        for channels in (student, teacher)
    )
    about = Context(
        student_taps=tuple(ours),
        teacher_taps=tuple(theirs),
        num_outputs=3,
        regions=True,
        spacing=(1.0, 1.0),
        patch_size=(32, 32),
        task="detection",
    )
    return build_method("cwd", about, {f"cwd.{k}": v for k, v in settings.items()}, DETECTION_METHODS)


def slow(s: torch.Tensor, t: torch.Tensor, tau: float) -> float:
    """The mean over images and channels of the divergence over space."""
    found = []
    for a, b in zip(s.flatten(0, 1), t.flatten(0, 1), strict=True):
        rows = [[exp(v / tau) for v in x.flatten().tolist()] for x in (a, b)]
        p_s, p_t = ([v / sum(row) for v in row] for row in rows)
        found.append(sum(q * log(q / p) for p, q in zip(p_s, p_t, strict=True)))
    return sum(found) / len(found)


@pytest.mark.parametrize(
    ("variant", "tau", "factor"), [("default", 1.0, 0.5), ("default", 2.0, 2.0), ("paper", 1.0, 10.0)]
)
def test_equals_the_formula_written_out(variant: str, tau: float, factor: float) -> None:
    maps = [{f"p{i + 3}": torch.randn(2, 2, 32 // s, 32 // s) for i, s in enumerate(STRIDES)} for _ in range(2)]
    terms = method(variant=variant, temperature=tau)(
        *(Outputs(logits=torch.zeros(1), features=m) for m in maps), Target(torch.zeros(1))
    )
    wanted = factor * sum(slow(maps[0][name], maps[1][name], tau) for name in maps[0])
    assert float(terms["cwd"]) == pytest.approx(wanted, rel=1e-4)


def test_channels_are_brought_together_by_a_trained_convolution() -> None:
    assert sum(p.numel() for p in method(2, 5).parameters()) == 2 * (2 * 5 + 5) and not list(method().parameters())


def test_necks_without_a_common_stride_are_refused() -> None:
    one, other = (Tap(name="p", channels=2, stride=(s, s), module="neck", stage="neck") for s in (8, 16))
    with pytest.raises(MethodError, match="no neck maps of equal stride"):
        build_method(
            "cwd",
            Context(
                student_taps=(one,),
                teacher_taps=(other,),
                num_outputs=3,
                regions=True,
                spacing=(1.0, 1.0),
                patch_size=(32, 32),
                task="detection",
            ),
            None,
            DETECTION_METHODS,
        )
