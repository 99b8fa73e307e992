"""From raw data to predictions: plan, train, distil, load, predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medkd.api.folds import FOLDS, listed_folds, train_folds
from medkd.core.errors import PlanError, RunError
from medkd.models.named import find_model, task_of_model
from medkd.tasks import (
    chosen_options,
    refuse_beside_like,
    refuse_foreign,
    refuse_unknown,
    task_of_dataset,
)

if TYPE_CHECKING:
    from medkd.core.plan import Plan
    from medkd.detection.loaded import LoadedDetector
    from medkd.detection.options import DetectorOptions
    from medkd.detection.plan import DetectionPlan
    from medkd.detection.predict import DetectReport
    from medkd.inference.folder import PredictReport
    from medkd.inference.loaded import Loaded
    from medkd.training.options import TrainOptions

Checkpoint = Literal["final", "best"]


def plan_and_preprocess(
    dataset: str | int,
    *,
    root: str | Path | None = None,
    workers: int | None = None,
    overwrite_plan: bool = False,
    verify: bool = True,
    protocol: str | None = None,
    configurations: Sequence[str] | None = None,
    gpu_memory_gb: float | None = None,
    like: str | Path | None = None,
    orientation: str | None = None,
    mirror_axes: tuple[int, ...] | None = None,
    strict: bool = False,
    image_size: int | None = None,
    batch_size: int | None = None,
    **settings: Any,
) -> Plan | DetectionPlan:
    """Make a raw data set ready for training: verify, measure, plan, preprocess; what did not change is not done again.

    Args:
        dataset: number or full name.
        root: medkd's folder; None takes ``$MEDKD_ROOT``, else ``./medkd_data``.
        workers: largest number of cases at a time; None follows from cores and memory.
        overwrite_plan: make the plan anew; configurations of your own are kept.
        verify: check the raw data first.
        protocol: name or file of a published protocol that a new plan follows.
        configurations: segmentation: which to preprocess, ``2d``, ``3d_fullres`` or ``3d_lowres``; None takes all.
        gpu_memory_gb: segmentation: memory that training may use, for a new plan.
        like: segmentation: plan for the students of this model from elsewhere, or of a run on another data set.
        orientation: segmentation: axis code (``"RAS"``) that a new plan turns all scans to; None takes them as stored.
        mirror_axes: segmentation: axes of the 3D network that training may mirror; None leaves it to the plan.
        strict: refuse raw data that raise a warning.
        image_size: detection: side of the input in pixels, a multiple of 32.
        batch_size: detection: images per step.
        settings: what a task from outside the package takes.

    Returns:
        The plan.

    Raises:
        DataError: the data set is not there, or its verification found problems.
        RunError: a setting is unknown.
        PlanError: a plan that is there does not fit what is asked, or an option belongs to the other task.
    """
    task = task_of_dataset(dataset, root)
    refuse_unknown("plan_and_preprocess", settings, task.options_of("prepare"))
    own = {
        "configurations": configurations,
        "gpu_memory_gb": gpu_memory_gb,
        "like": like,
        "orientation": orientation,
        "mirror_axes": mirror_axes,
        "image_size": image_size,
        "batch_size": batch_size,
        **settings,
    }
    wanted = {name: value for name, value in own.items() if value is not None}
    refuse_foreign(task, "prepare", wanted, str(dataset), PlanError)
    shared = {"root": root, "workers": workers, "overwrite_plan": overwrite_plan, "verify": verify, "strict": strict}
    if like is None or task.prepare_like is None:
        return task.prepare(dataset, protocol=protocol, **shared, **wanted)
    refuse_beside_like([*wanted, *([] if protocol is None else ["protocol"])])
    return task.prepare_like(dataset, Path(like), configurations=configurations, **shared)


def train(
    dataset: str | int,
    network: str,
    fold: int | str,
    options: TrainOptions | DetectorOptions | None = None,
    **settings: Any,
) -> Path:
    """Train a network alone on one fold, and score it on the fold's validation cases.

    Args:
        dataset: number or full name.
        network: its name, see ``medkd_list networks``.
        fold: 0-4, ``all`` for all cases at once, or ``folds`` for one fold after another and their scores together.
        options: what may be set.
        settings: single fields of the options, for example ``epochs=250``; they go before ``options``.

    Returns:
        The fold folder; of all folds the one with their scores, ``crossval``.

    Raises:
        RunError: an option is unknown, outside of its limits, or belongs to the other task.
        MedkdError: anything about the data, the plan or the settings that does not fit.
    """
    task, chosen = chosen_options(dataset, options, settings)
    if fold == FOLDS:
        return train_folds(
            lambda one: [task.train(dataset, network, one, chosen)], dataset, chosen.root, chosen.validate
        )[0]
    return task.train(dataset, network, fold, chosen)


def train_distill(
    dataset: str | int,
    teacher: str | Path,
    student: str,
    method: str,
    fold: int | str,
    options: TrainOptions | DetectorOptions | None = None,
    **settings: Any,
) -> Path:
    """Train a student with a teacher on one fold, and score it on the fold's validation cases.

    Args:
        dataset: number or full name.
        teacher: a network that was trained for this data set, a run, or the folder of a model from elsewhere.
        student: name of a network, see ``medkd_list networks``.
        method: a method, or several joined by ``+``, see ``medkd_list methods``; ``none`` is the student alone.
        fold: 0-4, ``all`` for all cases at once, or ``folds`` for one fold after another and their scores together.
        options: what may be set.
        settings: single fields of the options, for example ``epochs=250``; they go before ``options``.

    Returns:
        The fold folder; of all folds the one with their scores, ``crossval``.

    Raises:
        LeakError: the teacher has seen validation cases of this fold.
        RunError: an option is unknown, outside of its limits, or belongs to the other task.
        MedkdError: anything else that does not fit.
    """
    task, chosen = chosen_options(dataset, options, settings)
    if "," in method:
        raise RunError(
            f"Expected one method, found '{method}'; give several to medkd.train_side_by_side, or join them with + to "
            "be one loss."
        )
    one_fold = task.column("train_distill")
    if fold != FOLDS:
        return one_fold(dataset, str(teacher), student, method, fold, chosen)
    return train_folds(
        lambda one: [one_fold(dataset, str(teacher), student, method, one, chosen)],
        dataset,
        chosen.root,
        chosen.validate,
    )[0]


def train_side_by_side(
    dataset: str | int,
    teacher: str | Path,
    student: str,
    methods: Sequence[str] | str,
    fold: int | str,
    options: TrainOptions | DetectorOptions | None = None,
    **settings: Any,
) -> list[Path]:
    """:func:`train_distill` with several methods at once, which share batches and the teacher's pass.

    Each has the run folder, the files and, on the same machine and with one thread, the very weights that it would have
    alone. Parameters of methods (``method_parameters``) go to the method that they name.

    Args:
        dataset: number or full name.
        teacher: as for :func:`train_distill`.
        student: name of a network.
        methods: each as for :func:`train_distill`; a text names them with commas.
        fold: likewise.
        options: what may be set, for all of them.
        settings: single fields of the options.

    Returns:
        What :func:`train_distill` returns, per method.

    Raises:
        RunError: the data set's task cannot, or one of them failed in training; the others are finished.
        MedkdError: whatever would be refused of any of them alone; nothing was trained then.
    """
    task, chosen = chosen_options(dataset, options, settings)
    train_all = task.column("train_side_by_side")
    methods = [name.strip() for name in methods.split(",")] if isinstance(methods, str) else list(methods)
    if fold != FOLDS:
        return train_all(dataset, str(teacher), student, methods, fold, chosen)
    return train_folds(
        lambda one: train_all(dataset, str(teacher), student, methods, one, chosen),
        dataset,
        chosen.root,
        chosen.validate,
    )


def dry_run(
    dataset: str | int,
    network: str,
    fold: int | str,
    options: TrainOptions | DetectorOptions | None = None,
    *,
    teacher: str | Path | None = None,
    method: str | None = None,
    **settings: Any,
) -> list[str]:
    """What :func:`train`, or with a teacher :func:`train_distill`, would do and need, in lines; nothing is written or
    started.

    Args:
        dataset: number or full name.
        network: name of the network, or of the student.
        fold: 0-4 or ``all``; of ``folds`` the first is told.
        options: as for the training.
        teacher: as for :func:`train_distill`; None for a network alone.
        method: as for :func:`train_distill`; several with commas as for :func:`train_side_by_side`.
        settings: as for the training.

    Raises:
        MedkdError: whatever the training itself would refuse.
    """
    task, chosen = chosen_options(dataset, options, settings)
    teaching = {} if teacher is None else {"teacher": str(teacher), "method": method or "none"}
    first = "0" if fold == FOLDS else fold
    lines: list[str]
    if teacher is not None and "," in (method or ""):
        methods = [name.strip() for name in str(method).split(",")]
        several = task.column("dry_run_side_by_side")
        lines = several(dataset, str(teacher), network, methods, first, chosen)
    else:
        lines = task.dry_run(dataset, network, first, chosen, **teaching)
    return lines


def load(
    model: str | Path,
    *,
    root: str | Path | None = None,
    folds: Sequence[int | str] | None = None,
    checkpoint: Checkpoint = "final",
    device: str | None = None,
    **settings: Any,
) -> Loaded | LoadedDetector:
    """A model that is loaded once and used often: ``medkd.load(RUN).predict(scan)``.

    Args:
        model: run folder, ``DATASET/RUN`` below the results, or the folder of a model from elsewhere.
        root: medkd's folder, for ``DATASET/RUN``.
        folds: folds to average; None takes every trained one.
        checkpoint: ``"final"`` or ``"best"``.
        device: None picks CUDA where present, else the CPU.
        settings: segmentation: ``step_size``, ``mirror``, ``precision``, ``postprocessing``, ``engine``, ``threads``;
            detection: ``limits``.

    Returns:
        Segmentation: a :class:`~medkd.inference.loaded.Loaded`, whose ``predict`` takes an array ``(z, y, x)`` with its
        spacing in mm, or a file; detection: a :class:`~medkd.detection.loaded.LoadedDetector`, whose ``predict`` takes
        pixels or a file.

    Raises:
        RunError: there is no model, or it is not trained.
    """
    folds = listed_folds(folds)
    folder = find_model(model, root)
    return task_of_model(folder).load(folder, folds, checkpoint=checkpoint, device=device, **settings)


def predict(
    inputs: str | Path | Sequence[str | Path],
    outputs: str | Path,
    model: str | Path,
    *,
    root: str | Path | None = None,
    folds: Sequence[int | str] | None = None,
    checkpoint: Checkpoint = "final",
    device: str | None = None,
    resume: bool = False,
    **settings: Any,
) -> PredictReport | DetectReport:
    """Predict scans, or find boxes in radiographs, and write the results into a folder.

    Args:
        inputs: a folder, a scan, the channel files of one case; or radiographs.
        outputs: folder for label maps, or for ``predictions.json``.
        model: run folder, ``DATASET/RUN`` below the results, or the folder of a model from elsewhere.
        root: medkd's folder, for ``DATASET/RUN``.
        folds: folds to average; None takes every trained one.
        checkpoint: ``"final"`` or ``"best"``.
        device: None picks CUDA where present, else the CPU.
        resume: leave out what the same weights and settings have predicted already.
        settings: segmentation: ``step_size``, ``mirror``, ``save_probabilities``, ``precision``, ``part``,
            ``strict``, ``engine``, ``threads``, ``postprocessing``, see
            :func:`medkd.inference.folder.predict_folder`; detection:
            ``score``, ``overlap``, ``most``, ``pictures``, ``picture_score``, ``strict``, see
            :func:`medkd.detection.predict.predict_detections`.

    Returns:
        What became of each input: ``predicted``, ``skipped`` and ``failed``.

    Raises:
        RunError: the model cannot be used, or a setting is unknown or belongs to the other task.
        DataError: there are no inputs, or the output folder cannot be written to.
    """
    folds = listed_folds(folds)
    folder = find_model(model, root)
    task = task_of_model(folder)
    refuse_foreign(task, "predict", settings, folder.name, RunError)
    refuse_unknown("predict", settings, task.options_of("predict"))
    shared = {"folds": folds, "checkpoint": checkpoint, "device": device, "resume": resume}
    return task.predict(inputs, Path(outputs), folder, **shared, **settings)
