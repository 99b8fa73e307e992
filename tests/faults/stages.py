"""The commands that are struck, each with what it starts from and where its output lies."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medkd.cli import convert, evaluate, plan_and_preprocess, predict, train, train_distill
from tests.dataset_conversion.trees import make_word
from tests.faults.killing import Command
from tests.training.builders import NAME, make_dataset

_BUDGET = ("--epochs", "2", "--iterations-per-epoch", "2", "--batch-size", "1", "--save-every", "1", "--workers", "0")
_TRAIN = (*_BUDGET, "--device", "cpu")


@dataclass(frozen=True)
class Stage:
    """A command.

    Attributes:
        name: for the table.
        command: its ``main``.
        arguments: what comes before ``--root``.
        again: what is added when it is run again.
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

    def prepare(self, root: Path) -> None:
        """Make what the stage starts from."""
        if self.output in ("raw", "preprocessed"):
            make_word(root / "source", 3, 1, 1)
            if self is not CONVERT:
                assert convert.main(CONVERT.line(root)) == 0
            return
        make_dataset(root, 4)
        if self is not TRAIN:
            assert train.main(TRAIN.line(root)) == 0
        truth = root / "raw" / NAME / "labelsTr"
        if self is PREDICT:
            (root / "scans").mkdir()
            for index in range(2):
                shutil.copy(truth / f"case_{index:02d}.nii.gz", root / "scans" / f"s{index}_0000.nii.gz")
        if self is EVALUATE:
            shutil.copytree(truth, root / "truth")
            shutil.copy(truth.parent / "dataset.json", root / "truth")


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


STAGES = (CONVERT, PREPROCESS, TRAIN, DISTIL, CACHED, FIRST_STAGE, PREDICT, EVALUATE)
