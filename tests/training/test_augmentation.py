from __future__ import annotations

from math import pi

import numpy as np
import pytest
import torch

from medkd.core.protocol import AugmentationRule
from medkd.training.augmentation import Augmentation, SpatialRange, centre_crop, read_size
from medkd.training.simple_augmentation import SimpleAugmentation
from medkd.training.targets import Coding, SoftPatch, StoredTarget


def test_rotation_rules_are_nnunets() -> None:
    assert SpatialRange.of((128, 128, 128)) == SpatialRange(pi / 6, False)
    assert SpatialRange.of((20, 256, 256)) == SpatialRange(pi, True)
    assert SpatialRange.of((256, 256)) == SpatialRange(pi, False)
    assert SpatialRange.of((256, 128)) == SpatialRange(pi / 12, False)


def test_what_is_read_holds_the_rotated_patch_and_anisotropic_patches_read_no_extra_slices() -> None:
    assert all(r > p for r, p in zip(read_size((40, 56, 40)), (40, 56, 40), strict=True))
    assert read_size((20, 256, 256))[0] == 20


@pytest.mark.parametrize("patch", [(16, 16, 16), (4, 16, 16), (16, 16)])
def test_shapes_types_and_labels_survive(patch: tuple[int, ...]) -> None:
    augment = Augmentation(patch, tuple(range(len(patch))), (0,))
    for seed in range(25):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        label = torch.randint(-1, 3, (1, *read_size(patch)), dtype=torch.int16)
        image, found = augment(torch.randn(2, *read_size(patch)), label)
        assert image.shape == (2, *patch) and found.shape == (1, *patch)
        assert image.dtype == torch.float32 and torch.isfinite(image).all()
        assert set(found.unique().tolist()) <= {-1, 0, 1, 2}
        assert (image[0][found[0] < 0] == 0).all()


def test_image_and_label_move_together() -> None:
    """The label is the thresholded image, so it must stay so under every spatial transform."""
    patch, agreement = (24, 24, 24), []
    augment = Augmentation(patch, (0, 1, 2))
    for seed in range(20):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        label = torch.zeros((1, *read_size(patch)), dtype=torch.int16)
        label[:, 15:30, 12:24, 18:40] = 1
        image, moved = augment(label.float() * 10, label)
        agreement.append(float((((image - image.mean()) > 0) == (moved > 0)).float().mean()))
    assert np.mean(agreement) > 0.97


def test_the_same_seed_gives_the_same_patch() -> None:
    augment, results = Augmentation((16, 16, 16), (0, 1, 2)), []
    image = torch.randn(1, *read_size((16, 16, 16)))
    for _ in range(2):
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        results.append(augment(image.clone(), torch.zeros(1, *image.shape[1:], dtype=torch.int16))[0])
    assert torch.equal(*results)


def test_centre_crop_takes_the_middle() -> None:
    image = torch.arange(1 * 7 * 7).view(1, 7, 7)
    assert torch.equal(centre_crop(image, (3, 5)), image[:, 2:5, 1:6])


def asymmetric(patch: tuple[int, ...]) -> torch.Tensor:
    """A ramp along every axis, so that each mirroring can be told from the signs of the differences."""
    return sum(
        10.0**axis * torch.arange(n).float().view(-1, *[1] * (len(patch) - 1 - axis)) for axis, n in enumerate(patch)
    )


def mirrored_axes(volume: torch.Tensor) -> tuple[int, ...]:
    """Axes along which the ramp descends."""
    return tuple(axis for axis in range(volume.ndim) if volume.diff(dim=axis).mean() < 0)


@pytest.mark.parametrize("patch", [(6, 7, 8), (7, 8)])
@pytest.mark.parametrize("kept", [(), (0,), (1,), (0, 1)])
def test_simple_augmentation_mirrors_the_axes_that_may_be_mirrored_and_their_targets(
    patch: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    """As nnU-Net's augmentation does: no axis beside them, and each of them in about half of the patches."""
    augment = SimpleAugmentation(AugmentationRule(flip=0.5), patch, kept)
    ramp = asymmetric(patch)
    target = StoredTarget(*encoded(ramp / ramp.max() * 8))
    seen: list[tuple[int, ...]] = []
    for seed in range(60):
        torch.manual_seed(seed)
        soft = SoftPatch(target, (0,) * len(patch), patch)
        image, label, logits = augment(ramp[None], ramp[None].to(torch.int16), soft)
        seen.append(mirrored_axes(image[0]))
        assert mirrored_axes(label[0].float()) == mirrored_axes(logits[0]) == seen[-1]
    assert set().union(*seen) == set(kept)
    assert all(15 <= sum(axis in axes for axes in seen) <= 45 for axis in kept)


def encoded(logit: torch.Tensor) -> tuple[np.ndarray, Coding]:
    """A region's cached target."""
    coding = Coding.of(logit[None], True)
    return coding.encode(logit[None]).numpy(), coding


def test_the_axes_that_are_kept_change_nothing_else() -> None:
    """The same seed gives the same patch but for the mirroring, whatever axes may be mirrored."""
    rule = AugmentationRule(flip=0.5, scale=1.0, scale_range=0.2, shift=1.0, shift_range=0.2)
    image, label = torch.randn(1, 5, 6, 7), torch.zeros(1, 5, 6, 7, dtype=torch.int16)
    for seed in range(8):
        found = []
        for axes in ((), (0, 1, 2)):
            torch.manual_seed(seed)
            found.append(SimpleAugmentation(rule, (5, 6, 7), axes)(image, label)[0])

        torch.testing.assert_close(found[0].flatten().sort().values, found[1].flatten().sort().values)
