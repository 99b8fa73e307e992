"""Folders that cannot be written to, home among them: a command that needs one says a sentence and changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import small_disk, stages
from tests.faults.killing import Ended, run_until
from tests.faults.stages import Stage
from tests.faults.tally import Tally, is_full
from tests.faults.trees import digests, state

# what a command must write to, and what it only reads
WRITES = [
    (stages.CONVERT, "raw"),
    (stages.PREPROCESS, "preprocessed"),
    (stages.TRAIN, "results"),
    (stages.DISTIL, "results"),
    (stages.CACHED, "preprocessed"),
    (stages.PREDICT, "predicted"),
    (stages.EVALUATE, "scores"),
    (stages.REPORT, "results"),
    (stages.PACK, "exported"),
]
READS = [
    (stages.CONVERT, "source"),
    (stages.PREPROCESS, "raw"),
    (stages.TRAIN, "raw"),
    (stages.DISTIL, "raw"),
    (stages.PREDICT, "results"),
    (stages.PREDICT, "scans"),
    (stages.EVALUATE, "truth"),
    (stages.PACK, "results"),
]


def names(pairs: list[tuple[Stage, str]]) -> list[str]:
    return [f"{stage.name.replace(', ', '-')}: {folder}" for stage, folder in pairs]


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """A folder on a file system that is mounted read-only, as that holds root, too."""
    folder.mkdir(exist_ok=True)
    with small_disk.read_only(folder):
        yield


def run_with(stage: Stage, folder: str, tmp_path: Path) -> tuple[Ended, str, str]:
    """How a command ends with one of its folders read-only, and the folder's state before and after."""
    if stage in (stages.DISTIL, stages.REPORT) and not is_full():
        pytest.skip("takes seconds; MEDKD_FAULTS=full")
    start, work = tmp_path / "start", tmp_path / "work"
    stage.start(start)
    shutil.copytree(start, work, symlinks=True)
    with unwritable(work / folder):
        before = state(work / folder)
        ended = run_until(stage.command, stage.line(work), work)
        return ended, before, state(work / folder)


@pytest.mark.parametrize(("stage", "folder"), WRITES, ids=names(WRITES))
def test_where_nothing_can_be_written_a_command_says_so(
    stage: Stage, folder: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tally = Tally("read-only folders", 0, [])
    ended, before, after = run_with(stage, folder, tmp_path)
    tally.check(ended.is_one_sentence and before == after, f"{stage.name}, {folder}: {ended}")
    tally.finish(request)


@pytest.mark.parametrize(("stage", "folder"), READS, ids=names(READS))
def test_what_is_only_read_may_be_read_only(
    stage: Stage, folder: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tally = Tally("read-only folders", 0, [])
    ended, before, after = run_with(stage, folder, tmp_path)
    made = digests(tmp_path / "work" / stage.output)
    tally.check(ended.status == 0 and bool(made) and before == after, f"{stage.name}, {folder}: {ended}")
    tally.finish(request)


@pytest.mark.parametrize("stage", [stages.TRAIN, stages.PREDICT], ids=lambda stage: stage.name)
def test_a_home_that_cannot_be_written_to_is_not_needed(
    stage: Stage, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    for variable in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(home))
    stage.start(work)
    tally = Tally("read-only folders", 0, [])
    with unwritable(home):
        ended = run_until(stage.command, stage.line(work), work)
    tally.check(ended.status == 0 and "Traceback" not in ended.said, f"{stage.name}: {ended}")
    tally.finish(request)
