"""Labels as ``dataset.json`` states them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.runtime.decoding import labels_of

MIXED = {"outer": 2, "background": 0, "ignore": 4, "rim": 3, "inner": 1}


def test_plain_labels_are_sorted_by_value_whatever_their_order_in_the_file() -> None:
    labels = LabelSpec.from_json(MIXED, None, "here")
    assert labels.entries == (("background", (0,)), ("inner", (1,)), ("outer", (2,)), ("rim", (3,)))
    assert labels.values == (0, 1, 2, 3, 4) and labels.ignore == 4
    assert labels == LabelSpec.from_json(labels.to_json()["labels"], None, "there")


def test_the_outputs_of_sorted_labels_mean_what_the_names_say() -> None:
    labels = LabelSpec.from_json(MIXED, None, "here")
    given = torch.tensor([0, 1, 2, 3]).reshape(1, 1, 4)
    logits = torch.nn.functional.one_hot(labels.encode(given)[0][0, 0], labels.num_outputs).T.float()
    assert labels.decode(logits).tolist() == [0, 1, 2, 3]
    for channel, (_, values) in enumerate(labels.entries):
        assert values == (labels.decode(logits)[channel].item(),)


def test_regions_keep_their_order_which_the_painting_order_refers_to() -> None:
    labels = LabelSpec.from_json({"whole": [2, 1], "background": 0, "core": [1]}, [2, 1], "here")
    assert labels.entries == (("background", (0,)), ("whole", (2, 1)), ("core", (1,))) and labels.order == (2, 1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "a": 1, "b": 1}, "a value each of their own"),
        ({"background": 0, "a": 3, "b": 1}, r"consecutive from 0, found \[0, 1, 3\]"),
        ({"a": 1, "b": 2}, "no label has the value 0"),
        ({"background": 0}, "only the background"),
        ({"background": 0, "a": 1, "ignore": 3}, r"largest label plus one \(2\), found 3"),
        (
            {"background": 0, "whole": [1, 2], "core": [2]},
            r"regions need 'regions_class_order', one label per region \(2\), found \[\]",
        ),
    ],
)
def test_what_nnunet_refuses_is_refused(labels: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=f"^here: .*{message}"):
        LabelSpec.from_json(labels, [], "here")


@pytest.mark.parametrize("count", [2, 61, 255, 300])
def test_the_class_with_the_highest_logit_is_taken_and_of_equal_ones_the_first(count: int) -> None:
    labels = LabelSpec.from_names([f"structure {number}" for number in range(1, count)])
    logits = torch.randint(-5, 5, (count, 3, 5, 7), generator=torch.Generator().manual_seed(count)).float()
    logits[:, 0, 0, 0] = -torch.inf
    logits[0, 0, 0, 1] = torch.inf
    expected = logits.numpy().argmax(0)
    found = labels.decode(logits)
    assert found.dtype == (torch.uint8 if count <= 256 else torch.int16)
    assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(labels.decode(logits.transpose(1, 3)).numpy(), expected.transpose(2, 1, 0))
    assert np.array_equal(labels_of(logits.numpy(), labels, threshold=0), expected)
    assert np.array_equal(labels.decode(logits.bfloat16()).numpy(), expected)


def test_what_is_not_a_number_is_a_known_label() -> None:
    labels = LabelSpec.from_names(["a", "b"])
    logits = torch.full((3, 2, 2, 2), torch.nan)
    assert labels.decode(logits).unique().tolist() == [0]
    assert np.unique(labels_of(logits.numpy(), labels, threshold=0)).tolist() == [0]


@pytest.mark.parametrize("names", [("liver", "liver"), ("liver", "background")])
def test_names_that_stand_twice_are_refused_and_not_left_out(names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=rf"a name of its own, found '{names[1]}' twice"):
        LabelSpec.from_names(names)
