"""The tasks that medkd knows: a row each, with the functions behind the commands. A further task is a package and a
row, which :func:`register_task` enters from outside as well (``--import``, or an entry point of ``medkd.tasks``).

Columns name their functions by text and import them when they are called, so that every package may read the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from medkd.core.dataset import SEGMENTATION, dataset_task
from medkd.core.errors import DataError, MedkdError, PlanError, RunError
from medkd.core.limits import option_name
from medkd.core.paths import Root
from medkd.core.plugins import Lazy
from medkd.core.processes import started_together
from medkd.core.registry import Registry
from medkd.core.run import RunDescription
from medkd.core.serial import nearest

Column = Callable[..., Any]
"""A function; of medkd's own tasks a :class:`~medkd.core.plugins.Lazy` one."""

DETECTION = "detection"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row: everything that a command needs to know of a task. Functions of a column take the same arguments, but
    for the options that :attr:`own` names.

    Attributes:
        name: of the task; ``dataset.json``, ``plans.json`` and ``summary.json`` say it under ``task``, and ``run.json``
            as its configuration. Segmentation, which came first, is what says nothing.
        inputs: what is predicted, for sentences: ``scans``.
        own: step (``prepare``, ``train``, ``predict``, ``evaluate``) → options that this task alone takes.
        add_options: called with the parser of a command and a step, adds those of the task's own options that the
            command has not; None where it has all.
        verify: check a raw data set; returns a report.
        contact_sheet: draw what a conversion made; None for no pictures.
        training_options: the dataclass of what may be set for training.
        prepare: plan and preprocess; returns the plan.
        prepare_like: the same for the students of a model that was trained elsewhere; None where there are none.
        describe_plan: the plan as a text.
        plan_line: the content of ``plans.json`` in a few words.
        train: train alone.
        train_distill: train with a teacher; None where nothing can be distilled.
        train_side_by_side: train with several methods at once; None where that is not possible.
        dry_run: what training would do, in lines.
        dry_run_side_by_side: likewise with several methods at once; None where that is not possible.
        foresee: refuse what a training would refuse whatever its data are; None where nothing is known.
        score_teacher: score a teacher that was trained elsewhere; None where there are none.
        load: a model that is loaded once, with ``predict``.
        predict: predict inputs into a folder; returns what became of each.
        measure: time the runs of a data set together, through the predictor; None where that is not possible.
        evaluate: score what a :class:`medkd.evaluation.scoring.ScoringRequest` names; returns a summary.
        summary_text: a summary as a text.
        score_line: the content of a fold's ``summary.json`` in a few words.
        predictions_file: the file that holds this task's predictions; None for a file per case.
        folds: what :func:`medkd.evaluation.cross_validation.cross_validate` asks about folds; None where they cannot
            be put together.
        postprocess: find what improves the predictions of a run's folds: called with run folder, folds, and the folder
            to write to; None for tasks without.
        report: the :class:`~medkd.evaluation.report.data.ReportTask`, or where to import it; None for no report.
        list_networks: rows of ``medkd_list networks``; None for no rows.
        in_several_processes: whether processes that ``torchrun`` started may train one network together; without it
            each would train, and write, all of it.
    """

    name: str
    inputs: str
    own: Mapping[str, Sequence[str]] = field(default_factory=dict)
    add_options: Column | None = None
    verify: Column
    contact_sheet: Column | None = None
    training_options: Lazy | type
    prepare: Column
    prepare_like: Column | None = None
    describe_plan: Column
    plan_line: Column
    train: Column
    train_distill: Column | None = None
    train_side_by_side: Column | None = None
    dry_run: Column
    dry_run_side_by_side: Column | None = None
    foresee: Column | None = None
    score_teacher: Column | None = None
    load: Column
    predict: Column
    measure: Column | None = None
    evaluate: Column
    summary_text: Column
    score_line: Column
    predictions_file: str | None = None
    folds: Column | None = None
    postprocess: Column | None = None
    report: Any = None
    list_networks: Column | None = None
    in_several_processes: bool = False

    def options_of(self, step: str) -> Sequence[str]:
        """Options of a step that this task alone takes."""
        return self.own.get(step, ())

    def column(self, name: str) -> Any:
        """A column that some tasks leave empty, imported.

        Raises:
            RunError: this task leaves it empty.
        """
        found = getattr(self, name)
        if found is None:
            raise RunError(f"There is no {name} for {self.name}; use a data set of another task.")
        return found.load() if isinstance(found, Lazy) else found


TASKS: Registry[Task] = Registry("task", DataError, "medkd.tasks")


def register_task(task: Task) -> Task:
    """Make a task known by its name.

    Raises:
        ValueError: the name is taken.

    >>> register_task(Task(**vars(TASKS["detection"])))
    Traceback (most recent call last):
        ...
    ValueError: task 'detection' is registered twice
    """
    return TASKS.register(task.name)(task)


def every_task() -> Iterator[Task]:
    """The rows of the table."""
    for name in TASKS:
        yield TASKS[name]


register_task(
    Task(
        name=SEGMENTATION,
        inputs="scans",
        own={
            "prepare": ("configurations", "gpu_memory_gb", "like", "orientation", "mirror_axes"),
            "train": (
                "configuration",
                "patch_size",
                "width_divisor",
                "save_every",
                "targets",
                "targets_tta",
                "targets_limit",
                "init",
                "teachers",
                "confidence",
                "mirror_axes",
            ),
            "predict": (
                *("step_size", "mirror", "save_probabilities", "precision", "part", "strict"),
                *("engine", "threads", "format", "seg_kind", "source_series", "terms", "postprocessing"),
            ),
            "evaluate": ("legacy", "hd95", "nsd_tolerance", "metrics", "file_ending"),
        },
        verify=Lazy("medkd.io.verify:verify_dataset"),
        contact_sheet=Lazy("dataset_conversion.contact_sheet:make_contact_sheet"),
        training_options=Lazy("medkd.training.options:TrainOptions"),
        prepare=Lazy("medkd.preprocessing.prepare:plan_and_preprocess"),
        prepare_like=Lazy("medkd.models.like:plan_like"),
        describe_plan=Lazy("medkd.cli.plan_tables:segmentation_plan"),
        plan_line=Lazy("medkd.cli.plan_tables:segmentation_line"),
        train=Lazy("medkd.training.segmentation_task:train"),
        train_distill=Lazy("medkd.training.segmentation_task:train_distill"),
        train_side_by_side=Lazy("medkd.training.segmentation_task:train_side_by_side"),
        dry_run=Lazy("medkd.training.segmentation_task:dry_run"),
        dry_run_side_by_side=Lazy("medkd.training.segmentation_task:dry_run_side_by_side"),
        foresee=Lazy("medkd.training.foresight:foresee"),
        score_teacher=Lazy("medkd.training.teacher_scores:score_teacher"),
        load=Lazy("medkd.inference.loaded:load"),
        predict=Lazy("medkd.inference.folder:predict_folder"),
        measure=Lazy("medkd.inference.latency:measure_scans"),
        evaluate=Lazy("medkd.evaluation.segmentation.scoring:score_label_maps"),
        summary_text=Lazy("medkd.evaluation.segmentation.scoring:scores_text"),
        score_line=Lazy("medkd.cli.plan_tables:segmentation_score"),
        folds=Lazy("medkd.evaluation.segmentation.folds:SegmentationFolds"),
        postprocess=Lazy("medkd.evaluation.segmentation.postprocessing:find_postprocessing"),
        report=Lazy("medkd.evaluation.report.segmentation_task:SEGMENTATION"),
        list_networks=Lazy("medkd.cli.list_entries:network_rows"),
        in_several_processes=True,
    )
)
register_task(
    Task(
        name=DETECTION,
        inputs="radiographs",
        own={
            "prepare": ("image_size", "batch_size"),
            "train": ("image_size", "backbone_weights", "init"),
            "predict": ("pictures", "picture_score", "score", "overlap", "most", "strict", "format", "terms"),
            "evaluate": ("hit", "exclude"),
        },
        verify=Lazy("medkd.io.verify:verify_dataset"),
        contact_sheet=Lazy("dataset_conversion.contact_sheet:make_contact_sheet"),
        training_options=Lazy("medkd.detection.options:DetectorOptions"),
        prepare=Lazy("medkd.detection.prepare:plan_and_preprocess_detection"),
        describe_plan=Lazy("medkd.cli.plan_tables:detection_plan"),
        plan_line=Lazy("medkd.cli.plan_tables:detection_line"),
        train=Lazy("medkd.detection.task:train"),
        train_distill=Lazy("medkd.detection.task:train_distill"),
        dry_run=Lazy("medkd.detection.task:dry_run"),
        foresee=Lazy("medkd.detection.foresight:foresee"),
        load=Lazy("medkd.detection.loaded:load"),
        predict=Lazy("medkd.detection.predict:predict_detections"),
        measure=Lazy("medkd.detection.latency:measure_images"),
        evaluate=Lazy("medkd.evaluation.detection.scoring:score_boxes"),
        summary_text=Lazy("medkd.evaluation.detection.results:summary_text"),
        score_line=Lazy("medkd.cli.plan_tables:detection_score"),
        folds=Lazy("medkd.evaluation.detection.folds:DetectionFolds"),
        report=Lazy("medkd.evaluation.report.detection_task:DETECTION"),
        predictions_file="predictions.json",
        list_networks=Lazy("medkd.cli.list_entries:detector_rows"),
        in_several_processes=True,
    )
)


def task_of_dataset(dataset: str | int, root: str | Path | None = None) -> Task:
    """The task of a data set, by what its labels are.

    Raises:
        DataError: there is no such data set, or its description is missing or damaged.
    """
    return TASKS[dataset_task(Root.resolve(root), dataset)]


def task_of_run(run: RunDescription) -> Task:
    """The task of a run, by its configuration: those that have just one call it as the task."""
    return TASKS[run.configuration if run.configuration in TASKS else SEGMENTATION]


def task_of_file(content: Mapping[str, Any]) -> Task:
    """The task of a ``plans.json`` or ``summary.json``, by its content."""
    return TASKS[content.get("task", SEGMENTATION)]


def task_of_predictions(predictions: Path) -> Task:
    """The task whose predictions a folder holds, or a file is.

    >>> task_of_predictions(Path("somewhere/predictions.json")).name
    'detection'
    """
    rows = list(every_task())
    written = [task for task in rows if task.predictions_file is not None]
    for task in written:
        if task.predictions_file == predictions.name or (predictions / str(task.predictions_file)).exists():
            return task
    for task in written:  # a copy by another name
        if predictions.suffix == Path(str(task.predictions_file)).suffix:
            return task
    return next(task for task in rows if task.predictions_file is None)


def refuse_foreign(task: Task, step: str, given: Iterable[str], subject: str, error: type[MedkdError]) -> None:
    """Options of another task are not silently ignored.

    Args:
        task: the task at hand.
        step: ``prepare``, ``train``, ``predict`` or ``evaluate``.
        given: names of the options that were given.
        subject: what shows that this is the task, ``Dataset004_Toy``.
        error: what to raise.

    Raises:
        MedkdError: an option belongs to another task alone; of the class ``error``.
    """
    names, own = list(given), task.options_of(step)
    for other in every_task():
        if other is task:
            continue
        foreign = [name for name in names if name in other.options_of(step) and name not in own]
        if foreign:
            raise error(
                f"{option_name(foreign[0])} is for {other.name}, but {subject} is for {task.name}; leave it out."
            )


def refuse_beside_like(given: Iterable[str]) -> None:
    """What would change a plan that is taken from a teacher as it is.

    Args:
        given: names of the options of the preparation that were given, without those that every preparation takes.

    Raises:
        PlanError: one of them is for a plan of its own.
    """
    foreign = [option_name(name) for name in given if name not in ("like", "configurations")]
    if foreign:
        raise PlanError(f"{option_name('like')} takes the teacher's plan as it is; leave out {' and '.join(foreign)}.")


def chosen_options(dataset: str | int, options: Any, settings: Mapping[str, Any]) -> tuple[Task, Any]:
    """The task of a training, and its options: those of the object that differ from the defaults, and the single
    settings. Every training comes through here, whatever its task.

    Raises:
        RunError: an option is unknown, outside of its limits, or belongs to another task, or several processes were
            started and the task does not share its work.
    """
    known = {} if options is None else _changed(options)
    values = {**known, **settings}
    task = task_of_dataset(dataset, values.get("root"))
    count = started_together()
    if count > 1 and not task.in_several_processes:
        raise RunError(
            f"A network for {task.name} is trained by one process, but {count} were started; start the command without "
            "torchrun."
        )
    refuse_foreign(task, "train", values, str(dataset), RunError)
    kind = task.column("training_options")
    refuse_unknown("train", values, [field.name for field in fields(kind)])
    return task, kind(**values)


def _changed(options: Any) -> dict[str, Any]:
    if not is_dataclass(options) or isinstance(options, type):
        raise RunError(f"options must be a TrainOptions, found {options!r}; single settings are given by their name.")
    found = {}
    for entry in fields(options):
        value = getattr(options, entry.name)
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if value != default:
            found[entry.name] = value
    return found


def refuse_unknown(function: str, given: Mapping[str, Any], names: Sequence[str]) -> None:
    """Settings that no task knows are not silently ignored.

    Raises:
        RunError: a setting is none of the names; the nearest one is proposed.
    """
    for name in given:
        if name not in names:
            raise RunError(
                f"medkd.{function} has no setting '{name}'.{nearest(name, names)} Known: {', '.join(names)}."
            )
