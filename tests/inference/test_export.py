"""The slab export against a full resize in scikit-image."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from skimage.transform import resize

from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.plan import Configuration, Plan, Resampling
from medkd.inference import export
from medkd.inference.export import GrowingLogits, logits_to_labels, logits_to_probabilities, resampled_slabs
from medkd.preprocessing.properties import CaseProperties
from tests.inference.conftest import LABELS, tiny_plan


def setting(
    native: tuple[int, ...], spacing: tuple[float, ...], transpose: tuple[int, ...] = (0, 1, 2), margin: int = 2
) -> tuple[Plan, Configuration, CaseProperties]:
    plan = replace(tiny_plan(), transpose=transpose)
    turned = tuple(native[a] for a in transpose)
    crop = tuple((margin, n - 1) for n in turned)
    configuration = plan.configuration("3d_fullres")
    return plan, configuration, CaseProperties("a", Geometry.from_spacing(native, spacing), crop, ())


def slow(logits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(
        [resize(c.astype(float), shape, order=1, mode="edge", anti_aliasing=False, clip=True) for c in logits]
    )


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("slab", [1, 2**12, 2**30])
def test_labels_equal_a_full_resize_and_argmax(
    monkeypatch: pytest.MonkeyPatch, transpose: tuple[int, ...], slab: int
) -> None:
    monkeypatch.setattr(export, "SLAB_BYTES", slab)
    native = (25, 33, 41)
    plan, configuration, properties = setting(native, (1.0, 1.2, 0.8), transpose)
    box = tuple(b - a for a, b in properties.crop)
    logits = np.random.default_rng(0).normal(size=(3, 14, 17, 45)).astype(np.float32)
    expected = np.zeros([native[a] for a in transpose], np.uint8)
    expected[tuple(slice(*c) for c in properties.crop)] = slow(logits, box).argmax(0)
    labels = logits_to_labels(torch.from_numpy(logits), properties, plan, configuration, LABELS)
    assert labels.shape == native and labels.dtype == np.uint8
    assert (labels == expected.transpose(plan.transpose_back)).mean() > 0.9999  # ties at float32 rounding


def test_slabs_equal_the_full_resize() -> None:
    logits = torch.randn(3, 9, 12, 31)
    slabs = torch.cat([slab for _, slab in resampled_slabs(logits, (20, 25, 17), (1, 1, 1))], 1)
    np.testing.assert_allclose(slabs.numpy(), slow(logits.numpy(), (20, 25, 17)), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_coarse_axis_is_resampled_by_the_nearest_slice(axis: int) -> None:
    spacing = tuple(5.0 if a == axis else 1.0 for a in range(3))
    native = (20, 22, 24)
    plan, configuration, properties = setting(native, spacing, margin=0)
    properties = replace(properties, crop=tuple((0, n) for n in native))
    logits = np.random.default_rng(0).normal(size=(3, 40, 40, 40)).astype(np.float32)
    index = np.floor(40 / native[axis] * (np.arange(native[axis]) + 0.5)).astype(int)
    plane = tuple(1 if a == axis else n for a, n in enumerate(native))
    expected = np.concatenate([slow(np.take(logits, [i], axis + 1), plane) for i in index], axis + 1).argmax(0)
    found = logits_to_labels(logits, properties, plan, configuration, LABELS)
    assert (found == expected).mean() > 0.9999
    linear = replace(configuration, resampling=Resampling(force_separate_z=False))
    assert (logits_to_labels(logits, properties, plan, linear, LABELS) != expected).mean() > 0.01


@pytest.mark.parametrize("depth", [14, 22, 40])
@pytest.mark.parametrize("slab", [1, 2**12, 2**30])
def test_logits_that_are_made_meanwhile_give_the_same_labels(
    monkeypatch: pytest.MonkeyPatch, depth: int, slab: int
) -> None:
    monkeypatch.setattr(export, "SLAB_BYTES", slab)
    plan, configuration, properties = setting((25, 33, 41), (1.0, 1.2, 0.8))  # 22 slices within the crop
    logits = torch.randn(3, depth, 17, 45)
    growing = GrowingLogits(iter(logits.split(2, dim=1)), logits.shape)
    expected = logits_to_labels(logits, properties, plan, configuration, LABELS)
    assert np.array_equal(logits_to_labels(growing, properties, plan, configuration, LABELS), expected)


def test_slices_that_were_used_are_forgotten() -> None:
    made: list[int] = []

    def pieces() -> Iterator[torch.Tensor]:
        for place in range(10):
            made.append(place)
            yield torch.full((2, 1, 3, 3), float(place))

    logits = GrowingLogits(pieces(), (2, 10, 3, 3))
    assert logits.between(0, 3).unique().tolist() == [0, 1, 2] and made == [0, 1, 2]
    assert logits.between(2, 4).unique().tolist() == [2, 3] and made == [0, 1, 2, 3]
    for first in range(2, 9):  # as interpolation asks: each slice together with its neighbour
        assert logits.between(first, first + 2).unique().tolist() == [first, first + 1]
        held = {piece.untyped_storage().data_ptr(): piece.untyped_storage().nbytes() for piece in logits._held}
        assert sum(held.values()) <= 2 * 4 * 2 * 9, "what is kept grows with what was asked for"


def test_equal_shapes_are_not_resampled() -> None:
    plan, configuration, properties = setting((10, 11, 12), (1.0, 1.0, 1.0))
    logits = torch.randn(3, 7, 8, 9)
    labels = logits_to_labels(logits, properties, plan, configuration, LABELS)
    assert (labels[2:9, 2:10, 2:11] == logits.argmax(0).numpy()).all()
    assert labels[:2].sum() == labels[9:].sum() == 0


def test_regions_are_painted_in_order() -> None:
    labels = LabelSpec((("background", (0,)), ("whole", (1, 2, 3)), ("core", (3,))), regions=True, order=(1, 3))
    plan, configuration, properties = setting((10, 11, 12), (1.0, 1.0, 1.0))
    logits = torch.full((2, 7, 8, 9), -1.0)
    logits[0, :4], logits[1, :2] = 1, 1
    found = logits_to_labels(logits, properties, plan, configuration, labels)[2:9, 2:10, 2:11]
    assert (found[:2] == 3).all() and (found[2:4] == 1).all() and (found[4:] == 0).all()


def test_probabilities_are_the_softmax_of_resampled_logits_and_background_outside() -> None:
    plan, configuration, properties = setting((25, 33, 41), (1.0, 1.0, 1.0), (1, 0, 2))
    logits = np.random.default_rng(0).normal(size=(3, 14, 17, 45)).astype(np.float32)
    found = logits_to_probabilities(logits, properties, plan, configuration, LABELS)
    assert found.shape == (3, 25, 33, 41) and found.dtype == np.float16
    box = tuple(b - a for a, b in properties.crop)
    inside = found.transpose(0, 2, 1, 3)[(slice(None), *(slice(*c) for c in properties.crop))]
    np.testing.assert_allclose(inside, softmax(slow(logits, box), 0), atol=1e-3)
    np.testing.assert_allclose(found.astype(np.float32).sum(0), 1, atol=2e-3)
    assert (found[0, :2] == 1).all()


def test_memory_does_not_grow_with_classes_times_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch allocates outside tracemalloc, so the largest tensor that decoding sees stands for the working memory."""
    monkeypatch.setattr(export, "SLAB_BYTES", 2**16)
    sizes = {}
    for depth in (32, 128):
        logits = torch.randn(20, depth // 2, 16, 16)
        sizes[depth] = max(slab.numel() * 4 for _, slab in resampled_slabs(logits, (depth, 24, 24), (1, 1, 1)))
        plan, configuration, properties = setting((depth, 24, 24), (1.0, 1.0, 1.0), margin=0)
        properties = replace(properties, crop=((0, depth), (0, 24), (0, 24)))
        tracemalloc.start()
        logits_to_labels(logits, properties, plan, configuration, LabelSpec.from_names([str(i) for i in range(19)]))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * depth * 24 * 24 + 2**20
    assert sizes[32] == sizes[128] <= 2**16
