"""Result files that were damaged: whatever stands in them, reading ends well or in one sentence that names the file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkd.core.errors import DataError, MedkdError
from medkd.core.run_files import read_cost, read_log
from medkd.core.timing import Timings
from medkd.evaluation.cross_validation import validation_cases
from medkd.evaluation.detection.folder import evaluate_detection_folder
from medkd.evaluation.detection.predictions import DetectionPredictions
from medkd.evaluation.detection.results import DetectionSummary
from medkd.evaluation.segmentation.results import Summary
from tests.evaluation.boxes import random_pair, write_pair
from tests.evaluation.folders import make_dataset, make_run, make_timings

WRONG: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 0.5, 1e308, 10**400, "", "1", "x", [], [1], [[1, 2]], [None], {}, {"a": 1}, {"1": {}}),
    float("nan"),
    float("inf"),
)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    yield path
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def mutated(data: Any, rng: np.random.Generator) -> Any:
    """One value replaced, removed, or given to another key."""
    result = copy.deepcopy(data)
    every = list(places(data))
    path = every[rng.integers(len(every))]
    wrong = WRONG[rng.integers(len(WRONG))]
    if not path:
        return wrong
    parent = result
    for key in path[:-1]:
        parent = parent[key]
    action = rng.integers(3)
    if action == 0:
        del parent[path[-1]]
    elif action == 1 and isinstance(parent, dict):
        parent[str(wrong)] = parent.pop(path[-1])
    else:
        parent[path[-1]] = wrong
    return result


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """Name → a good file, and what reads it and uses what it read."""
    root = tmp_path_factory.mktemp("damaged")
    make_dataset(root, 2)
    fold = make_run(root, "res_unet__3d_fullres", "res_unet", 1.0, {0: [0, 1]}) / "fold_0"
    make_timings(root, {"res_unet__3d_fullres": (1.0, 2.0)})
    predictions, references = write_pair(root / "boxes", random_pair(0, images=3), ("fracture", "text"))
    evaluate_detection_folder(predictions, references).save(predictions / "summary.json")

    def log(path: Path) -> object:
        lines = json.loads(path.read_text())
        lines = lines if isinstance(lines, list) else [lines]
        path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"epoch": 99}]))
        return read_log(path.with_suffix(".jsonl"))

    epochs = [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]
    (root / "log.json").write_text(json.dumps(epochs[:3]))
    return {
        "summary of label maps": (fold / "validation" / "summary.json", lambda path: Summary.load(path).to_json()),
        "summary of boxes": (predictions / "summary.json", lambda path: DetectionSummary.load(path).to_json()),
        "predictions": (predictions / "predictions.json", lambda path: DetectionPredictions.load(path).to_coco()),
        "model.json": (fold / "model.json", read_cost),
        "log.jsonl": (root / "log.json", log),
        "split.json": (fold / "split.json", lambda path: validation_cases(path.parent)),
        "latency.json": (root / "results" / "Dataset004_Test" / "latency.json", lambda path: Timings.load(path.parent)),
    }


NAMES = (
    *("summary of label maps", "summary of boxes", "predictions", "model.json", "log.jsonl", "split.json"),
    "latency.json",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_one_sentence(
    name: str, files: dict[str, tuple[Path, Callable[[Path], object]]], tmp_path: Path
) -> None:
    good, read = files[name]
    data = json.loads(good.read_text())
    path = tmp_path / good.name
    path.write_text(json.dumps(data))
    read(path)
    refused = 0
    for seed in range(250):
        path.write_text(json.dumps(mutated(data, np.random.default_rng(seed))))
        try:
            read(path)
        except MedkdError as error:
            refused += 1
            assert str(tmp_path) in str(error) and "\n" not in str(error) and len(str(error)) < 600, error
    assert refused >= 25  # most of a summary is derived and not read back


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 10_000, "\x00", '{"a": 1}', "[]", "null"])
def test_what_is_no_such_file_at_all(text: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text(text)
    for read in (Summary.load, DetectionSummary.load, DetectionPredictions.load):
        with pytest.raises(DataError, match=r"summary\.json"):
            read(path)


def test_a_line_in_the_middle_of_a_log_that_is_cut_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"epoch": 0}\n{"epoch": 1, "tr\n{"epoch": 2}\n')
    with pytest.raises(DataError, match=r"log\.jsonl: line 2 is not JSON"):
        read_log(path)
