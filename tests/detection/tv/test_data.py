from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.core.run import Budget
from medkd.detection.plan import DetectionAugmentation
from medkd.detection.tv.data import Sample, TrainingBatches, augment, iterate, load_sample, steps_per_epoch
from tests.detection.tv.builders import SIZE, job, make, small_store

STILL = DetectionAugmentation(fliplr=0.0, scale=0.0, translate=0.0, brightness=0.0)


def _sample(size: int = 96) -> Sample:
    """A white rectangle on black."""
    image = torch.zeros(3, size, size)
    image[:, 30:60, 20:70] = 1.0
    return image, torch.tensor([[20.0, 30, 70, 60]]), torch.tensor([3])


def _box_of(image: torch.Tensor) -> list[float]:
    """Where it is white; the grey border is darker than half."""
    rows, columns = torch.nonzero(image[0] > 0.6, as_tuple=True)
    return [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


@pytest.mark.parametrize("seed", range(12))
def test_boxes_go_where_the_pixels_go(seed: int) -> None:
    rule = DetectionAugmentation(fliplr=0.5, flipud=0.5, scale=0.4, translate=0.2, brightness=0.2)
    image, boxes, classes = augment(_sample(), rule, np.random.default_rng(seed))
    assert (
        image.shape == (3, 96, 96)
        and image.min() >= 0
        and image.max() <= 1
        and type(image) is torch.Tensor is type(boxes)
    )
    assert classes.tolist() == [3]
    assert boxes[0].tolist() == pytest.approx(_box_of(image), abs=1.5)


def test_without_changes_nothing_changes_and_a_turned_box_holds_the_turned_rectangle() -> None:
    image, boxes, _ = augment(_sample(), STILL, np.random.default_rng(0))
    assert torch.allclose(image, _sample()[0], atol=1e-4) and torch.equal(boxes, _sample()[1])
    rule = DetectionAugmentation(fliplr=0.0, scale=0.0, translate=0.0, brightness=0.0, degrees=20.0)
    image, boxes, _ = augment(_sample(), rule, np.random.default_rng(1))
    assert boxes[0].tolist() == pytest.approx(_box_of(image), abs=2.0) and not torch.allclose(boxes, _sample()[1])


def test_boxes_that_leave_the_image_or_get_tiny_are_dropped() -> None:
    image = torch.zeros(3, 96, 96)
    boxes = torch.tensor([[0.0, 0, 9, 9], [40, 40, 60, 60], [50, 50, 51, 58]])
    kept = [
        augment((image, boxes, torch.arange(3)), DetectionAugmentation(translate=0.3), np.random.default_rng(s))[2]
        for s in range(40)
    ]
    assert (
        any(0 not in k for k in kept)
        and any(0 in k for k in kept)
        and all(1 in k for k in kept)
        and all(2 not in k for k in kept)
    )
    _, none, classes = augment(
        (image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)), DetectionAugmentation(), np.random.default_rng(0)
    )
    assert none.shape == (0, 4) and classes.shape == (0,)


def test_a_batch_depends_on_seed_and_step_only(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    given = job(tmp_path, store, make("fcos_r18", classes=1), budget=Budget(3, 4, 2, 1e-3, 3))
    batches = TrainingBatches(given, 4)
    assert len(batches) == 12
    torch.manual_seed(1)
    first = [batches[i] for i in (7, 2, 11)]
    torch.manual_seed(2)
    again = [TrainingBatches(given, 4)[i] for i in (7, 2, 11)]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a[0], b[0]) and all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    assert a[0].shape == (2, 3, SIZE, SIZE) and len(a[1]) == len(a[2]) == 2
    assert not torch.equal(batches[0][0], batches[1][0])
    other = TrainingBatches(job(tmp_path, store, given.detector, budget=Budget(3, 4, 2, 1e-3, 4)), 4)
    assert not torch.equal(batches[0][0], other[0][0])


def test_loader_processes_change_nothing(tmp_path: Path) -> None:
    given = job(tmp_path, small_store(tmp_path), make("fcos_r18", classes=1))
    state = torch.random.get_rng_state()
    alone, helped = (list(iterate(TrainingBatches(given, 2), 1, workers)) for workers in (0, 1))
    assert len(alone) == len(helped) == 3
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, helped, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())  # else a continued run would differ from an unbroken one


def test_an_epoch_without_a_number_of_steps_is_one_pass(tmp_path: Path) -> None:
    given = job(tmp_path, small_store(tmp_path, images=6), make("fcos_r18", classes=1))
    assert steps_per_epoch(given) == 3  # five images, two at a time
    batches = TrainingBatches(given, 3)
    assert sorted(batches.drawn(0)) == sorted(given.train)
    assert (
        steps_per_epoch(job(tmp_path, small_store(tmp_path / "b"), given.detector, budget=Budget(1, 7, 2, 1e-3, 0)))
        == 7
    )


def test_samples_are_letterboxed_with_their_boxes(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    case = store.cases()[0]
    image, boxes, classes = load_sample(store, case, 128)
    assert image.shape == (3, 128, 128) and boxes.dtype == torch.float32 and classes.dtype == torch.int64
    left, top, right, bottom = (int(v) for v in boxes[0].round())
    assert image[0, top + 3 : bottom - 3, left + 3 : right - 3].mean() > 0.8 > image[0].mean() + 0.2
