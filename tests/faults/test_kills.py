"""A command that is killed at any moment and run again ends like an unbroken one, and leaves nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from medkd.cli import convert, evaluate, plan_and_preprocess, predict, train, train_distill
from tests.dataset_conversion.trees import make_word
from tests.faults.killing import Command, run_until
from tests.faults.tally import Tally, share_of
from tests.faults.trees import differing, digests, leftovers
from tests.training.builders import NAME, make_dataset

_BUDGET = ("--epochs", "2", "--iterations-per-epoch", "2", "--batch-size", "1", "--save-every", "1", "--workers", "0")
_TRAIN = (*_BUDGET, "--device", "cpu")
_SMALL = 6


@dataclass(frozen=True)
class Stage:
    """A command that is killed.

    Attributes:
        name: for the table.
        command: its ``main``.
        arguments: what comes before ``--root``.
        again: what is added when it is run after a kill.
        output: folder below the root whose content must come out equal.
    """

    name: str
    command: Command
    arguments: tuple[str, ...]
    again: tuple[str, ...]
    output: str

    def line(self, root: Path, *more: str) -> Sequence[str]:
        """All arguments for one root; a leading ``@`` stands for the root."""
        placed = [str(root / text[1:]) if text.startswith("@") else text for text in self.arguments]
        return [*placed, *more, "--root", str(root)]


CONVERT = Stage("convert", convert.main, ("word", "@source", "-d", "7", "--name", "Word"), (), "raw")
PREPROCESS = Stage("preprocess", plan_and_preprocess.main, ("-d", "7", "-np", "1", "-c", "2d"), (), "preprocessed")
TRAIN = Stage("train", train.main, ("900", "plain_unet", "0", *_TRAIN), ("--continue",), "results")
DISTIL = Stage(
    "distil, live",
    train_distill.main,
    ("900", "plain_unet", "plain_unet", "kd+at", "0", "--width-divisor", "2", *_TRAIN),
    ("--continue",),
    "results",
)
CACHED = Stage(
    "distil, cached",
    train_distill.main,
    ("900", "plain_unet", "plain_unet", "kd", "0", "--width-divisor", "4", "--targets", "cached", *_TRAIN),
    ("--continue",),
    "results",
)
FIRST_STAGE = Stage(
    "distil, first stage",
    train_distill.main,
    ("900", "plain_unet", "plain_unet", "maskd", "0", "--set", "maskd.iterations=2", *_TRAIN),
    ("--continue",),
    "results",
)
RUN = f"@results/{NAME}/plain_unet__3d_fullres"
PREDICT = Stage(
    "predict",
    predict.main,
    ("-i", "@scans", "-o", "@predicted", "-m", RUN, "-f", "0", "--device", "cpu", "--save-probabilities"),
    ("--continue",),
    "predicted",
)
EVALUATE = Stage(
    "evaluate",
    evaluate.main,
    ("@truth", "@truth", "-o", "@scores/summary.json"),
    (),
    "scores",
)


def _prepare(root: Path, stage: Stage) -> None:
    """What the stage starts from."""
    if stage in (CONVERT, PREPROCESS):
        make_word(root / "source", 3, 1, 1)
        if stage is PREPROCESS:
            assert convert.main(CONVERT.line(root)) == 0
        return
    make_dataset(root, 4)
    if stage is not TRAIN:
        assert train.main(TRAIN.line(root)) == 0
    if stage is PREDICT:
        (root / "scans").mkdir()
        for index in range(2):
            shutil.copy(
                root / "raw" / NAME / "labelsTr" / f"case_{index:02d}.nii.gz", root / "scans" / f"s{index}_0000.nii.gz"
            )
    if stage is EVALUATE:
        shutil.copytree(root / "raw" / NAME / "labelsTr", root / "truth")
        shutil.copy(root / "raw" / NAME / "dataset.json", root / "truth")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    [CONVERT, PREPROCESS, TRAIN, DISTIL, CACHED, FIRST_STAGE, PREDICT, EVALUATE],
    ids=lambda stage: stage.name.replace(", ", "-"),
)
def test_killed_and_run_again_ends_like_unbroken(stage: Stage, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    start, work = tmp_path / "start", tmp_path / "work"
    _prepare(start, stage)
    shutil.copytree(start, work, symlinks=True)
    _, moments = run_until(stage.command, stage.line(work), work)
    expected = digests(work / stage.output)
    assert expected, "the unbroken run wrote nothing"
    tally = Tally(f"kills: {stage.name}", 0, [])
    for moment in share_of(range(moments), _SMALL):
        shutil.rmtree(work)
        shutil.copytree(start, work, symlinks=True)
        killed, _ = run_until(stage.command, stage.line(work), work, moment)
        # what has not begun has nothing to continue
        again = stage.again if (work / stage.output).exists() else ()
        status, _ = run_until(stage.command, stage.line(work, *again), work)
        equal = digests(work / stage.output) == expected
        clean = not leftovers(work)
        tally.check(
            killed and not status and equal and clean,
            f"before change {moment}: killed {killed}, differs {differing(expected, digests(work / stage.output))}, "
            f"left behind {leftovers(work)[:3]}",
        )
    tally.finish(request)
