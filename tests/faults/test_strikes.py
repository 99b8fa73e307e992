"""A command that is struck at any moment and run again ends like an unbroken one, and leaves nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.killing import Ended, Fault, run_until, warm_up
from tests.faults.small_disk import enlarge, pages_of, small_disk
from tests.faults.stages import BUNDLE, CACHED, CONVERT, DETECTOR, NNUNET, ONNX, STAGES, Stage
from tests.faults.tally import Tally, is_every, is_full, share_of
from tests.faults.trees import differing, digests, leftovers, state

# how many moments each fault strikes at where not all are tried
_SMALL: dict[Fault, int] = {
    "kill": 4,
    "terminate": 1,
    "interrupt": 1,
    "disk full": 2,
    "read-only": 1,
    "no permission": 1,
    "cut short": 1,
}


@dataclass
class Scene:
    """Where a command is struck again and again.

    Attributes:
        stage: the command.
        start: what it starts from.
        work: a copy of that, for one strike.
        moments: how often the unbroken command changes the file system.
        sizes: of the files that it leaves, in bytes.
        pages: of 4096 bytes that everything takes on the disk at its end.
        expected: what the unbroken command leaves.
        known: state that a strike left → what running the command again made of it.
    """

    stage: Stage
    start: Path
    work: Path
    moments: int
    sizes: tuple[int, ...]
    pages: int
    expected: dict[str, str]
    known: dict[str, str] = field(default_factory=dict)

    def begin_anew(self) -> None:
        """Throw away what the last strike left."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.start, self.work, symlinks=True)

    def mended(self) -> str:
        """What is wrong after the command was run again; a state that was met before is not tried twice."""
        key = state(self.work)
        if key not in self.known:
            self.known[key] = self._run_again()
        return self.known[key]

    def _run_again(self) -> str:
        # what has not begun has nothing to continue
        again = self.stage.again if (self.work / self.stage.output).exists() else ()
        ended = run_until(self.stage.command, self.stage.line(self.work, *again), self.work)
        differs = differing(self.expected, digests(self.work / self.stage.output))
        left = leftovers(self.work)
        failed = f"status {ended.status}: {ended.said[-600:]}" if ended.status else ""
        return f"{failed} differs {differs}, left {left[:3]}" if failed or differs or left else ""

    def strike(self, fault: Fault, moment: int) -> tuple[bool, int, str]:
        """Whether a fault is held, how many temporary files it left for the next run, and what happened."""
        self.begin_anew()
        struck = run_until(self.stage.command, self.stage.line(self.work), self.work, moment, fault)
        left = leftovers(self.work)
        ended_well = {
            "kill": struck.status == -9,
            "terminate": struck.status == -15,
            "interrupt": (struck.status == 130 or self._is_complete(struck)) and "Traceback" not in struck.said,
        }.get(fault, struck.is_one_sentence or self._is_complete(struck))
        tidy = fault in ("kill", "terminate", "interrupt") or not left  # of signals the next run sweeps
        wrong = self.mended()
        what = (
            f"{fault} at {moment}: status {struck.status}, left {left[:3]}, said {struck.said[-600:]}; again: {wrong}"
        )
        return ended_well and tidy and not wrong, len(left), what

    def _is_complete(self, struck: Ended) -> bool:
        """Whether the fault touched nothing that mattered, for example since only removals were left to do."""
        return struck.status == 0 and not differing(self.expected, digests(self.work / self.stage.output))

    def fill(self, pages: int) -> tuple[bool, str]:
        """Whether a command ends well on a disk with so many pages too few for all that it writes."""
        shutil.rmtree(self.work, ignore_errors=True)
        with small_disk(self.work, self.pages - pages):
            shutil.copytree(self.start, self.work, symlinks=True, dirs_exist_ok=True)
            struck = run_until(self.stage.command, self.stage.line(self.work), self.work)
            is_complete = self._is_complete(struck)
            enlarge(self.work)
            wrong = self._run_again()
        what = f"{pages} pages too few: {struck}; again: {wrong}"
        return (struck.is_one_sentence or is_complete) and not wrong, what


@pytest.fixture(scope="module", params=STAGES, ids=lambda stage: stage.name.replace(", ", "-"))
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    stage: Stage = request.param
    if stage in (ONNX, BUNDLE, NNUNET, DETECTOR) and not is_full():
        pytest.skip("a run takes seconds; MEDKD_FAULTS=full")
    folder = tmp_path_factory.mktemp("scene")
    start, work = folder / "start", folder / "work"
    stage.start(start)
    shutil.copytree(start, work, symlinks=True)
    warm_up(stage.command, stage.line(work), work)
    shutil.rmtree(work)
    shutil.copytree(start, work, symlinks=True)
    unbroken = run_until(stage.command, stage.line(work), work)
    output = work / stage.output
    expected = digests(output)
    assert unbroken.status == 0 and expected, f"the unbroken run: {unbroken}"
    sizes = {path.stat().st_size for path in output.rglob("*") if path.is_file()}
    yield Scene(stage, start, work, unbroken.changes, tuple(sorted(sizes)), pages_of(work), expected)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("fault", _SMALL)
def test_struck_and_run_again_ends_like_unbroken(scene: Scene, fault: Fault, request: pytest.FixtureRequest) -> None:
    tally = Tally(f"{fault}: {scene.stage.name}", 0, [])
    stride = 1 if is_every() or not is_full() else scene.stage.stride
    moments: Sequence[int] = range(tuple(_SMALL).index(fault) % stride, scene.moments, stride)
    if fault == "cut short":  # no room for the last byte of a file, nor for its second half
        moments = sorted({most for size in scene.sizes if size for most in (size - 1, size // 2)})
    small = min(_SMALL[fault], 2) if scene.stage.stride > 1 else _SMALL[fault]
    for moment in share_of(moments, small):
        held, left, what = scene.strike(fault, moment)
        tally.check(held, what)
        tally.left += left
    tally.finish(request)


@pytest.mark.slow
def test_a_disk_that_is_full_in_earnest(scene: Scene, request: pytest.FixtureRequest) -> None:
    """Writing fails at any byte, in libraries of C++ and in memory maps as well."""
    if scene.stage not in (CONVERT, CACHED) and not is_full():
        pytest.skip("MEDKD_FAULTS=full")
    tally = Tally(f"a small disk: {scene.stage.name}", 0, [])
    missing = range(1, scene.pages - pages_of(scene.start) + 1)
    sizes = missing[:: max(1, scene.stage.stride * len(missing) // 40)]
    for pages in share_of(sizes, 1):
        tally.check(*scene.fill(pages))
    tally.finish(request)
