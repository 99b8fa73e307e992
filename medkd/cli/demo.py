"""``medkd_demo``: the whole way, from scans to a distilled student's report, on a phantom or on your own folder."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medkd import api
from medkd.cli.common import parser, run
from medkd.core.allocator import reuse_freed_memory
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.paths import Root
from medkd.core.timing import readable_seconds
from medkd.training.options import TrainOptions

PHANTOM = "Dataset900_Phantom"
_NUMBER = 901  # of the user's own data
_CONFIGURATION = "3d_fullres"
_FOLD = 0
_REPETITIONS = 3


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What the demo does; the defaults take less than five minutes on two CPU cores with the phantom.

    Attributes:
        root: medkd's root folder for the demo.
        data: a Decathlon-style folder, or None for the phantom.
        teacher: network of the teacher.
        student: network of the students.
        method: distillation method.
        teacher_epochs: epochs of the teacher.
        student_epochs: epochs of each student.
        iterations: steps per epoch.
        patch_size: training patch; None takes the plan's.
        cases: training cases of the phantom.
        test_cases: cases of the phantom that no training sees.
        device: as in training.
        overwrite: train again what an earlier demo trained.
    """

    root: Path
    data: Path | None = None
    teacher: str = "res_unet"
    student: str = "unet_tiny"
    method: str = "dist"
    teacher_epochs: int = 9
    student_epochs: int = 12
    iterations: int = 25
    patch_size: tuple[int, ...] | None = (16, 32, 48)
    cases: int = 20
    test_cases: int = 4
    device: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class DemoRow:
    """One network of the final table.

    Attributes:
        name: for people.
        parameters: of the network.
        seconds: for a scan, median, measured in turns with the others.
        validation_dice: mean over the foreground; None where not scored.
        test_dice: the same for unseen scans.
    """

    name: str
    parameters: int
    seconds: float
    validation_dice: float | None
    test_dice: float | None


@dataclass(frozen=True)
class DemoResult:
    """The three rows (teacher, student alone, distilled student), where the report lies, and the seconds it took."""

    rows: tuple[DemoRow, ...]
    report: Path
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_demo``."""
    default = DemoSettings(root=Path())
    arguments = parser(
        "Go the whole way once: data, plan, teacher, student alone, distilled student, prediction of unseen scans, "
        "scores, report.\n"
        "Without --data on a CT phantom, in less than five minutes on two CPU cores. An interrupted demo goes on where "
        "it stopped.\n"
        "Everything goes to ./demo_output, or to --root.",
        "medkd_demo\n  medkd_demo --data Task04_Hippocampus --teacher-epochs 36 --student-epochs 36",
    )
    arguments.set_defaults(root=Path("demo_output"))
    arguments.add_argument(
        "--data", type=Path, help="a Decathlon-style folder (imagesTr, labelsTr) instead of the phantom"
    )
    arguments.add_argument("--teacher", default=default.teacher, help="the large network (default: %(default)s)")
    arguments.add_argument("--student", default=default.student, help="the small network (default: %(default)s)")
    arguments.add_argument("--method", default=default.method, help="distillation method (default: %(default)s)")
    arguments.add_argument("--teacher-epochs", type=int, default=default.teacher_epochs, help="default: %(default)s")
    arguments.add_argument("--student-epochs", type=int, default=default.student_epochs, help="default: %(default)s")
    arguments.add_argument("--iterations-per-epoch", type=int, default=default.iterations, help="default: %(default)s")
    arguments.add_argument(
        "--patch-size", type=int, nargs="+", help="voxels per axis (default: 16 32 48, with --data the plan's)"
    )
    arguments.add_argument("--device", help="cuda, cpu or mps (default: cuda where present)")
    arguments.add_argument("--overwrite", action="store_true", help="train again what an earlier demo trained")
    return run(_main, arguments, argv)


def _main(options: argparse.Namespace) -> None:
    reuse_freed_memory()
    patch = None if options.data else DemoSettings.patch_size
    if options.patch_size:
        patch = tuple(options.patch_size)
    settings = DemoSettings(
        root=options.root,
        data=options.data,
        teacher=options.teacher,
        student=options.student,
        method=options.method,
        teacher_epochs=options.teacher_epochs,
        student_epochs=options.student_epochs,
        iterations=options.iterations_per_epoch,
        patch_size=patch,
        device=options.device,
        overwrite=options.overwrite,
    )
    result = run_demo(settings)
    print(f"\n{table(result.rows)}\n\n{result.seconds:.0f} s; open {result.report.absolute()}")


def run_demo(settings: DemoSettings) -> DemoResult:
    """Go the whole way, printing each step with the command that does the same; finished parts are not done again.

    Raises:
        MedkdError: whatever a step finds wrong with the data or the settings.
    """
    start = time.monotonic()
    steps = _Steps(settings)
    steps.check()
    dataset = steps.data()
    steps.plan(dataset)
    runs = steps.train(dataset)
    test = steps.test_scores(dataset, runs)
    seconds = steps.time(dataset, runs)
    report = steps.report(dataset)
    rows = tuple(_row(name, folder, seconds[name], test.get(name)) for name, folder in runs.items())
    return DemoResult(rows, report, time.monotonic() - start)


class _Steps:
    """The steps of the demo; each announces itself, then calls the function behind the command that it names."""

    def __init__(self, settings: DemoSettings) -> None:
        self.settings = settings
        self.root = Root.resolve(settings.root)
        self._number = 0

    def check(self) -> None:
        """Refuse impossible numbers and absent devices before anything is made."""
        from medkd.core.device import pick_device

        for epochs in (self.settings.teacher_epochs, self.settings.student_epochs):
            self._options(epochs)
        pick_device(self.settings.device)

    def data(self) -> str:
        from dataset_conversion import convert_dataset
        from dataset_conversion.phantom import make_phantom
        from medkd.io.verify import verify_dataset

        given = self.settings.data
        if given is not None:
            self._say(f"Convert {given} and check every case", ["medkd_convert", "msd", given, "-d", _NUMBER])
            converted = convert_dataset("msd", given, _NUMBER, root=self.settings.root)
            if not converted.ok:
                raise DataError(f"{converted.conversion.text()}{converted.verification.text()}".rstrip())
            return converted.folder.name
        self._say(
            f"Make a phantom of {self.settings.cases} training and {self.settings.test_cases} unseen test scans, and "
            "check it"
        )
        make_phantom(self.root.raw / PHANTOM, self.settings.cases, test_cases=self.settings.test_cases)
        report = verify_dataset(self.root.raw / PHANTOM)
        print(report.text().rstrip())
        return PHANTOM

    def plan(self, dataset: str) -> None:
        self._say("Measure, plan and preprocess", ["medkd_plan_and_preprocess", "-d", dataset, "-c", _CONFIGURATION])
        api.plan_and_preprocess(dataset, root=self.settings.root, configurations=[_CONFIGURATION])

    def train(self, dataset: str) -> dict[str, Path]:
        """Train teacher, student alone and distilled student; returns name → fold folder."""
        s = self.settings
        flags: list[object] = ["--iterations-per-epoch", s.iterations]
        if s.patch_size:
            flags += ["--patch-size", *s.patch_size]
        title = f"Train the teacher {s.teacher}, {s.teacher_epochs} epochs of {s.iterations} steps"
        self._say(title, ["medkd_train", dataset, s.teacher, _FOLD, "--epochs", s.teacher_epochs, *flags])
        runs = {f"teacher {s.teacher}": api.train(dataset, s.teacher, _FOLD, self._options(s.teacher_epochs))}
        for method, title in (("none", f"{s.student} alone"), (s.method, f"{s.student} + {s.method}")):
            named = ["medkd_train_distill", dataset, s.teacher, s.student, method, _FOLD]
            command = [*named, "--epochs", s.student_epochs, *flags]
            self._say(f"Train the student: {title}, {s.student_epochs} epochs of {s.iterations} steps", command)
            options = self._options(s.student_epochs)
            runs[title] = api.train_distill(dataset, s.teacher, s.student, method, _FOLD, options)
        return runs

    def test_scores(self, dataset: str, runs: dict[str, Path]) -> dict[str, float]:
        """Predict the test scans with every run; mean Dice by name where there are reference labels."""
        raw = self.root.raw_dataset(dataset)
        description = DatasetDescription.load(raw / "dataset.json")
        images, labels = raw / "imagesTs", raw / "labelsTs"
        if not any(images.glob(f"*{description.file_ending}")):
            return {}
        scores = {}
        for name, fold in runs.items():
            output = self.root.results / dataset / "test_predictions" / fold.parent.name
            self._predict(name, fold, images, output)
            if labels.is_dir():
                scores[name] = self._score(output, labels, description)
        return scores

    def _predict(self, name: str, fold: Path, images: Path, output: Path) -> None:
        command = ["medkd_predict", "-i", images, "-o", output, "-m", fold.parent, "-f", _FOLD, "--no-tta"]
        self._say(f"Predict unseen scans: {name}", command)
        # predictions of weights that were trained anew are made anew
        resume = not self.settings.overwrite
        device = self.settings.device
        report = api.predict(images, output, fold.parent, folds=[_FOLD], mirror=False, device=device, resume=resume)
        if report.failed:
            raise DataError(" ".join(report.failed.values()))

    def _score(self, output: Path, labels: Path, description: DatasetDescription) -> float:
        from medkd.evaluation.segmentation.folder import evaluate_folder

        self._command(["medkd_evaluate", output, labels])
        summary = evaluate_folder(output, labels, description.labels, file_ending=description.file_ending)
        summary.save(output / "summary.json")
        return summary.mean_dice

    def time(self, dataset: str, runs: dict[str, Path]) -> dict[str, float]:
        """Seconds that a scan takes with every network, by name: all together, since this machine does other things."""
        names = [fold.parent.name for fold in runs.values()]
        self._say("Time the networks in turns, from scan to label map; medkd_report --measure does the same")
        device = self.settings.device
        timings = api.measure(dataset, root=self.settings.root, runs=names, repetitions=_REPETITIONS, device=device)
        spreads = {name: timings.of(fold.parent.name) for name, fold in runs.items()}
        return {name: spread.median for name, spread in spreads.items() if spread is not None}

    def report(self, dataset: str) -> Path:
        from medkd.evaluation.report.write import make_report

        self._say("Write the report", ["medkd_report", dataset])
        return make_report(dataset, root=self.settings.root)

    def _options(self, epochs: int) -> TrainOptions:
        s = self.settings
        return TrainOptions(
            root=s.root,
            configuration=_CONFIGURATION,
            epochs=epochs,
            iterations_per_epoch=s.iterations,
            patch_size=s.patch_size,
            device=s.device,
            resume=not s.overwrite,
            overwrite=s.overwrite,
        )

    def _say(self, title: str, command: Sequence[object] | None = None) -> None:
        self._number += 1
        print(f"\n[{self._number}] {title}", flush=True)
        if command:
            self._command(command)

    def _command(self, command: Sequence[object]) -> None:
        words = [str(part) for part in command]
        if words[0] not in ("medkd_predict", "medkd_evaluate"):
            words += ["--root", str(self.settings.root)]
        print(f"    $ {shlex.join(words)}", flush=True)


def _row(name: str, fold: Path, seconds: float, test_dice: float | None) -> DemoRow:
    from medkd.core.files import read_json
    from medkd.evaluation.segmentation.folder import Summary

    model = read_json(fold / "model.json")
    path = fold / "validation" / "summary.json"
    validation = Summary.load(path).mean_dice if path.exists() else None
    return DemoRow(name, int(model["parameters"]), seconds, validation, test_dice)


def table(rows: Sequence[DemoRow]) -> str:
    """The rows as plain text; ``–`` where there is no score."""
    head = ["network", "parameters", "time per scan", "Dice, validation", "Dice, unseen scans"]
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for name, *numbers in lines:
        aligned = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        text.append("  ".join([name.ljust(widths[0]), *aligned]))
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _cells(row: DemoRow) -> list[str]:
    scores = ["–" if dice is None else f"{dice:.3f}" for dice in (row.validation_dice, row.test_dice)]
    return [row.name, f"{row.parameters / 1e6:.2f} M", readable_seconds(row.seconds), *scores]
