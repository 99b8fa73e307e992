"""The tasks that medkd knows: a row each, with the functions behind the commands. A further task is a package and a
row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medkd.core.dataset import dataset_task
from medkd.core.errors import MedkdError
from medkd.core.limits import option_name
from medkd.core.paths import Root
from medkd.core.plugins import Lazy

SEGMENTATION = "segmentation"
DETECTION = "detection"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row: everything that a command needs to know of a task. Functions of a column take the same arguments, but
    for the options that :attr:`own` names.

    Attributes:
        name: of the task.
        inputs: what is predicted, for sentences: ``scans``.
        own: step (``prepare``, ``train``, ``predict``, ``evaluate``) → options that this task alone takes.
        training_options: the dataclass of what may be set for training.
        prepare: plan and preprocess; returns the plan.
        prepare_like: the same for the students of a model that was trained elsewhere; None where there are none.
        describe_plan: the plan as a text.
        train: train alone.
        train_distill: train with a teacher.
        dry_run: what training would do, in lines.
        load: a model that is loaded once, with ``predict``.
        predict: predict inputs into a folder; returns what became of each.
        measure: time the runs of a data set together, through the predictor.
        evaluate: score what a :class:`medkd.evaluation.scoring.ScoringRequest` names; returns a summary.
        summary_text: a summary as a text.
        predictions_file: the file that holds this task's predictions; None for a file per case.
        list_networks: rows of ``medkd_list networks``.
    """

    name: str
    inputs: str
    own: Mapping[str, Sequence[str]]
    training_options: Lazy
    prepare: Lazy
    prepare_like: Lazy | None = None
    describe_plan: Lazy
    train: Lazy
    train_distill: Lazy
    dry_run: Lazy
    load: Lazy
    predict: Lazy
    measure: Lazy
    evaluate: Lazy
    summary_text: Lazy
    predictions_file: str | None = None
    list_networks: Lazy


TASKS: dict[str, Task] = {
    SEGMENTATION: Task(
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
                "mirror_axes",
            ),
            "predict": (
                *("step_size", "mirror", "save_probabilities", "precision", "part", "strict"),
                *("engine", "threads"),
            ),
            "evaluate": ("legacy", "hd95", "nsd_tolerance", "file_ending"),
        },
        training_options=Lazy("medkd.training.options:TrainOptions"),
        prepare=Lazy("medkd.preprocessing.prepare:plan_and_preprocess"),
        prepare_like=Lazy("medkd.models.like:plan_like"),
        describe_plan=Lazy("medkd.cli.plan_tables:segmentation_plan"),
        train=Lazy("medkd.training.segmentation_task:train"),
        train_distill=Lazy("medkd.training.segmentation_task:train_distill"),
        dry_run=Lazy("medkd.training.segmentation_task:dry_run"),
        load=Lazy("medkd.inference.loaded:load"),
        predict=Lazy("medkd.inference.folder:predict_folder"),
        measure=Lazy("medkd.inference.latency:measure_scans"),
        evaluate=Lazy("medkd.evaluation.segmentation.scoring:score_label_maps"),
        summary_text=Lazy("medkd.evaluation.segmentation.scoring:scores_text"),
        list_networks=Lazy("medkd.cli.list_entries:network_rows"),
    ),
    DETECTION: Task(
        name=DETECTION,
        inputs="radiographs",
        own={
            "prepare": ("image_size", "batch_size"),
            "train": ("image_size", "backbone_weights"),
            "predict": ("pictures", "picture_score", "score", "overlap", "most", "strict"),
            "evaluate": ("hit", "exclude"),
        },
        training_options=Lazy("medkd.detection.options:DetectorOptions"),
        prepare=Lazy("medkd.detection.prepare:plan_and_preprocess_detection"),
        describe_plan=Lazy("medkd.cli.plan_tables:detection_plan"),
        train=Lazy("medkd.detection.task:train"),
        train_distill=Lazy("medkd.detection.task:train_distill"),
        dry_run=Lazy("medkd.detection.task:dry_run"),
        load=Lazy("medkd.detection.loaded:load"),
        predict=Lazy("medkd.detection.predict:predict_detections"),
        measure=Lazy("medkd.detection.latency:measure_images"),
        evaluate=Lazy("medkd.evaluation.detection.scoring:score_boxes"),
        summary_text=Lazy("medkd.evaluation.detection.results:summary_text"),
        predictions_file="predictions.json",
        list_networks=Lazy("medkd.cli.list_entries:detector_rows"),
    ),
}


def task_of_dataset(dataset: str | int, root: str | Path | None = None) -> Task:
    """The task of a data set, by what its labels are.

    Raises:
        DataError: there is no such data set, or its description is missing or damaged.
    """
    return TASKS[dataset_task(Root.resolve(root), dataset)]


def task_of_model(model: Path) -> Task:
    """The task of a run folder, or of another model.

    Raises:
        RunError: the folder holds no model.
    """
    from medkd.models.base import open_model  # loads torch, which the other questions do without

    return TASKS[open_model(model).task]


def task_of_predictions(predictions: Path) -> Task:
    """The task whose predictions a folder holds, or a file is."""
    named = {task.predictions_file: task for task in TASKS.values() if task.predictions_file is not None}
    for file, task in named.items():
        if predictions.suffix == Path(file).suffix or (predictions / file).exists():
            return task
    return next(task for task in TASKS.values() if task.predictions_file is None)


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
    names = list(given)
    for other in TASKS.values():
        if other is task:
            continue
        foreign = [name for name in names if name in other.own[step] and name not in task.own[step]]
        if foreign:
            raise error(
                f"{option_name(foreign[0])} is for {other.name}, but {subject} is for {task.name}; leave it out."
            )
