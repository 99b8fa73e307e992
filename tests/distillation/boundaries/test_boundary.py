"""Boundary bands against a direct count of neighbours."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.distillation.boundaries.boundary import boundary_band, neighbours_inside, one_hot, well_inside


def count(mask: Tensor, replicate: bool) -> Tensor:
    """Neighbours in the mask, voxel by voxel."""
    result = torch.zeros(mask.shape, dtype=torch.uint8)
    for place in itertools.product(*(range(n) for n in mask.shape)):
        for shift in itertools.product((-1, 0, 1), repeat=mask.ndim):
            there = [p + s for p, s in zip(place, shift, strict=True)]
            if replicate:
                there = [min(max(t, 0), n - 1) for t, n in zip(there, mask.shape, strict=True)]
            inside = all(0 <= t < n for t, n in zip(there, mask.shape, strict=True))
            if any(shift) and inside and mask[tuple(there)]:
                result[place] += 1
    return result


@pytest.mark.parametrize("replicate", [False, True])
@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 3), (1, 4, 5)])
def test_neighbours_are_counted_as_a_loop_does(shape: tuple[int, ...], replicate: bool) -> None:
    masks = torch.rand(3, *shape) > 0.5
    assert torch.equal(neighbours_inside(masks, replicate), torch.stack([count(m, replicate) for m in masks]))


def test_a_cube_has_296_inner_and_488_outer_band_voxels() -> None:
    cube = F.pad(torch.ones(1, 8, 8, 8, dtype=torch.bool), (6,) * 6)
    for replicate in (False, True):
        band = boundary_band(cube, replicate)
        assert int((band & cube).sum()) == 8**3 - 6**3 == 296
        assert int((band & ~cube).sum()) == 10**3 - 8**3 == 488


def test_a_structure_that_fills_the_patch_has_a_band_with_zero_padding_only() -> None:
    full = torch.ones(1, 20, 20, 20, dtype=torch.bool)
    assert int(boundary_band(full, replicate=False).sum()) == 20**3 - 18**3
    assert not boundary_band(full, replicate=True).any()


def test_an_isolated_voxel_and_a_hole_are_not_in_their_own_band() -> None:
    voxel = torch.zeros(1, 5, 5, 5, dtype=torch.bool)
    voxel[0, 2, 2, 2] = True
    for mask in (voxel, ~voxel):
        band = boundary_band(mask)
        assert not band[0, 2, 2, 2] and int(band.sum()) == 26


def test_well_inside_leaves_out_the_rim_of_what_is_not_annotated() -> None:
    valid = torch.ones(1, 6, 6, dtype=torch.bool)
    valid[0, 0, 0] = False
    expected = torch.ones(1, 6, 6, dtype=torch.bool)
    expected[0, :2, :2] = False
    assert torch.equal(well_inside(valid), expected)


def test_one_hot_marks_the_asked_classes() -> None:
    index = torch.tensor([[[[0, 2], [5, 2]]]])
    assert one_hot(index, torch.tensor([2, 5])).tolist() == [
        [[[False, True], [False, True]], [[False, False], [True, False]]]
    ]
