"""The sliding window against a slow loop, MONAI and explicit flips."""

from __future__ import annotations

from itertools import product
from math import ceil

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.inference import sliding_window
from medkd.inference.sliding_window import predict_logits, predict_rows
from medkd.runtime.tiles import gaussian_weight, tile_starts


class Counting(nn.Module):
    """A convolution that pads with zeros (so that it sees the border of its tile) and counts the tiles."""

    def __init__(self, rank: int = 3) -> None:
        super().__init__()
        self.conv = (nn.Conv3d if rank == 3 else nn.Conv2d)(2, 3, 5, padding=2)
        self.tiles: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.tiles.append(len(x))
        return torch.tanh(self.conv(x))


def slow(net: nn.Module, image: Tensor, patch: tuple[int, ...], step: float) -> np.ndarray:
    """nnU-Net's procedure, written as plainly as possible, in float64."""
    missing = [max(0, p - s) for p, s in zip(patch, image.shape[1:], strict=True)]
    padded = np.pad(image.numpy(), [(0, 0), *((m // 2, m - m // 2) for m in missing)])
    delta = np.zeros(patch)
    delta[tuple(p // 2 for p in patch)] = 1
    weight = gaussian_filter(delta, [p / 8 for p in patch], mode="constant")
    weight *= 10 / weight.max()
    weight[weight == 0] = weight[weight > 0].min()
    starts = []
    for size, p in zip(padded.shape[1:], patch, strict=True):
        steps = ceil((size - p) / (step * p)) + 1
        starts.append([int(np.round((size - p) / max(steps - 1, 1) * i)) for i in range(steps)])
    total, weights = np.zeros((3, *padded.shape[1:])), np.zeros(padded.shape[1:])
    for start in product(*starts):
        where = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
        with torch.no_grad():
            logits = net(torch.from_numpy(padded[(slice(None), *where)])[None])[0].numpy()
        total[(slice(None), *where)] += logits * weight
        weights[where] += weight
    crop = tuple(slice(m // 2, m // 2 + s) for m, s in zip(missing, image.shape[1:], strict=True))
    return (total / weights)[(slice(None), *crop)]


@pytest.mark.parametrize("shape", [(20, 37, 18), (7, 9, 30), (16, 16, 12), (9, 16, 3), (21, 33, 13)])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_a_slow_loop(shape: tuple[int, ...], batch: int) -> None:
    net, image = Counting(), torch.randn(2, *shape)
    fast = predict_logits(net, image, (16, 16, 12), 3, tile_batch=batch)
    np.testing.assert_allclose(fast.numpy(), slow(net, image, (16, 16, 12), 0.5), atol=2e-6)


@pytest.mark.parametrize(("patch", "step"), [((15, 9, 13), 0.5), ((16, 8, 10), 0.3), ((10, 10, 10), 1.0)])
def test_equals_a_slow_loop_for_odd_patches_and_other_steps(patch: tuple[int, ...], step: float) -> None:
    net, image = Counting(), torch.randn(2, 21, 19, 24)
    np.testing.assert_allclose(
        predict_logits(net, image, patch, 3, step_size=step).numpy(), slow(net, image, patch, step), atol=2e-6
    )


def test_equals_monai_where_tiles_and_weights_coincide() -> None:
    # odd patch: both Gaussians have their centre on a voxel; patch 13 along one axis: MONAI's lower bound of 1e-3 is
    # not reached
    net, image = Counting(), torch.randn(2, 25, 3, 2)
    with torch.no_grad():
        theirs = sliding_window_inference(
            image[None], (13, 1, 1), 4, net, overlap=0.5, mode="gaussian", sigma_scale=0.125
        )[0]
    torch.testing.assert_close(predict_logits(net, image, (13, 1, 1), 3), theirs)


@pytest.mark.parametrize("shape", [(16, 16, 12), (20, 17, 30)])
def test_mirroring_equals_explicit_flips(shape: tuple[int, ...]) -> None:
    net, image = Counting(), torch.randn(2, *shape)
    mirrored = predict_logits(net, image, (16, 16, 12), 3, mirror_axes=(0, 2))

    def average(x: Tensor) -> Tensor:
        return sum(net(x.flip(axes)).flip(axes) for axes in [(), (2,), (4,), (2, 4)]) / 4

    torch.testing.assert_close(mirrored, predict_logits(average, image, (16, 16, 12), 3))


def test_2d_patches_go_through_every_slice() -> None:
    net, image = Counting(2), torch.randn(2, 3, 30, 20)
    logits = predict_logits(net, image, (16, 12), 3, tile_batch=4)
    for z in range(3):
        as_volume = predict_logits(lambda x: net(x[:, :, 0])[:, :, None], image[:, z : z + 1], (1, 16, 12), 3)
        torch.testing.assert_close(logits[:, z : z + 1], as_volume)


def test_tiles_are_batched_and_a_single_tile_is_run_once() -> None:
    net = Counting()
    predict_logits(net, torch.randn(2, 24, 24, 24), (16, 16, 16), 3, tile_batch=3)
    assert net.tiles == [3, 3, 2]
    net.tiles.clear()
    predict_logits(net, torch.randn(2, 10, 16, 12), (16, 16, 16), 3)
    assert net.tiles == [1]


def test_constant_tiles_are_run_once_and_give_the_same_logits() -> None:
    net, image = Counting(), torch.full((2, 64, 16, 16), -1.5)
    image[:, :16] = torch.randn(2, 16, 16, 16)
    logits = predict_logits(net, image, (16, 16, 16), 3, tile_batch=1, mirror_axes=(0,))
    assert sum(net.tiles) == 2 * 2 + 1  # two mirrored tiles with content, the other five are one
    plain = predict_logits(lambda x: net(x), image + 1e-3 * torch.rand(2, 64, 1, 1), (16, 16, 16), 3, mirror_axes=(0,))
    assert (logits - plain).abs().max() < 1e-2
    net.tiles.clear()
    predict_logits(net, torch.cat((image[:, 16:], image[:, 16:] + 1), 1), (16, 16, 16), 3)
    assert sum(net.tiles) == 3  # one per constant, and one that holds both


def test_blending_an_identity_returns_the_image() -> None:
    image = torch.randn(2, 23, 40, 17)
    torch.testing.assert_close(predict_logits(lambda x: x, image, (16, 16, 12), 2, step_size=0.4), image)


def test_tiles_cover_the_axis_evenly() -> None:
    for size in range(10, 80):
        starts = tile_starts(size, 10, 0.5)
        assert starts[0] == 0 and starts[-1] == size - 10
        assert max(np.diff(starts), default=0) <= 6  # 5, rounded
    assert tile_starts(10, 10, 0.5) == [0]


def test_weight_equals_the_filtered_delta() -> None:
    for patch in (8, 15, 40):
        delta = np.zeros((patch, patch))
        delta[patch // 2, patch // 2] = 1
        expected = gaussian_filter(delta, patch / 8, mode="constant")
        line = gaussian_weight(patch)
        np.testing.assert_allclose(np.outer(line, line), expected / expected.max(), rtol=1e-10)
        assert line.min() > 0


@pytest.mark.parametrize("step", [0.0, -0.5, 1.5])
def test_step_sizes_outside_the_patch_are_refused(step: float) -> None:
    with pytest.raises(RunError, match="step size"):
        predict_logits(Counting(), torch.randn(2, 8, 8, 8), (8, 8, 8), 3, step_size=step)


@pytest.mark.parametrize("patch", [(16, 16, 12), (9, 16, 12), (16, 12)])
@pytest.mark.parametrize("shape", [(50, 20, 14), (5, 9, 30), (16, 16, 12), (37, 16, 12)])
def test_slices_that_are_given_away_early_are_the_same(
    shape: tuple[int, ...], patch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliding_window, "_SLICE_BYTES", 4 * 3 * 20 * 14 * 4)  # 2D: a few slices at a time
    net, image = Counting(len(patch)), torch.randn(2, *shape)
    image[:, :, : shape[1] // 2] = 0.5  # tiles without content, too
    settings = {"mirror_axes": (0, 1), "step_size": 0.4}
    pieces = list(predict_rows(net, image, patch, 3, **settings))  # type: ignore[arg-type]
    expected = predict_logits(net, image, patch, 3, **settings)  # type: ignore[arg-type]
    assert [piece.shape[1] for piece in pieces] == [1] * shape[0]
    torch.testing.assert_close(torch.cat(pieces, 1), expected, atol=1e-5, rtol=1e-5)


def test_slices_are_given_away_before_the_window_has_reached_the_end() -> None:
    net, image = Counting(), torch.randn(2, 64, 16, 12)
    rows = predict_rows(net, image, (16, 16, 12), 3)
    next(rows)
    assert sum(net.tiles) == 1
    assert not torch.is_inference_mode_enabled()  # whoever takes a slice goes on as before
    sum(1 for _ in rows)
    assert sum(net.tiles) == 7
