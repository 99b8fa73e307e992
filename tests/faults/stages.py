"""The commands that are struck, each with what it starts from and where its output lies."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medkd.cli import convert, evaluate, export, plan_and_preprocess, predict, report, train, train_distill
from medkd.core.checkpoint import save_checkpoint
from medkd.core.files import write_json
from tests.dataset_conversion.trees import make_word
from tests.faults.killing import Command
from tests.training.builders import NAME, make_dataset

_BUDGET = ("--epochs", "2", "--iterations-per-epoch", "2", "--batch-size", "1", "--save-every", "1", "--workers", "0")
_TRAIN = (*_BUDGET, "--device", "cpu")
_TRAINED = "plain_unet__3d_fullres"
_MODEL = f"@results/{NAME}/{_TRAINED}"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command.

    Attributes:
        name: for the table.
        command: its ``main``.
        arguments: what comes before ``--root``.
        again: what is added when it is run again.
        output: folder below the root whose content must come out equal.
        start: makes below a root what the command starts from.
        stride: where a run takes seconds, every so-many-th moment is tried, others with every fault: with 6 strikes and
            a stride of 6 every moment is tried with one of them.
    """

    name: str
    command: Command
    arguments: tuple[str, ...]
    again: tuple[str, ...] = ()
    output: str
    start: Callable[[Path], object]
    stride: int = 1

    def line(self, root: Path, *more: str) -> Sequence[str]:
        """All arguments for one root; a leading ``@`` stands for the root."""
        placed = [str(root / text[1:]) if text.startswith("@") else text for text in self.arguments]
        return [*placed, *more, "--root", str(root)]


def _downloaded(root: Path) -> None:
    make_word(root / "source", 3, 1, 1)


def _converted(root: Path) -> None:
    _downloaded(root)
    assert convert.main(CONVERT.line(root)) == 0


def _preprocessed(root: Path) -> None:
    make_dataset(root, 4)


@functools.cache
def _teacher() -> tempfile.TemporaryDirectory[str]:
    """A root with a trained network; made once per process."""
    folder = tempfile.TemporaryDirectory(prefix="medkd-tests-")
    _preprocessed(Path(folder.name))
    assert train.main(TRAIN.line(Path(folder.name))) == 0
    return folder


def _trained(root: Path) -> None:
    shutil.copytree(_teacher().name, root, dirs_exist_ok=True)


def _distilled(root: Path) -> None:
    _trained(root)
    assert train_distill.main(DISTIL.line(root)) == 0


def _with_scans(root: Path) -> None:
    _trained(root)
    (root / "scans").mkdir()
    for index in range(2):
        label = root / "raw" / NAME / "labelsTr" / f"case_{index:02d}.nii.gz"
        shutil.copy(label, root / "scans" / f"s{index}_0000.nii.gz")


def _with_truth(root: Path) -> None:
    _preprocessed(root)
    raw = root / "raw" / NAME
    shutil.copytree(raw / "labelsTr", root / "truth")
    shutil.copy(raw / "dataset.json", root / "truth")


def _distil(name: str, method: str, *more: str) -> Stage:
    return Stage(
        name=f"distil, {name}",
        command=train_distill.main,
        arguments=("900", "plain_unet", "plain_unet", method, "0", "--width-divisor", "2", *more, *_TRAIN),
        again=("--continue",),
        output="results",
        start=_trained,
        stride=6,
    )


def _export(format: str, output: str, stride: int = 1) -> Stage:
    return Stage(
        name=f"export, {format}",
        command=export.main,
        arguments=(_MODEL, "-o", f"@exported/{output}", "--format", format),
        again=("--overwrite",),
        output="exported",
        start=_trained,
        stride=stride,
    )


def _detected(root: Path) -> None:
    from tests.detection.tv.builders import make

    detector = make("fcos_r18")
    spec = detector.spec
    save_checkpoint(root / "theirs" / "best.pt", {"network": detector.state_dict()})
    stated = {"network": spec.name, "categories": list(spec.categories), "train": []}
    more = {"image_size": spec.image_size, "anchor_scale": spec.anchor_scale}
    write_json(root / "theirs" / "teacher.json", {**stated, **more})


CONVERT = Stage(
    name="convert",
    command=convert.main,
    arguments=("word", "@source", "-d", "7", "--name", "Word"),
    output="raw",
    start=_downloaded,
)
PREPROCESS = Stage(
    name="preprocess",
    command=plan_and_preprocess.main,
    arguments=("-d", "7", "-np", "1", "-c", "2d"),
    output="preprocessed",
    start=_converted,
)
TRAIN = Stage(
    name="train",
    command=train.main,
    arguments=("900", "plain_unet", "0", *_TRAIN),
    again=("--continue",),
    output="results",
    start=_preprocessed,
    stride=6,
)
DISTIL = _distil("live", "kd+at")
CACHED = _distil("cached", "kd", "--targets", "cached")
FIRST_STAGE = _distil("first stage", "maskd", "--set", "maskd.iterations=2")
PREDICT = Stage(
    name="predict",
    command=predict.main,
    arguments=("-i", "@scans", "-o", "@predicted", "-m", _MODEL, "-f", "0", "--device", "cpu", "--save-probabilities"),
    again=("--continue",),
    output="predicted",
    start=_with_scans,
)
EVALUATE = Stage(
    name="evaluate",
    command=evaluate.main,
    arguments=("@truth", "@truth", "-o", "@scores/summary.json"),
    output="scores",
    start=_with_truth,
)
REPORT = Stage(name="report", command=report.main, arguments=("900",), output="results", start=_distilled, stride=3)
PACK = _export("folder", "run.zip")
NNUNET = _export("nnunet", "model")
ONNX = _export("onnx", "model", stride=6)
BUNDLE = _export("bundle", "model", stride=6)
DETECTOR = Stage(
    name="export, detector",
    command=export.main,
    arguments=("@theirs/best.pt", "-o", "@exported/model"),
    again=("--overwrite",),
    output="exported",
    start=_detected,
    stride=6,
)
STAGES = (
    CONVERT,
    PREPROCESS,
    TRAIN,
    DISTIL,
    CACHED,
    FIRST_STAGE,
    PREDICT,
    EVALUATE,
    REPORT,
    PACK,
    NNUNET,
    ONNX,
    BUNDLE,
    DETECTOR,
)
