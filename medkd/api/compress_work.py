"""The parts of a compression, each of which is done once: what they need, whether they are done, how to do them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from medkd.api.compress_earlier import earlier_students, refuse_other_table
from medkd.api.compress_settings import HANDED_OVER, TAUGHT, check_numbers
from medkd.api.compression import Compression, read_compression
from medkd.api.scores import measure, score_teacher
from medkd.core.dataset import DatasetDescription, every_case, labelled_cases
from medkd.core.errors import OutdatedError, RunError
from medkd.core.paths import Root
from medkd.core.plan import Plan
from medkd.core.run import DATASET_FILE, FINAL, PLANS_FILE, VALIDATION_SUMMARY
from medkd.core.timing import Timings
from medkd.evaluation.done import why_not_done, why_not_scored
from medkd.evaluation.report.write import make_report
from medkd.models.base import ModelFolder, find_model
from medkd.models.like import plan_like
from medkd.preprocessing.current import stale_cases
from medkd.preprocessing.store import CaseStore
from medkd.tasks import SEGMENTATION, refuse_unknown, task_of_dataset
from medkd.training import run as training_run
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import SegmentationTask
from medkd.training.teacher_scores import find_scored
from medkd.training.unlabelled import learns_without_labels

_NARROWED = ("plain_unet", "resenc_unet_")
_START = "start"  # in the tags of students that start from the teacher
_REPETITIONS = 3


@dataclass(frozen=True)
class Step:
    """A part of the work.

    Attributes:
        text: what it does.
        done: whether it was finished before.
        run: does it.
        trains: whether it is a training, which takes as long as any other.
    """

    text: str
    done: Callable[[], bool]
    run: Callable[[], Any]
    trains: bool = False


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be compressed, and how.

    Attributes:
        model: as it was given, absolute where it is a folder.
        found: the teacher.
        network: its name, and that of its students.
        dataset: full name.
        root: medkd's folder.
        sizes: in rising order.
        tolerance: of the Dice.
        fold: as text.
        method: that teaches.
        settings: of every training.
    """

    model: str
    found: ModelFolder[Any]
    network: str
    dataset: str
    root: Root
    sizes: tuple[int, ...]
    tolerance: float
    fold: str
    method: str
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: str | Path,
        dataset: str | int,
        sizes: Sequence[int],
        tolerance: float,
        fold: int | str,
        method: str,
        root: str | Path | None,
        settings: Mapping[str, Any],
    ) -> Work:
        """Check everything that can be checked at once."""
        check_numbers(sizes, tolerance, fold)
        refuse_unknown("compress", settings, HANDED_OVER)
        place = Root.resolve(root)
        name = place.dataset_name(dataset)
        if task_of_dataset(name, root).name != SEGMENTATION:
            raise RunError(
                f"{name} is none for segmentation, and what is divided are the channels of U-Nets; start a smaller "
                f"detector with medkd_train_distill {name} TEACHER STUDENT none {fold} --init teacher."
            )
        found = find_model(str(model), place.results / name, TrainOptions.configuration, SEGMENTATION)
        if not found.prepares and found.path.parent != place.results / name:
            raise RunError(
                f"{found.path}: expected a run of {name}, below {place.results / name}, or a model from elsewhere; "
                "give one of these."
            )
        network = _network_of(found)
        _refuse_without_labels(place.raw_dataset(name), network, fold, sizes[0])
        return cls(
            network=network,
            model=str(Path(model).absolute()) if Path(model).exists() else str(model),
            found=found,
            dataset=name,
            root=place,
            sizes=tuple(sorted(sizes)),
            tolerance=tolerance,
            fold=str(fold),
            method=method,
            settings=settings,
        )

    @property
    def task(self) -> SegmentationTask:
        """The only one."""
        return SegmentationTask()

    @property
    def results(self) -> Path:
        """Where the runs lie."""
        return self.root.results / self.dataset

    @property
    def above(self) -> Path:
        """The folder that holds ``raw``, ``preprocessed`` and ``results``."""
        return self.root.results.parent

    @property
    def summary(self) -> Path:
        """Where the table is kept: one per teacher, method, fold and tag."""
        tag = self.settings.get("tag")
        words = [f"compress_{self.found.name}", *([self.method] if self.method != "none" else [])]
        words += [f"fold{self.fold}"] if self.fold != "0" else []
        return self.results / f"{'__'.join(words)}{f'_{tag}' if tag else ''}.json"

    def options(self, size: int, *, start: bool) -> TrainOptions:
        """Of a student; the one alone has random weights."""
        tag = self.settings.get("tag")
        if start:
            tag = f"{_START}_{tag}" if tag else _START
        left_out = ("tag",) if start else ("tag", *TAUGHT)
        own = {key: value for key, value in self.settings.items() if key not in left_out}
        return TrainOptions(
            root=self.above,
            width_divisor=size,
            init="teacher" if start else "random",
            configuration=self.found.describe().configuration.name,
            resume=True,
            tag=tag,
            **own,
        )

    def students(self) -> list[TrainOptions]:
        """One per size, and the one alone, which has the middle size."""
        started = [self.options(size, start=True) for size in self.sizes]
        return [*started, self.options(self.sizes[len(self.sizes) // 2], start=False)]

    def steps(self) -> list[Step]:
        """Everything, in order."""
        steps = [Step("plan and preprocess like the teacher", self.is_prepared, self.prepare)]
        steps.append(Step("score the teacher", self.is_scored, self.score))
        for options in self.students():
            kind = "that starts from the teacher" if options.init == "teacher" else "alone"
            text = f"student with 1/{options.width_divisor} of the channels, {kind}"
            steps.append(Step(text, partial(self.is_trained, options), partial(self.train, options), trains=True))
        steps.append(Step("measure a scan with each, in turns", self.is_measured, self.measure))
        steps.append(Step("report", lambda: False, self.report))
        return steps

    def is_prepared(self) -> bool:
        """Whether all cases are stored as the plan says: those with labels, and those without where the method learns
        on them and the teacher knows how they are prepared. Of a run of medkd the trainings say which are missing.
        """
        folder = self.root.preprocessed / self.dataset
        if not (folder / PLANS_FILE).exists():
            return False
        name = self.found.describe().configuration.name
        plan = Plan.load(folder / PLANS_FILE)
        if name not in plan.configurations:
            return False
        raw = self.root.raw_dataset(self.dataset)
        description = DatasetDescription.load(raw / DATASET_FILE)
        store = CaseStore(folder / name)
        cases = every_case(raw, description) if self._needs_unlabelled() else labelled_cases(raw, description)
        if store.unfinished or not {files.case for files in cases} <= {*store.cases(), *store.unlabelled.cases()}:
            return False
        return not stale_cases(store, plan, plan.configuration(name), description.labels)

    def _needs_unlabelled(self) -> bool:
        drawn = self.settings.get("unlabelled_share") != 0
        return self.found.prepares and drawn and learns_without_labels(self.method)

    def prepare(self) -> None:
        """Only a teacher from elsewhere knows how."""
        if not self.found.prepares:
            raise RunError(
                f"{self.dataset} is not preprocessed as {self.model} needs it; run medkd_plan_and_preprocess -d "
                f"{self.dataset}."
            )
        plan_like(
            self.dataset,
            self.found,
            root=self.above,
            workers=self.settings.get("workers") or None,
            strict=bool(self.settings.get("strict")),
        )

    def teacher_run(self) -> Path | None:
        """The run folder that holds the teacher's scores of the fold; None where there is none yet."""
        if not self.found.prepares:
            run, fold = self.found.path, self.found.path / f"fold_{self.fold}"
            return run if (fold / VALIDATION_SUMMARY).exists() and why_not_scored(fold) is None else None
        return find_scored(self.results, self.found, self.fold)

    def is_scored(self) -> bool:
        """Whether the teacher's scores are there."""
        return self.teacher_run() is not None

    def score(self) -> None:
        """Score a teacher from elsewhere; a run of medkd was scored when it was trained."""
        if not self.found.prepares:
            raise RunError(
                why_not_scored(self.found.path / f"fold_{self.fold}")
                or f"{self.found.path} has no scores of fold {self.fold}; train it to its end, or continue it with "
                "--continue, which validates it."
            )
        score_teacher(self.dataset, self.found.path, self.fold, root=self.above, device=self.settings.get("device"))

    def folder(self, options: TrainOptions) -> Path:
        """The fold folder of a student.

        Raises:
            MedkdError: it holds another run, or the student cannot be trained.
        """
        key = options.width_divisor, options.init
        if key not in self._folders:  # a job reads plan and store, and says its warnings
            data = training_run.read_fold(self.task, self.dataset, self.fold, options, write=False)
            job = training_run.make_job(self.task, data, self.network, self.found, self.method_of(options))
            self._folders[key] = job.folder
        return self._folders[key]

    @cached_property
    def _folders(self) -> dict[tuple[int, str], Path]:
        """Those that were asked for, by divisor and start."""
        return {}

    @cached_property
    def _earlier(self) -> tuple[TrainOptions, ...]:
        return earlier_students(self)

    def check_students(self) -> None:
        """All that can be refused of any student, before one is trained.

        Raises:
            MedkdError: the first thing.
        """
        refuse_other_table(self.summary, self.teacher_run())
        for options in self.students():
            self.folder(options)

    def method_of(self, options: TrainOptions) -> str:
        """A student alone learns from nobody."""
        return self.method if options.init == "teacher" else "none"

    def is_trained(self, options: TrainOptions) -> bool:
        """Whether a student was trained to its end with these settings, from what is there now, and scored."""
        if not self.is_prepared():
            return False
        folder = self.folder(options)
        finished = (folder / FINAL).exists() and (folder / VALIDATION_SUMMARY).exists()
        return finished and why_not_done(folder) is None

    def train(self, options: TrainOptions) -> None:
        """Begin, or go on, or begin anew where teacher or data are others than those with which it was begun."""
        self._with(options, training_run.train_distill)

    def rehearse(self, options: TrainOptions) -> list[str]:
        """What :meth:`train` would do, line by line."""

        def dry_run(task: SegmentationTask, dataset: str, teacher: str, network: str, method: str, *rest: Any) -> Any:
            fold, settings = rest
            return training_run.dry_run(task, dataset, network, fold, settings, teacher, method)

        lines: list[str] = self._with(options, dry_run)
        return lines

    def _with(self, options: TrainOptions, action: Callable[..., Any]) -> Any:
        words = (self.task, self.dataset, self.model, self.network, self.method_of(options), self.fold)
        try:
            return action(*words, options)
        except OutdatedError:
            return action(*words, replace(options, resume=False, overwrite=True))

    def finished(self) -> list[Path]:
        """The fold folders of the students that are trained and scored."""
        return [self.folder(options) for options in self.students() if self.is_trained(options)]

    def runs(self) -> list[tuple[str, str]]:
        """Name and role of each run that is trained, also by an earlier call with other sizes, the teacher first."""
        teacher = self.teacher_run()
        found = [] if teacher is None else [(teacher.name, "teacher")]
        every = [*self.students(), *self._earlier]
        every.sort(key=lambda options: (options.init != "teacher", options.width_divisor))
        for options in filter(self.is_trained, every):
            role = "student" if options.init == "teacher" else "alone"
            found.append((self.folder(options).parent.name, role))
        return found

    def is_measured(self) -> bool:
        """Whether all that are trained were measured together on the CPU."""
        timings = Timings.load(self.results)
        if timings is None or not self.is_prepared() or timings.device != "cpu":
            return False
        return set(timings.seconds) >= {name for name, _ in self.runs()}

    def measure(self) -> None:
        """Time all of them on the CPU."""
        names = [name for name, _ in self.runs()]
        measure(self.dataset, root=self.above, runs=names, device="cpu", repetitions=_REPETITIONS)

    def report(self) -> None:
        """Write the page."""
        names = [name for name, _ in self.runs()]
        page = self.summary.with_suffix(".html")
        make_report(self.dataset, root=self.above, output=page, fold=self.fold, runs=names, margin=self.tolerance)

    def result(self) -> Compression:
        """What it came to, which is kept."""
        found = read_compression(
            self.results,
            self.runs(),
            teacher=self.model,
            fold=self.fold,
            tolerance=self.tolerance,
            report=self.summary.with_suffix(".html"),
        )
        found.save(self.summary)
        return found


def _refuse_without_labels(raw: Path, network: str, fold: int | str, size: int) -> None:
    """Students are told apart by their Dice on labelled cases.

    Raises:
        RunError: there are none.
    """
    if not labelled_cases(raw, DatasetDescription.load(raw / DATASET_FILE)):
        raise RunError(
            f"{raw.name} has scans without labels only, and students are chosen here by Dice, which needs labels; "
            f"train one with medkd_train_distill {raw.name} MODEL {network} dml {fold} --init teacher --width-divisor "
            f"{size}, which says how far it agrees with the teacher."
        )


def _network_of(found: ModelFolder[Any]) -> str:
    """The name of a teacher's network.

    Raises:
        RunError: it is none whose channels can be divided.
    """
    name = found.network_name
    if name is None and not found.merges and found.teaching_folds:
        spec = getattr(found.network(found.teaching_folds[0]), "spec", None)
        name = getattr(spec, "name", None)
    if name is None or not name.startswith(_NARROWED):
        raise RunError(
            f"{found.path}: expected a plain_unet or resenc_unet_*, whose channels can be divided, found "
            f"{name or found.title}; train students of other models with medkd_train_distill."
        )
    return name
