"""What a fold was made from, and what counts as another thing by now."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medkd.core.checkpoint import save_checkpoint
from medkd.core.errors import DataError
from medkd.core.files import write_json
from medkd.core.made_from import MADE_FROM_FILE, changed_inputs, note_inputs, outdated, renew_inputs
from medkd.core.run import DETECTION

DATA = "Dataset900_Boxes"
FULL = "3d_fullres"


def _case(root: Path, case: str, content: str, folder: str = FULL) -> None:
    files = [{"name": "a.nii.gz", "size": 1, "modified": hash(content), "content": content}]
    write_json(root / "preprocessed" / DATA / folder / f"{case}.json", {"recipe": "r", "files": files, "properties": 1})


def _plan(root: Path, patch: int, configuration: str = FULL) -> None:
    write_json(root / "preprocessed" / DATA / "plans.json", {"configurations": {configuration: {"patch": patch}}})


def _own(root: Path, value: float, **more: object) -> Path:
    path = root / "results" / DATA / "teacher" / "fold_0" / "checkpoint_final.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, {"network": {"weight": torch.full((3,), value)}, **more})
    return path


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    """A fold taught by a run of medkd and by a file from elsewhere, on a labelled case and one without label."""
    root = tmp_path / "root"
    _plan(root, 16)
    _case(root, "one", "1")
    _case(root, "two", "2", f"{FULL}/unlabelled")
    (tmp_path / "given.pth").write_bytes(b"weights")
    fold = root / "results" / DATA / "student" / "fold_0"
    note_inputs(fold, FULL, [_own(root, 1.0), tmp_path / "given.pth"], ["one", "two"])
    return fold


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a teacher trained anew": (lambda root: _own(root, 2.0), "teacher/fold_0/checkpoint_final.pt holds other weights"),
    "a file replaced": (lambda root: (root.parent / "given.pth").write_bytes(b"weightS"), "given.pth holds other weig"),
    "a case mended": (lambda root: _case(root, "one", "1b"), "1 of the 2 cases from which .* for example one"),
    "a scan without label": (lambda root: _case(root, "two", "2b", f"{FULL}/unlabelled"), "for example two"),
}
SAME: dict[str, Callable[[Path], object]] = {
    "nothing": lambda root: None,
    "the same weights with another optimiser": lambda root: _own(root, 1.0, epoch=7),
    "another configuration": lambda root: _case(root, "one", "9", "2d"),
    "a further case": lambda root: _case(root, "three", "3"),
    "no teacher any longer": lambda root: shutil.rmtree(root / "results" / DATA / "teacher"),
    "no preprocessed data any longer": lambda root: shutil.rmtree(root / "preprocessed"),
    "another place": lambda root: (
        shutil.move(root, root.parent / "moved") and shutil.copytree(root.parent / "moved", root)
    ),
    "touched": lambda root: os.utime(root.parent / "given.pth", (1, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_and_other_cases_make_a_fold_outdated(fold: Path, change: str) -> None:
    make, sentence = CHANGES[change]
    make(fold.parents[3])
    with pytest.raises(AssertionError, match=sentence):
        assert not changed_inputs(fold, FULL), outdated(fold, FULL)


@pytest.mark.parametrize("change", SAME)
def test_what_does_not_matter_or_cannot_be_known_does_not(fold: Path, change: str) -> None:
    SAME[change](fold.parents[3])
    assert outdated(fold, FULL) is None


def test_a_run_that_was_moved_with_its_root_still_knows_its_teacher(fold: Path, tmp_path: Path) -> None:
    shutil.move(fold.parents[3], tmp_path / "moved")
    _own(tmp_path / "moved", 3.0)
    assert "holds other weights" in str(outdated(tmp_path / "moved" / fold.relative_to(fold.parents[3]), FULL))


def test_another_plan_asks_the_command_which_may_say_that_it_does_not_matter(fold: Path) -> None:
    _plan(fold.parents[3], 24)
    assert "plans.json is another than for" in str(outdated(fold, FULL))
    assert changed_inputs(fold, FULL) is None
    renew_inputs(fold, FULL)
    assert outdated(fold, FULL) is None
    _own(fold.parents[3], 2.0)
    assert "holds other weights" in str(outdated(fold, FULL))  # and the rest is known as before


def test_a_fold_that_does_not_say_it_is_taken_as_it_is_and_a_damaged_record_is_told(fold: Path) -> None:
    _own(fold.parents[3], 2.0)
    (fold / MADE_FROM_FILE).write_text("{")
    with pytest.raises(DataError, match=MADE_FROM_FILE):
        outdated(fold, FULL)
    (fold / MADE_FROM_FILE).unlink()
    assert outdated(fold, FULL) is None


def test_radiographs_are_told_apart_by_pixels_and_boxes_not_by_times(tmp_path: Path) -> None:
    fold = tmp_path / "results" / DATA / "detector" / "fold_0"
    index = tmp_path / "preprocessed" / DATA / DETECTION / "cases.json"

    def store(**changes: object) -> None:
        entry = {"width": 4, "boxes": [[0, 0, 1, 1]], "source": "a.png:1:1", "pixels": "p", **changes}
        write_json(index, {"categories": ["x"], "cases": {"one": entry}})
        os.utime(index, ns=(0, hash(json.dumps(entry)) % 10**15))

    store()
    write_json(tmp_path / "preprocessed" / DATA / "plans.json", {"image_size": 64})
    note_inputs(fold, DETECTION, [], ["one"])
    store(source="a.png:1:2")
    assert outdated(fold, DETECTION) is None
    store(pixels="q")
    assert "preprocessed anew" in str(outdated(fold, DETECTION))
    store(boxes=[])
    assert "preprocessed anew" in str(outdated(fold, DETECTION))
