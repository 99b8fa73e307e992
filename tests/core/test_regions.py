"""Regions: what a perfect network predicts scores 1 in every region, or the order is refused with the right one."""

from __future__ import annotations

import json
import re
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec

Regions = dict[str, list[int]]
BRATS: Regions = {"whole_tumor": [1, 2, 3], "tumor_core": [2, 3], "enhancing_tumor": [3]}
THREE_42: Regions = {"whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [1]}
"""nnU-Net's issue 3042: the enhancing tumour is label 1."""


def read(regions: Regions, order: list[int]) -> LabelSpec:
    return LabelSpec.from_json({"background": 0, **regions}, order, "here")


def perfect(spec: LabelSpec) -> tuple[Tensor, Tensor]:
    """Label map with every value, and what is written when the network outputs its regions exactly."""
    labels = torch.tensor(spec.values).reshape(1, 1, -1, 1)
    targets, _ = spec.encode(labels)
    return labels[0, 0], spec.decode(targets[0] * 20 - 10)


def scores_one(spec: LabelSpec) -> bool:
    """By the definition of a region, without the code under test."""
    labels, written = perfect(spec)
    pairs = zip(labels.flatten().tolist(), written.flatten().tolist(), strict=True)
    return all((a in values) == (b in values) for a, b in pairs for _, values in spec.foreground)


@pytest.mark.parametrize(
    ("regions", "order"),
    [
        (BRATS, [1, 2, 3]),
        (THREE_42, [2, 3, 1]),
        ({"whole": [1, 2], "core": [2]}, [1, 2]),
        ({"whole": [1, 2, 3], "core": [2, 3]}, [1, 3]),  # labels 2 and 3 are never told apart
        ({"kidney": [1, 2, 3], "mass": [2, 3], "tumour": [2]}, [1, 3, 2]),
        ({"left": [1], "right": [2], "both": [3, 1]}, [1, 2, 3]),
    ],
)
def test_a_right_order_gives_a_perfect_network_its_score_or_is_refused(regions: Regions, order: list[int]) -> None:
    try:
        spec = read(regions, order)
    except DataError:
        assert regions == {"left": [1], "right": [2], "both": [3, 1]}  # 'both' is painted over 'left'
    else:
        assert scores_one(spec)


def test_every_order_of_every_region_set_is_right_or_refused_with_one_that_is() -> None:
    """The named order is taken from the message and tried."""
    sets: list[Regions] = [BRATS, THREE_42, {"enhancing": [1], "whole": [1, 2, 3], "core": [1, 3]}]
    refused = 0
    for regions in sets:
        for order in permutations((1, 2, 3)):
            try:
                assert scores_one(read(regions, list(order)))
            except DataError as error:
                refused += 1
                text = str(error)
                named = json.loads(re.findall(r"'regions_class_order' to (\[[\d, ]+\])", text)[0])
                listed = re.findall(r"'(\w+)'", text.split("list the regions in the order")[-1].split(" and set")[0])
                again = {name: regions[name] for name in listed} if "list the regions" in text else regions
                assert scores_one(read(again, named))
    assert refused == 5 + 5 + 6


def test_the_order_of_the_report_is_refused_by_name_wherever_a_description_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    content = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, **THREE_42},
        "regions_class_order": [1, 2, 3],
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"dataset.json: .*set 'regions_class_order' to \[2, 3, 1\]\.$"):
        DatasetDescription.load(path)


def test_overlapping_regions_need_one_for_what_they_share() -> None:
    with pytest.raises(DataError, match="add a region for the labels that they have in common"):
        read({"a": [1, 2], "b": [2, 3]}, [1, 3])
    assert scores_one(read({"a": [1, 2], "b": [2, 3], "shared": [2]}, [1, 3, 2]))


def test_a_painted_label_must_exist() -> None:
    with pytest.raises(DataError, match="paints the label 7, which lies in no region"):
        read(BRATS, [1, 2, 7])


def test_a_value_twice_in_a_region_counts_once() -> None:
    """New data with one are refused: it may be the slip for another value."""
    assert read({"whole": [1, 2, 2], "core": [2]}, [1, 2]) == read({"whole": [1, 2], "core": [2]}, [1, 2])
    with pytest.raises(DataError, match=r"here: label 'whole' must hold each value once, found \[1, 1\]"):
        read({"whole": [1, 1]}, [1])
