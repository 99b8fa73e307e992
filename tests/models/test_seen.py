"""Cases of two data sets are the same where their content is, not where they are called alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from medkd.core.errors import LeakError, RunError
from medkd.core.files import read_json, write_json
from medkd.core.run import RUN_FILE, SPLIT_FILE
from medkd.core.splits import Split
from medkd.models.base import ModelFolder, open_model
from medkd.models.guard import choose_teacher
from medkd.models.pretrained import seen_at_place
from medkd.models.seen import seen_here

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0" / "plain_unet__3d_fullres"
OTHERS, OURS = "Dataset001_Others", "Dataset002_Ours"
CASES = [f"scan_{number}" for number in range(4)]
SPLIT = Split(("scan_1", "scan_2", "scan_3"), ("scan_0",))


def test_content_decides_and_names_where_it_is_not_known() -> None:
    known = {
        OTHERS: {"scan_0": "a", "scan_1": "b", "x": "c", "scan_3": ""},
        OURS: {"scan_0": "c", "scan_1": "z", "scan_2": "b", "scan_3": "d"},
    }
    raw = Path("somewhere") / "raw" / OURS

    def found(seen: set[str], home: str = OTHERS) -> frozenset[str]:
        return seen_here(seen, home, CASES, raw, lambda dataset: known.get(dataset, {}))

    def others(*names: str) -> set[str]:
        return {f"{OTHERS}/{name}" for name in names}

    assert found({"scan_0", "scan_1"}) == {"scan_2"} | others("scan_0", "scan_1")  # b, and a is no case here
    assert found({"x"}) == {"scan_0"} | others("x")  # another name, equal voxels
    assert found({"scan_3"}) == {"scan_3"} | others("scan_3")  # nobody knows what it was
    assert found({"scan_0"}, OURS) == {"scan_0"}  # the student's own data set: by name
    assert found({f"{OURS}/scan_1", "x"}) == {"scan_0", "scan_1"} | others("x")  # of a teacher's teacher
    known.clear()
    assert found({"scan_1", "y"}) == {"scan_1"} | others("scan_1", "y")


def run_of(root: Path) -> ModelFolder:
    """A run of other data, whose cases are called as ours."""
    path = Path(shutil.copytree(OLD, root / "results" / OTHERS / OLD.name))
    write_json(path / RUN_FILE, {**json.loads((path / RUN_FILE).read_text()), "dataset": OTHERS})
    for fold in path.glob("fold_*"):
        write_json(fold / SPLIT_FILE, {"train": CASES[:3], "val": CASES[3:]})
    return open_model(path)


def keep(root: Path, dataset: str, contents: Mapping[str, str]) -> None:
    facts = [
        {
            "case": case,
            "orientation": "RAS",
            "spacing": [1, 1, 1],
            "size_mm": [9, 9, 9],
            "channels": [],
            "digest": digest,
        }
        for case, digest in contents.items()
    ]
    empty: dict[str, list[str]] = {"cases": [], "spacings": [], "shapes_after_crop": [], "intensities": []}
    head = {**empty, "median_relative_size_after_crop": 1.0, "schema": 1}
    write_json(root / "preprocessed" / dataset / "fingerprint.json", {**head, "facts": facts})


def test_a_run_of_another_data_set_teaches_where_only_names_are_alike(tmp_path: Path) -> None:
    model, raw = run_of(tmp_path), tmp_path / "raw" / OURS
    with pytest.raises(LeakError, match=r"for example scan_0; .*preprocess both data sets.*\{\"train\": \[\]\}\."):
        choose_teacher(model, 0, SPLIT, CASES, raw)
    keep(tmp_path, OTHERS, {case: f"theirs {case}" for case in CASES})
    keep(tmp_path, OURS, {case: f"ours {case}" for case in CASES})
    chosen = choose_teacher(model, 0, SPLIT, CASES, raw)
    assert chosen.seen == {f"{OTHERS}/{case}" for case in CASES[:3]}
    keep(tmp_path, OURS, {"scan_0": "theirs scan_2", "scan_1": "1", "scan_2": "2", "scan_3": "3"})
    with pytest.raises(LeakError, match=r"on 1 of the 1 cases .* for example scan_0"):
        choose_teacher(model, 0, SPLIT, CASES, raw)
    weights = model.path / "fold_0" / "checkpoint_final.pt"
    assert seen_at_place(weights, CASES, raw) == {"scan_0", *chosen.seen}


def test_what_is_stated_goes_against_names_and_not_against_content(tmp_path: Path) -> None:
    model, raw = run_of(tmp_path), tmp_path / "raw" / OURS
    write_json(model.path / "teacher.json", {"train": []})
    assert choose_teacher(model, 0, SPLIT, CASES, raw).seen == {f"{OTHERS}/{case}" for case in CASES[:3]}
    write_json(model.path / "teacher.json", {"train": ["scan_0"]})
    with pytest.raises(LeakError, match="for example scan_0"):
        choose_teacher(model, 0, SPLIT, CASES, raw)
    keep(tmp_path, OTHERS, {case: f"theirs {case}" for case in CASES})
    keep(tmp_path, OURS, {"scan_1": "theirs scan_2"})
    write_json(model.path / "teacher.json", {"train": []})
    with pytest.raises(RunError, match=r"teacher\.json does not name 1 cases .* for example scan_1; list them"):
        choose_teacher(model, 0, SPLIT, CASES, raw)
    # of its own data set the run knows itself
    own = tmp_path / "raw" / OTHERS
    with pytest.raises(LeakError):
        choose_teacher(model, 0, SPLIT, CASES, own)
    assert read_json(model.path / "teacher.json") == {"train": []}
