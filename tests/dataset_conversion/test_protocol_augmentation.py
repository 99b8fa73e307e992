"""The augmentation that protocols ask for: flips, turns, intensities and rotations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medkd.core.errors import PlanError
from medkd.core.protocol import AugmentationRule
from medkd.training.simple_augmentation import SimpleAugmentation, rotated


def test_flips_and_turns_move_image_and_label_alike_and_reach_all_eight_positions() -> None:
    augment = SimpleAugmentation(AugmentationRule(flip=0.5, rotate90=0.5), (6, 6), (0, 1))
    label = torch.arange(36, dtype=torch.int16).reshape(1, 6, 6)
    seen = set()
    for _ in range(200):
        image, moved = augment(label.float(), label)
        assert torch.equal(image, moved.float()) and sorted(moved.flatten().tolist()) == list(range(36))
        seen.add(tuple(moved.flatten().tolist()))
    assert len(seen) == 8
    with pytest.raises(PlanError, match="square"):
        SimpleAugmentation(AugmentationRule(rotate90=0.1), (8, 6, 7), (0, 1, 2))


def test_intensities_are_scaled_and_shifted_within_their_ranges_and_never_means_never() -> None:
    image, label = torch.ones(1, 4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.int16)
    augment = SimpleAugmentation(
        AugmentationRule(scale=1.0, scale_range=0.1, shift=1.0, shift_range=0.1), (4, 4, 4), ()
    )
    values = torch.stack([augment(image, label)[0].mean() for _ in range(200)])
    assert 0.8 <= values.min() < 0.9 and 1.1 < values.max() <= 1.2
    assert torch.equal(SimpleAugmentation(AugmentationRule(), (4, 4, 4), ())(image, label)[0], image)


@pytest.mark.parametrize("shape", [(1, 31, 31), (2, 5, 24, 40)])
def test_a_rotation_is_scipys(shape: tuple[int, ...]) -> None:
    from scipy.ndimage import gaussian_filter, rotate

    array = gaussian_filter(np.random.default_rng(0).normal(size=shape), (0,) * (len(shape) - 2) + (3, 3)).astype(
        np.float32
    )
    ours = rotated(torch.from_numpy(array), np.deg2rad(17.0), "bilinear").numpy()
    theirs = [rotate(array, sign * 17.0, axes=(-2, -1), reshape=False, order=1) for sign in (1, -1)]
    inner = (..., slice(8, -8), slice(8, -8))
    assert min(np.abs(ours[inner] - reference[inner]).max() for reference in theirs) < 1e-3 * np.abs(array).max() + 1e-4
