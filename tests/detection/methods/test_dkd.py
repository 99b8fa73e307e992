"""Decoupled distillation of class scores: proposals, positive anchors, and few classes."""

from __future__ import annotations

import logging
from math import log

import pytest
import torch
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.detection.methods import DETECTION_METHODS
from medkd.distillation import Context, Method, build_method
from tests.distillation.rows import softmax, without


def method(outputs: int, dense: bool, **settings: object) -> Method:
    about = Context(
        student_taps=(),
        teacher_taps=(),
        num_outputs=outputs,
        regions=dense,
        spacing=(1.0, 1.0),
        patch_size=(32, 32),
        task="detection",
    )
    return build_method("dkd", about, {f"dkd.{k}": v for k, v in settings.items()}, DETECTION_METHODS)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * log(a / b) for a, b in zip(p, q, strict=True))


def slow(rows: list[tuple[list[float], list[float], int]], tau: float) -> tuple[float, float]:
    """Mean of both parts over places ``(student, teacher, true class)``."""
    parts = []
    for s, t, true in rows:
        p_s, p_t = (softmax([v / tau for v in x]) for x in (s, t))
        q_s, q_t = (softmax([v / tau for v in without(x, true)]) for x in (s, t))
        parts.append((kl([p_t[true], 1 - p_t[true]], [p_s[true], 1 - p_s[true]]), kl(q_t, q_s)))
    return sum(a for a, _ in parts) / len(parts), sum(b for _, b in parts) / len(parts)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_two_stage_takes_every_proposal(tau: float) -> None:
    s, t, labels = torch.randn(7, 4), torch.randn(7, 4), torch.tensor([[0], [1], [2], [3], [0], [0], [2]])
    terms = method(4, False, temperature=tau)(Outputs(logits=s), Outputs(logits=t), Target(labels))
    sure, rest = slow(list(zip(s.tolist(), t.tolist(), labels[:, 0].tolist(), strict=True)), tau)
    assert float(terms["dkd_target"]) == pytest.approx(tau**2 * sure, rel=1e-4)
    assert float(terms["dkd_others"]) == pytest.approx(0.25 * tau**2 * rest, rel=1e-4)


def test_dense_heads_take_positive_anchors_only() -> None:
    s, t = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    labels = torch.tensor([[[-1, 2, -2, 0, 1]], [[-1, -1, 1, -2, -1]]])
    terms = method(3, True, weight=2.0)(Outputs(logits=s), Outputs(logits=t), Target(labels))
    positive = [(i, a) for i in range(2) for a in range(5) if labels[i, 0, a] >= 0]
    sure, rest = slow([(s[i, :, a].tolist(), t[i, :, a].tolist(), int(labels[i, 0, a])) for i, a in positive], 1.0)
    assert float(terms["dkd_target"]) == pytest.approx(2 * sure, rel=1e-4)
    assert float(terms["dkd_others"]) == pytest.approx(2 * 0.25 * rest, rel=1e-4)
    none = method(3, True)(Outputs(logits=s.requires_grad_()), Outputs(logits=t), Target(torch.full_like(labels, -1)))
    assert none["dkd_target"] == 0 and none["dkd_others"] == 0 and none["dkd_target"].requires_grad


@pytest.mark.parametrize("classes", [1, 2])
def test_few_classes_in_a_dense_head_are_kd_and_the_log_says_so(classes: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        built = method(classes, True, temperature=2.0)
    assert "it is kd here" in caplog.text
    s, t, valid = torch.randn(2, classes, 6), torch.randn(2, classes, 6), torch.rand(2, 1, 6)
    target = Target(torch.full((2, 1, 6), -1), valid)
    about = Context(
        student_taps=(),
        teacher_taps=(),
        num_outputs=classes,
        regions=True,
        spacing=(1.0, 1.0),
        patch_size=(32, 32),
        task="detection",
    )
    same = build_method("kd", about, {"kd.temperature": 2.0})(Outputs(logits=s), Outputs(logits=t), target)
    assert torch.allclose(built(Outputs(logits=s), Outputs(logits=t), target)["dkd"], same["kd"])
    assert float(same["kd"]) == pytest.approx(_weighted(s, t, valid), rel=1e-4)


def _weighted(s: Tensor, t: Tensor, valid: Tensor) -> float:
    """``τ² Σ r KL / max(Σ r, 1)`` of Bernoulli distributions, by loops."""
    total = 0.0
    for i in range(s.shape[0]):
        for a in range(s.shape[2]):
            for k in range(s.shape[1]):
                p, q = (float(torch.sigmoid(x[i, k, a] / 2)) for x in (t, s))
                total += float(valid[i, 0, a]) * kl([p, 1 - p], [q, 1 - q])
    return 4 * total / max(float(valid.sum()), 1.0)


def test_one_class_of_objects_in_a_two_stage_detector_has_no_others() -> None:
    terms = method(2, False)(
        Outputs(logits=torch.randn(5, 2)),
        Outputs(logits=torch.randn(5, 2)),
        Target(torch.tensor([[0], [1], [1], [0], [0]])),
    )
    assert terms["dkd_others"] == 0 and terms["dkd_target"] > 0
