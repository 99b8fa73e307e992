"""The Dice semimetric loss against a loop, against the soft Dice loss of the labels, and as a semimetric."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from medkd.core.features import Target
from medkd.training.losses import soft_dice_loss
from tests.distillation.rows import sigmoid_or_softmax
from tests.distillation.toys import logits_terms


def _logits(seed: int, shape: tuple[int, ...] = (2, 3, 3, 4, 2)) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _nothing(logits: torch.Tensor) -> Target:
    return Target(torch.zeros(len(logits), 1, *logits.shape[2:], dtype=torch.long))


@pytest.mark.parametrize("regions", [False, True])
def test_it_equals_a_loop_over_annotated_voxels(regions: bool) -> None:
    s, t = _logits(0), _logits(1)
    valid = torch.rand(2, 1, *s.shape[2:], generator=torch.Generator().manual_seed(2)) > 0.3
    losses = []
    for n in range(2):
        keep = valid[n, 0].flatten().tolist()
        rows = [[sigmoid_or_softmax(r, regions) for r in z[n].flatten(1).T.tolist()] for z in (s, t)]
        for c in range(0 if regions else 1, 3):
            pairs = [(a[c], b[c]) for a, b, counted in zip(*rows, keep, strict=True) if counted]
            apart, together = sum(abs(a - b) for a, b in pairs), sum(a + b for a, b in pairs)
            losses.append(1 - (together - apart + 1e-5) / (together + 1e-5))
    found = logits_terms("dml", s, t, Target(_nothing(s).labels, valid), regions=regions, weight=0.7)["dml"]
    assert float(found) == pytest.approx(0.7 * sum(losses) / len(losses), rel=1e-5)


def test_of_a_teacher_without_doubt_it_is_the_soft_dice_loss() -> None:
    s = _logits(3)
    labels = torch.randint(0, 3, (2, *s.shape[2:]), generator=torch.Generator().manual_seed(4))
    sure = 200.0 * F.one_hot(labels, 3).movedim(-1, 1)
    found = float(logits_terms("dml", s, sure, _nothing(s))["dml"])
    hot = F.one_hot(labels, 3).movedim(-1, 1)[:, 1:].float()
    assert found == pytest.approx(float(soft_dice_loss(s.softmax(1)[:, 1:], hot)), rel=1e-5)
    monai = DiceLoss(include_background=False, softmax=True, to_onehot_y=True, smooth_nr=1e-5, smooth_dr=1e-5)
    assert found == pytest.approx(float(monai(s, labels[:, None])), rel=1e-4)


def test_it_is_smallest_at_a_doubtful_teacher_where_the_soft_dice_loss_is_not() -> None:
    t = 0.5 * _logits(5)
    q = t.softmax(1)[:, 1:]
    same = float(logits_terms("dml", t, t, _nothing(t))["dml"])
    surer = 4 * t
    assert same == pytest.approx(0, abs=1e-6) and float(logits_terms("dml", surer, t, _nothing(t))["dml"]) > 0.05
    assert float(soft_dice_loss(surer.softmax(1)[:, 1:], q)) < float(soft_dice_loss(q, q))


def test_a_small_structure_counts_as_much_as_a_large_one() -> None:
    t = torch.full((1, 3, 8, 8), -20.0)
    t[:, 0] = 0.0
    t[0, 1, :, :6], t[0, 2, 0, 7] = 20.0, 20.0
    for missed in (1, 2):
        s = t.clone()
        s[0, missed] = -20.0
        assert float(logits_terms("dml", s, t, _nothing(t))["dml"]) == pytest.approx(0.5, abs=1e-3)
