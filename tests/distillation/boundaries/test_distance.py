"""The distance transform is exact: against SciPy's, and against all pairs of voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from medkd.distillation.boundaries import distance, distance_batch
from medkd.distillation.boundaries.distance import bounding_boxes, squared_boundary_distances, squared_distance
from tests.distillation.toys import smooth


def reference(mask: Tensor, spacing: tuple[float, ...]) -> np.ndarray:
    """``(EDT(m) + EDT(1 − m))²``."""
    m = mask.numpy()
    return (distance_transform_edt(m, sampling=spacing) + distance_transform_edt(~m, sampling=spacing)) ** 2


def masks(rank: int) -> Tensor:
    """Structures of many kinds: blobs, noise, single voxels, cut by the border, several parts, nearly everything."""
    size = (13, 17, 11)[:rank]
    noise = torch.rand(4, *size)
    blobs = smooth(1, 4, size)[0] > 0.4
    voxel, corner, two, hole = (torch.zeros(size, dtype=torch.bool) for _ in range(4))
    voxel[(6,) * rank] = True
    corner[(slice(0, 3),) * rank] = True
    two[(1,) * rank] = two[(9,) * rank] = True
    hole[(4,) * rank] = True
    slab = torch.zeros(size, dtype=torch.bool)
    slab[5:8] = True
    return torch.stack(
        [*blobs, *(noise > torch.tensor([0.1, 0.5, 0.9, 0.99]).view(-1, *(1,) * rank)), voxel, corner, two, ~hole, slab]
    )


@pytest.mark.parametrize(
    ("rank", "spacing"), [(2, (1.0, 1.0)), (2, (0.7, 3.0)), (3, (1.0, 1.0, 1.0)), (3, (2.5, 0.6, 1.1))]
)
def test_squared_boundary_distances_equal_scipys(rank: int, spacing: tuple[float, ...]) -> None:
    every = masks(rank)
    for mask, field in zip(every, squared_boundary_distances(every, spacing), strict=True):
        if mask.any() and not mask.all():
            assert field is not None and field.shape == mask.shape
            assert np.allclose(field.numpy(), reference(mask, spacing), rtol=1e-5, atol=0)


def test_squared_distance_equals_the_minimum_over_all_pairs() -> None:
    mask = torch.rand(6, 5, 7) > 0.95
    mask[2, 3, 4] = True
    spacing = torch.tensor([1.0, 2.0, 0.5])
    every = torch.cartesian_prod(*(torch.arange(n) for n in mask.shape)) * spacing
    expected = torch.cdist(every, mask.nonzero() * spacing).min(1).values.square().view(mask.shape)
    box = bounding_boxes(mask.unsqueeze(0))[0]
    assert box is not None
    assert torch.allclose(squared_distance(mask, box, spacing.tolist()), expected, atol=1e-4)
    everything = tuple(slice(0, n) for n in mask.shape)
    assert torch.equal(
        squared_distance(mask, everything, spacing.tolist()), squared_distance(mask, box, spacing.tolist())
    )


def test_empty_and_full_masks_have_no_distance() -> None:
    every = torch.stack([torch.zeros(4, 5, 6, dtype=torch.bool), torch.ones(4, 5, 6, dtype=torch.bool)])
    assert squared_boundary_distances(every, (1.0, 1.0, 1.0)) == [None, None]


def test_bounding_boxes_are_tight() -> None:
    mask = torch.zeros(3, 5, 6, 7, dtype=torch.bool)
    mask[0, 1:3, 0, 4:7] = True
    mask[2] = True
    assert bounding_boxes(mask) == [
        (slice(1, 3), slice(0, 1), slice(4, 7)),
        None,
        (slice(0, 5), slice(0, 6), slice(0, 7)),
    ]


@pytest.mark.parametrize(
    ("rank", "spacing"), [(2, (1.0, 1.0)), (2, (0.7, 3.0)), (3, (1.0, 1.0, 1.0)), (3, (2.5, 0.6, 1.1))]
)
@pytest.mark.parametrize("chunk", [1, 2**24])
def test_all_masks_at_once_equal_scipys(
    rank: int, spacing: tuple[float, ...], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distance_batch, "_CHUNK", chunk)
    every = torch.cat([masks(rank), torch.stack([masks(rank)[0] & False, masks(rank)[0] | True])])
    fields = distance_batch.squared_boundary_distances_at_once(every, spacing)
    for mask, field in zip(every, fields, strict=True):
        mixed = bool(mask.any()) and not bool(mask.all())
        expected = reference(mask, spacing) if mixed else np.zeros(mask.shape)
        assert np.allclose(field.numpy(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("device_type", ["cpu", "other"])
def test_weights_are_the_sum_over_both_kinds_of_masks(device_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of computing them; on the CPU the second has to be asked for."""
    monkeypatch.setattr(distance, "HOST", device_type if device_type == "cpu" else "none")
    kinds = [masks(3), masks(3).flip(0)]
    empty = torch.zeros(1, *kinds[0].shape[1:], dtype=torch.bool)
    kinds = [torch.cat((kind, empty)) for kind in kinds]
    expected = torch.zeros(kinds[0].shape)
    for kind in kinds:
        for place, mask in zip(expected, kind, strict=True):
            if mask.any() and not mask.all():
                place += torch.from_numpy(reference(mask, (1.0, 2.0, 0.5))).float()
    assert torch.allclose(distance.boundary_weights(kinds, (1.0, 2.0, 0.5)), expected, rtol=1e-5)


def test_chunks_are_bounded_in_number_and_not_smaller_than_they_must_be() -> None:
    for rows, length in ((10, 8), (10**6, 64), (10**7, 128)):
        chunk = distance_batch.chunk_rows(rows, length)
        assert -(-rows // chunk) <= distance_batch.MOST_CHUNKS
