"""Scores of a teacher that was trained elsewhere, on the cases on which its students are judged."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from medkd.core.checkpoint import weights_digest
from medkd.core.dataset import DatasetDescription
from medkd.core.device import pick_device
from medkd.core.errors import RunError
from medkd.core.kind_of_splits import are_outdated
from medkd.core.made_from import MADE_FROM_FILE, note_inputs
from medkd.core.meaning import check_meaning
from medkd.core.moved import lies_at
from medkd.core.paths import Root
from medkd.core.patients import known_patients
from medkd.core.plan import Plan
from medkd.core.run import DATASET_FILE, FINAL, PLANS_FILE, RUN_FILE, Budget, RunDescription, RunFolder
from medkd.core.run_files import SCORED_TEACHER, ScoredTeacher, scored_teachers
from medkd.core.serial import save
from medkd.core.splits import find_split
from medkd.evaluation.done import why_not_done
from medkd.inference.predictor import Predictor
from medkd.models.base import ModelFolder, model_at
from medkd.models.guard import choose_teacher, write_split
from medkd.models.like import open_imported, prepare_if_new
from medkd.models.run import SegmentationRun
from medkd.models.segmentation import TrainedModel
from medkd.preprocessing.current import check_store
from medkd.preprocessing.store import CaseStore
from medkd.training.validation import SUMMARY, VALIDATION, finish_fold

_log = logging.getLogger(__name__)


def score_teacher(
    dataset: str | int,
    teacher: Path,
    fold: int | str,
    *,
    root: str | Path | None = None,
    device: torch.device | str | None = None,
) -> Path:
    """Predict a fold's validation cases with a teacher from elsewhere, and score them as every student of that fold is
    scored.

    The result looks like a run without weights, ``results/DATASET/NAME-OF-THE-FOLDER/fold_K``, where
    ``scored_teacher.json`` records the
    model: a report then shows the teacher beside its students. Where the scores of another model of this name are
    there, and of a run of medkd on another data set always, ``__NAME-OF-THE-FOLDER-ABOVE`` is added. Mirroring is on.
    Predictions that were made with the same weights are kept, so that an interrupted call continues; others are
    removed.

    Args:
        dataset: number or full name.
        teacher: model folder of nnU-Net v2, MONAI bundle, folder with a ``teacher.json``, or a run of medkd on another
            data set.
        fold: 0-4.
        root: medkd's folder.
        device: None picks CUDA where present, else the CPU.

    Returns:
        The fold folder.

    Raises:
        RunError: the folder is no such model, or its names belong to a run of medkd or to other models.
        LeakError: the teacher has seen validation cases of this fold.
        MedkdError: anything else that does not fit.
    """
    model = _open(Path(os.path.abspath(teacher)))
    place = Root.resolve(root)
    name = place.dataset_name(dataset)
    _refuse_own(model, name)
    prepare_if_new(dataset, model, root)
    prepared, raw = place.preprocessed / name, place.raw_dataset(name)
    plan, description = Plan.load(prepared / PLANS_FILE), DatasetDescription.load(prepared / DATASET_FILE)
    configuration = plan.configuration(model.describe().configuration.name)
    model.check_fits(plan, configuration.name, description)
    store = CaseStore(prepared / configuration.name)
    check_meaning(raw, description, name)
    check_store(store, plan, configuration, description.labels)
    cases = store.cases()
    if not cases and store.unlabelled.cases():
        raise RunError(
            f"{name} has scans without labels only, so that nothing can be scored, a teacher neither; its students say "
            "how far they agree with it (fold_K/agreement), and for scores add labelled cases."
        )
    anew = are_outdated(prepared, raw, fold, cases, store.unlabelled.cases())
    patients = known_patients(description, raw, cases)
    split = find_split(prepared, fold, cases, patients, raw, anew=anew)
    chosen = choose_teacher(model, fold, split, cases, raw, patients)
    where = pick_device(device)
    predictor = Predictor.of(model, [chosen.fold], where, checkpoint=model.checkpoint_of(chosen.fold))
    folder = _run_of(place.results / name, model) / f"fold_{fold}"
    _check_free(folder.parent)
    network = chosen.network()
    made = ScoredTeacher(
        path=str(model.path),
        fold=chosen.fold,
        weights=weights_digest(network.state_dict()),
        patch_size=predictor.patch_size,
        mirror_axes=predictor.mirror_axes,
    )
    _record(folder, made, model)
    budget = Budget(0, 0, configuration.architecture("plain_unet").batch_size, 0.0, 0)
    save(
        folder.parent / RUN_FILE,
        RunDescription(
            dataset=name,
            configuration=configuration.name,
            network=network.spec,
            budget=budget,
            mirror_axes=predictor.mirror_axes,
        ),
    )
    save(folder.parent / PLANS_FILE, plan)
    description.save(folder.parent / DATASET_FILE)
    write_split(folder, split, chosen.seen)
    note_inputs(folder, configuration.name, model.weights_files(chosen.fold), split.val)
    finish_fold(RunFolder.load(folder.parent), folder, store, raw, split.val, where, predictor=predictor)
    return folder


def find_scored(results: Path, model: ModelFolder[TrainedModel], fold: str) -> Path | None:
    """The run folder with the scores of a fold by a teacher from elsewhere, as it is now; None where there is none.

    Scores that do not say from which file they were made count where the model has the weights that they say.
    """
    for run in sorted(results.glob("*")):
        for folder, record in scored_teachers(run).items():
            if folder.name != f"fold_{fold}" or not _is_of(folder, record, model):
                continue
            counts = (folder / VALIDATION / SUMMARY).exists() and why_not_done(folder) is None
            if counts and ((folder / MADE_FROM_FILE).exists() or _has_weights(record, model)):
                return run
    return None


def _is_of(folder: Path, record: ScoredTeacher, model: ModelFolder[TrainedModel]) -> bool:
    """Whether the scores of a fold are those of a model, wherever it lay then."""
    return record.path == str(model.path) or lies_at(folder, record.path, str(model.path))


def _open(path: Path) -> ModelFolder[TrainedModel]:
    """A run of medkd, or a model that was trained elsewhere."""
    found = model_at(path)
    return found if isinstance(found, SegmentationRun) else open_imported(path)


def _refuse_own(model: ModelFolder[TrainedModel], dataset: str) -> None:
    """A run of the data set itself needs no scores beside its own."""
    if isinstance(model, SegmentationRun) and model.run.run.dataset == dataset:
        raise RunError(
            f"{model.path} is a run of {dataset}, which was scored when it was trained; where its scores are missing, "
            "train it with --continue, which validates it."
        )


def _home(results: Path, model: ModelFolder[TrainedModel]) -> Path:
    """The run folder of a model's scores: the one that has them already, or the first that no other model has."""
    teacher = model.path
    runs = [results / teacher.name, results / f"{teacher.name}__{teacher.parent.name}"]
    if isinstance(model, SegmentationRun):
        runs = runs[1:]  # else a network that is trained here would have the same folder
    records = [scored_teachers(run).values() for run in runs]
    owned, free = [], []
    for run, found in zip(runs, records, strict=True):
        if not found:
            free.append(run)
        elif _is_among(model, list(found)):
            owned.append(run)
    if not owned and not free:
        other = next(iter(records[-1])).path
        raise RunError(
            f"{runs[-1]} holds the scores of the model {other}, which has other weights than {teacher}; remove these "
            "scores, or rename one of the two folders."
        )
    chosen = (owned or free)[0]
    if chosen != runs[0]:
        _log.info(
            "%s holds the scores of %s, so those of %s go to %s", runs[0], next(iter(records[0])).path, teacher, chosen
        )
    return chosen


def _run_of(results: Path, model: ModelFolder[TrainedModel]) -> Path:
    """The run folder of a model's scores, wherever the model lay when it was scored first."""
    return _kept(results, model.path) or _home(results, model)


def _kept(results: Path, teacher: Path) -> Path | None:
    """The run folder with the scores of a model that was moved, and may have been called otherwise, since then."""
    for run in sorted(results.glob("*")):
        for folder, record in scored_teachers(run).items():
            moved = lies_at(folder, record.path, str(teacher)) and not Path(record.path).exists()
            if moved or record.path == str(teacher):
                return run
    return None


def _is_among(model: ModelFolder[TrainedModel], records: list[ScoredTeacher]) -> bool:
    """Whether a model is one of those whose scores were recorded, by its place or else by its weights."""
    if any(record.path == str(model.path) for record in records):
        return True
    return any(_has_weights(record, model) for record in records)


def _has_weights(record: ScoredTeacher, model: ModelFolder[TrainedModel]) -> bool:
    """Whether a model's fold has the weights of which the scores were recorded."""
    if record.fold not in model.teaching_folds:
        return False
    return weights_digest(model.network(record.fold).state_dict()) == record.weights


def _record(folder: Path, made: ScoredTeacher, model: ModelFolder[TrainedModel]) -> None:
    """Write which model predicts, after the predictions of others were removed, those of the run's other folds
    included.
    """
    known = scored_teachers(folder.parent)
    found = known.get(folder)
    if found is None or replace(found, path=made.path, former=()) != made:
        stale = [folder]
        stale += [other for other, record in known.items() if other != folder and not _has_weights(record, model)]
        _remove_scores(stale, made.path)
        known = {other: record for other, record in known.items() if other not in stale}
    former: set[str] = set()
    for record in known.values():
        former |= {record.path, *record.former}
    save(folder / SCORED_TEACHER, replace(made, former=tuple(sorted(former - {made.path}))))


def _remove_scores(folders: list[Path], model: str) -> None:
    """Remove predictions that a model would not make as it is now, and the records of who made them."""
    for folder in sorted(folders):
        predicted = folder / VALIDATION
        if predicted.exists():
            text = "%s was not predicted by %s as it is now, so it is removed and must be made anew"
            _log.warning(text, predicted, model)
            shutil.rmtree(predicted)
        (folder / SCORED_TEACHER).unlink(missing_ok=True)


def _check_free(run: Path) -> None:
    if any(run.glob(f"fold_*/{FINAL}")):
        raise RunError(
            f"{run} is a run that medkd trained; rename the teacher's folder, whose name its scores would take."
        )
