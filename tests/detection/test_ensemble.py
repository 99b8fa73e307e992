"""Weighted boxes fusion."""

from __future__ import annotations

import numpy as np
import pytest

from medkd.detection.ensemble import fuse
from medkd.evaluation.detection.predictions import Boxes


def test_one_model_keeps_its_boxes() -> None:
    only = Boxes.of([[0, 0, 4, 4], [0, 0, 4, 5]], [0, 0], [0.9, 0.8])
    assert fuse([only]) is only


def test_boxes_on_each_other_become_their_weighted_mean() -> None:
    first = Boxes.of([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 0], [0.9, 0.4])
    second = Boxes.of([[1, 1, 11, 11]], [0], [0.3])
    fused = fuse([first, second])
    np.testing.assert_allclose(
        fused.boxes, [(0.9 * np.array([0, 0, 10, 10]) + 0.3 * np.array([1, 1, 11, 11])) / 1.2, [50, 50, 60, 60]]
    )
    np.testing.assert_allclose(fused.scores, [(0.9 + 0.3) / 2, 0.4 / 2])  # what one of two models found counts half


def test_equal_models_change_nothing_and_classes_stay_apart() -> None:
    boxes = Boxes.of([[0, 0, 10, 10], [0, 0, 10, 10], [30, 30, 40, 40]], [0, 1, 1], [0.9, 0.8, 0.2])
    fused = fuse([boxes, boxes, boxes])
    np.testing.assert_allclose(fused.boxes, boxes.boxes)
    np.testing.assert_array_equal(fused.classes, boxes.classes)
    assert fused.scores == pytest.approx(boxes.scores)


def test_nothing_found_is_nothing() -> None:
    assert len(fuse([Boxes.of([], [], []), Boxes.of([], [], [])])) == 0
