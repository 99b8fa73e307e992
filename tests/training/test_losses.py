from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from medkd.training.losses import SegmentationLoss, scale_weights, soft_dice_loss


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 9, 8), (2, 3, 5, 6, 7)])
def test_dice_and_ce_equal_monai_and_torch(batch: bool, shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]))
    found = SegmentationLoss(regions=False, batch_dice=batch)(logits.float(), target)
    reference = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=batch, smooth_nr=1e-5, smooth_dr=1e-5
    )
    assert torch.allclose(found["dice"].double(), reference(logits, target), atol=1e-5)
    assert torch.allclose(found["ce"].double(), F.cross_entropy(logits, target[:, 0]), atol=1e-5)


def test_regions_equal_monai_and_torch() -> None:
    logits, target = torch.randn(2, 3, 6, 7), (torch.rand(2, 3, 6, 7) > 0.5).float()
    found = SegmentationLoss(regions=True, batch_dice=False)(logits, target)
    assert torch.allclose(
        found["dice"], DiceLoss(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5)(logits, target), atol=1e-5
    )
    assert torch.allclose(found["ce"], F.binary_cross_entropy_with_logits(logits, target), atol=1e-6)


@pytest.mark.parametrize("regions", [False, True])
def test_ignored_voxels_change_nothing(regions: bool) -> None:
    logits = torch.randn(2, 3, 8, 8)
    target = (torch.rand(2, 3, 8, 8) > 0.5).float() if regions else torch.randint(0, 3, (2, 1, 8, 8))
    valid = torch.rand(2, 1, 8, 8) > 0.4
    loss = SegmentationLoss(regions=regions, batch_dice=False)
    other = torch.where(valid, logits, torch.randn_like(logits) * 9)
    a, b = loss(logits, target, valid), loss(other, target, valid)
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)
    assert not torch.allclose(a["ce"], loss(logits, target)["ce"])


def test_a_perfect_prediction_costs_nothing() -> None:
    target = torch.randint(0, 3, (2, 1, 8, 8))
    logits = 100.0 * F.one_hot(target[:, 0], 3).movedim(-1, 1)
    assert sum(SegmentationLoss(regions=False, batch_dice=False)(logits, target).values()) < 1e-4


def test_deep_supervision_is_the_weighted_sum_over_resolutions() -> None:
    loss = SegmentationLoss(regions=False, batch_dice=False)
    scales = [torch.randn(2, 3, n, n) for n in (16, 8, 4)]
    target = torch.randint(0, 3, (2, 1, 16, 16))
    small = F.interpolate(target.float(), size=(8, 8), mode="nearest-exact").long()
    a, b = loss(scales[0], target), loss(scales[1], small)
    both = loss(scales, target)
    assert scale_weights(3) == pytest.approx([2 / 3, 1 / 3, 0])
    assert all(torch.allclose(both[k], a[k] * 2 / 3 + b[k] / 3) for k in both)


def test_an_absent_class_that_is_not_predicted_has_dice_one() -> None:
    assert float(soft_dice_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))) == pytest.approx(0.0)
