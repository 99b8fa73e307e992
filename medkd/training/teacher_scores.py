"""Scores of a teacher that was trained elsewhere, on the cases on which its students are judged."""

from __future__ import annotations

from pathlib import Path

import torch

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import RunError
from medkd.core.paths import Root
from medkd.core.plan import Plan
from medkd.core.run import DATASET_FILE, FINAL, PLANS_FILE, RUN_FILE, Budget, RunDescription, RunFolder
from medkd.core.serial import save
from medkd.inference.external import is_external_folder, read_external
from medkd.inference.model import CHECKPOINTS
from medkd.inference.nnunet.model import CHECKPOINTS as NNUNET_CHECKPOINTS
from medkd.inference.nnunet.model import nnunet_folds
from medkd.inference.predictor import Predictor, pick_device
from medkd.preprocessing.store import CaseStore
from medkd.training.imported import import_teacher, is_imported, prepare_if_new
from medkd.training.splits import ensure_splits, split_of_fold
from medkd.training.teachers import check_same_data, choose_teacher, write_split
from medkd.training.validation import finish_fold


def score_teacher(
    dataset: str | int, teacher: Path, fold: int | str, *, root: str | Path | None = None, device: torch.device | str | None = None
) -> Path:
    """Predict a fold's validation cases with an imported teacher, and score them as every student of that fold is scored.

    The result looks like a run without weights, ``results/DATASET/NAME-OF-THE-FOLDER/fold_K``: a report then shows the teacher beside
    its students. Mirroring is on. Predictions that are there and newer than the weights are kept, so that an interrupted call continues.

    Args:
        dataset: number or full name.
        teacher: model folder of nnU-Net v2, MONAI bundle, or folder with a ``teacher.json``.
        fold: 0-4.
        root: medkd's folder.
        device: None picks CUDA where present, else the CPU.

    Returns:
        The fold folder.

    Raises:
        RunError: the folder is no such model, or a run of medkd has the same name.
        LeakError: the teacher has seen validation cases of this fold.
        MedkdError: anything else that does not fit.
    """
    teacher = Path(teacher)
    if not is_imported(teacher):
        raise RunError(f"{teacher} is no model that was trained elsewhere; medkd's own runs are scored by their training.")
    prepare_if_new(dataset, str(teacher), root)
    place = Root.resolve(root)
    name = place.dataset_name(dataset)
    prepared, raw = place.preprocessed / name, place.raw_dataset(name)
    plan, description = Plan.load(prepared / PLANS_FILE), DatasetDescription.load(prepared / DATASET_FILE)
    candidate = import_teacher(teacher, name, CaseStore(prepared / next(iter(plan.configurations))).cases(), raw)
    configuration = plan.configuration(candidate.model.configuration.name)
    check_same_data(candidate, plan, configuration, description.labels, len(description.channel_names))
    store = CaseStore(prepared / configuration.name)
    cases = store.cases()
    split = split_of_fold(ensure_splits(prepared, cases, description.patients, raw), fold, cases)
    chosen = choose_teacher(candidate, fold, split)
    where = pick_device(device)
    weights, checkpoint = _weights(teacher, chosen.fold)
    predictor = Predictor.from_run(teacher, [chosen.fold], where, checkpoint=checkpoint)
    folder = place.results / name / candidate.path.name / f"fold_{fold}"
    _check_free(folder.parent)
    spec, batch = chosen.network().spec, configuration.architecture("plain_unet").batch_size
    save(folder.parent / RUN_FILE, RunDescription(name, configuration.name, spec, Budget(0, 0, batch, 0.0, 0), predictor.mirror_axes))
    save(folder.parent / PLANS_FILE, plan)
    description.save(folder.parent / DATASET_FILE)
    write_split(folder, split, chosen.seen)
    finish_fold(RunFolder.load(folder.parent), folder, store, raw, split.val, where, predictor=predictor, weights=weights)
    return folder


def _weights(teacher: Path, fold: str) -> tuple[Path, str]:
    """The file of a fold's weights, and the checkpoint's kind."""
    if is_external_folder(teacher):
        return teacher / read_external(teacher).weights, next(iter(CHECKPOINTS))
    kind = nnunet_folds(teacher)[fold]
    return teacher / f"fold_{fold}" / NNUNET_CHECKPOINTS[kind], kind


def _check_free(run: Path) -> None:
    if any(run.glob(f"fold_*/{FINAL}")):
        raise RunError(f"{run} is a run that medkd trained; rename the teacher's folder, whose name its scores would take.")
