"""Two commands at once on one folder: one of two trainings is refused and names the other's process; what two others
write is what one writes.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from medkd.core.errors import RunError
from medkd.training.lock import fold_lock
from tests.faults.killing import Ended, run_until
from tests.faults.stages import CONVERT, PREDICT, PREPROCESS, TRAIN, Stage
from tests.faults.tally import Tally, mutations
from tests.faults.trees import differing, digests, leftovers

_NOBODY = 2**22 + 5  # no process has this number


def together(works: Sequence[Callable[[], Ended]]) -> list[Ended]:
    """Run all at the same time, each in a process of its own; one that dies without a word fails the test."""
    context = multiprocessing.get_context("fork")

    def tell(work: Callable[[], Ended], writer: Connection) -> None:
        writer.send(work())

    processes, readers = [], []
    for work in works:
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=tell, args=(work, writer))
        process.start()
        writer.close()  # else the end of a process that dies would not be seen
        processes.append(process)
        readers.append(reader)
    try:
        return [reader.recv() for reader in readers]
    finally:
        for process in processes:
            process.kill()
            process.join()


def test_of_many_that_take_a_stale_lock_at_once_one_gets_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tally = Tally("races: a stale lock", 0, [])
    for number in range(mutations(200, 15)):
        folder = tmp_path / f"{number}" / "fold_0"
        if number % 3:
            stale = folder.parent / ".fold_0.lock"
            stale.parent.mkdir()
            stale.write_text(
                f'{{"host": "{os.uname().nodename}", "process": {_NOBODY}, "started": 1}}\n' * (number % 2)
            )
        started, decided = (multiprocessing.get_context("fork").Barrier(4) for _ in range(2))

        def take(folder: Path = folder, started: Barrier = started, decided: Barrier = decided) -> Ended:
            started.wait(60)
            try:
                with fold_lock(folder):
                    decided.wait(60)  # held until all have tried
            except RunError as error:
                decided.wait(60)
                return Ended(0, 1, str(error))
            return Ended(0, 0, str(os.getpid()))

        ended = together([take] * 4)
        winners = [end.said for end in ended if end.status == 0]
        refused = [end.said for end in ended if end.status == 1]
        named = all(f"by the process {winners[0]};" in said for said in refused) if winners else False
        tally.check(len(winners) == 1 and named, f"{len(winners)} of 4 got the lock; {refused}")
    tally.finish(request)


def alone(stage: Stage, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder to work in, which is made anew for every race, and what one command leaves there."""
    stage.start(tmp_path / "start")
    work = begun_anew(tmp_path)
    assert run_until(stage.command, stage.line(work), work).status == 0
    return work, digests(work / stage.output)


def begun_anew(tmp_path: Path) -> Path:
    """The folder as it is before the commands."""
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(tmp_path / "start", work, symlinks=True)
    return work


@pytest.mark.slow
def test_two_equal_trainings_at_once(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tally = Tally("races: train", 0, [])
    work, expected = alone(TRAIN, tmp_path)
    for _ in range(mutations(5, 1)):
        begun_anew(tmp_path)
        ended = together([lambda: run_until(TRAIN.command, TRAIN.line(work), work)] * 2)
        refused = [end for end in ended if end.status != 0]
        one = len(refused) == 1 and refused[0].is_one_sentence
        said = refused[0].said if refused else ""
        named = "by the process" in said or "--overwrite" in said  # one that comes late finds a finished fold
        differs, left = differing(expected, digests(work / TRAIN.output)), leftovers(work)
        tally.check(one and named and not differs and not left, f"{ended}; differs {differs}, left {left}")
    tally.finish(request)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [CONVERT, PREPROCESS, PREDICT], ids=lambda stage: stage.name)
def test_two_equal_commands_at_once_leave_what_one_leaves(
    stage: Stage, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Whichever file comes last is equal. A command may say in a sentence that it was disturbed; again it ends well."""
    tally = Tally(f"races: {stage.name}", 0, [])
    work, expected = alone(stage, tmp_path)
    for _ in range(mutations(10, 1)):
        begun_anew(tmp_path)
        ended = together([lambda: run_until(stage.command, stage.line(work), work)] * 2)
        well = all(end.status == 0 or end.is_one_sentence for end in ended) and any(end.status == 0 for end in ended)
        mended = run_until(stage.command, stage.line(work, *stage.again), work)
        differs = differing(expected, digests(work / stage.output))
        what = f"{ended}, then {mended}; differs {differs}"
        tally.check(well and mended.status == 0 and not differs, what)
    tally.finish(request)
