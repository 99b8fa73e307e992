"""Teachers that were trained elsewhere: what they have seen, and data sets that are prepared the way they expect."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medkd.core.dataset import DatasetDescription, training_cases
from medkd.core.errors import PlanError, RunError
from medkd.core.files import read_json
from medkd.core.paths import Root
from medkd.core.plan import Plan
from medkd.core.run import DATASET_FILE, PLANS_FILE
from medkd.core.serial import save
from medkd.core.splits import ALL, SPLITS_FILE, Split, load_splits, make_splits, save_splits
from medkd.io.volumes import file_ending
from medkd.models.described import FILE, describe_external, is_external_folder, load_external, seen_by_external
from medkd.models.nnunet.model import check_fold, describe_nnunet, is_nnunet_folder, load_nnunet, nnunet_folds
from medkd.models.nnunet.plans import load_plans
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.training.teachers import Candidate, check_same_data

_PREPROCESSED = "nnUNet_preprocessed"  # nnU-Net's own variable
_log = logging.getLogger(__name__)


def is_imported(path: Path) -> bool:
    """Whether a folder holds a model of nnU-Net v2, a MONAI bundle, or a model with a ``teacher.json``."""
    return is_external_folder(path) or is_nnunet_folder(path)


def import_teacher(path: Path, dataset: str, cases: Sequence[str], raw: Path) -> Candidate:
    """A teacher that medkd did not train.

    Args:
        path: model folder of nnU-Net v2, MONAI bundle, or folder with a ``teacher.json``.
        dataset: full name of the student's data set.
        cases: its training cases.
        raw: its raw folder, which may hold splits.

    Raises:
        MedkdError: the model cannot be rebuilt.
    """
    folder = path.absolute()
    remedy = f"run medkd_plan_and_preprocess -d {dataset} --like {path} --overwrite-plan, which takes over the teacher's and preprocesses again"
    if is_external_folder(path):
        model = describe_external(path)
        return Candidate(
            folder.name,
            str(folder),
            folder,
            model.folds,
            lambda _: _seen_by_external(path, cases),
            lambda _: load_external(path).networks[0],
            model,
            remedy,
        )
    found, model = nnunet_folds(path), describe_nnunet(path)
    return Candidate(
        "nnunet",
        str(folder),
        folder,
        model.folds,
        lambda fold: _seen_by_nnunet(path, fold, cases, raw),
        lambda fold: load_nnunet(path, [fold], checkpoint=found[fold]).networks[0],
        model,
        remedy,
    )


def plan_like(
    dataset: str | int,
    model: Path,
    *,
    root: str | Path | None = None,
    configurations: Sequence[str] | None = None,
    workers: int | None = None,
    overwrite_plan: bool = False,
    verify: bool = True,
) -> Plan:
    """Make a raw data set ready for the students of an imported teacher: its preprocessing, its splits, its
    architecture and batch.

    nnU-Net's own preprocessed folder is not needed. Afterwards everything is as after
    :func:`medkd.preprocessing.prepare.plan_and_preprocess`.

    Args:
        dataset: number or full name.
        model: the teacher's folder.
        root: medkd's folder.
        configurations: which to preprocess; the teacher has one only.
        workers: largest number of cases at a time.
        overwrite_plan: replace a plan and splits that differ.
        verify: check the raw data first.

    Returns:
        The plan.

    Raises:
        RunError: the folder is no such model, or its labels, channels or cases are not the data set's.
        PlanError: there is another plan or there are other splits already.
    """
    model = Path(model)
    if not is_imported(model):
        raise RunError(
            f"{model} is neither a model folder of nnU-Net v2, nor a MONAI bundle, nor a folder with a teacher.json."
        )
    place = Root.resolve(root)
    name = place.dataset_name(dataset)
    raw, folder = place.raw_dataset(name), place.preprocessed / name
    description = DatasetDescription.load(raw / DATASET_FILE)
    cases = [files.case for files in training_cases(raw, description)]
    teacher = import_teacher(model, name, cases, raw)
    plan = replace(teacher.model.plan, dataset=name)
    check_same_data(teacher, plan, teacher.model.configuration, description.labels, len(description.channel_names))
    splits = None if is_external_folder(model) else nnunet_splits(model, cases, raw)
    differs = [PLANS_FILE] if (folder / PLANS_FILE).exists() and Plan.load(folder / PLANS_FILE) != plan else []
    own = folder / SPLITS_FILE
    differs += [SPLITS_FILE] if splits is not None and own.exists() and load_splits(own) != splits else []
    if differs and not overwrite_plan:
        raise PlanError(
            f"{folder} has another {' and '.join(differs)} than {model}; give --overwrite-plan to replace it."
        )
    save(folder / PLANS_FILE, plan)
    if splits is not None:
        save_splits(own, splits)
    _log.info(
        "%s is prepared like %s: spacing, normalisation, resampling, architecture and folds are the teacher's",
        name,
        model,
    )
    return plan_and_preprocess(name, root=root, configurations=configurations, workers=workers, verify=verify)


def prepare_if_new(dataset: str | int, teacher: str, root: str | Path | None, workers: int | None = None) -> None:
    """Prepare a data set that has no plan yet like an imported teacher; anything else is left as it is."""
    place = Root.resolve(root)
    if is_imported(Path(teacher)) and not (place.preprocessed / place.dataset_name(dataset) / PLANS_FILE).exists():
        plan_like(dataset, Path(teacher), root=root, workers=workers)


def nnunet_splits(path: Path, cases: Sequence[str], raw: Path) -> list[Split]:
    """The folds of an nnU-Net model.

    They stand in a ``splits_final.json`` in the model folder, beside it or in nnU-Net's preprocessed folder; else
    nnU-Net made them by its rule from the sorted cases. A file in the raw data set, where a user's own folds may lie,
    counts only if the validation cases that nnU-Net scored bear it out. Whatever the source, those must agree where
    they are recorded.

    Raises:
        RunError: the model was trained on other cases, or the folds cannot be known.
    """
    data = DatasetDescription.load(path / DATASET_FILE)
    named = str(load_plans(path / PLANS_FILE).get("dataset_name"))
    preprocessed = os.environ.get(_PREPROCESSED)
    places = [path, path.absolute().parent, *([Path(preprocessed) / named] if preprocessed else [])]
    file = next((place / SPLITS_FILE for place in places if (place / SPLITS_FILE).exists()), None)
    if file is None and (raw / SPLITS_FILE).exists():
        file = _borne_out(raw / SPLITS_FILE, path, cases, data.file_ending)
    if file is None and data.num_training != len(cases):
        raise RunError(
            f"{path} was trained on {data.num_training} cases, the data set has {len(cases)}, so nobody can say which "
            "cases its folds have "
            f"seen; put nnU-Net's {SPLITS_FILE} into the model folder."
        )
    splits = load_splits(file) if file else make_splits(cases)
    source = str(file or "nnU-Net's rule")
    if not set(cases) & {case for split in splits for case in (*split.train, *split.val)}:
        raise RunError(
            f"{path} and the data set have no case in common by {source}, so nobody can say which cases the teacher "
            "has seen; name "
            "the cases as they were named in its training."
        )
    for fold, split in enumerate(splits):
        scored = _scored(path / f"fold_{fold}" / "validation" / "summary.json", data.file_ending)
        if scored and scored != set(split.val):
            raise RunError(
                f"{path}: nnU-Net scored fold {fold} on other cases than {source} holds out, so nobody can say which "
                "cases it has seen; "
                f"put the {SPLITS_FILE} of its training into the model folder."
            )
    return splits


def _borne_out(users: Path, path: Path, cases: Sequence[str], ending: str) -> Path | None:
    """A user's file if nnU-Net scored the model's folds on just what it holds out; None if it only repeats nnU-Net's
    rule.

    Raises:
        RunError: it says something else.
    """
    splits = load_splits(users)
    scored = [
        (_scored(path / f"fold_{fold}" / "validation" / "summary.json", ending), set(split.val))
        for fold, split in enumerate(splits)
    ]
    known = [pair for pair in scored if pair[0]]
    if known and all(found == held_out for found, held_out in known):
        return users
    if [set(split.val) for split in splits] == [set(split.val) for split in make_splits(cases)]:
        return None
    raise RunError(
        f"{users} need not hold the folds that {path} was trained with, so nobody can say which cases they have seen; "
        "put the "
        f"{SPLITS_FILE} of its training into the model folder."
    )


def _scored(summary: Path, ending: str) -> set[str]:
    """The cases in nnU-Net's ``summary.json``; none where there is no such file."""
    if not summary.exists():
        return set()
    files = [
        str(case.get("prediction_file", "")).replace("\\", "/")
        for case in read_json(summary).get("metric_per_case", ())
    ]
    return {file.rpartition("/")[2].removesuffix(ending) for file in files}


def _seen_by_external(path: Path, cases: Sequence[str]) -> frozenset[str]:
    """The cases that the weights have seen, which must be named as the data set names its own."""
    seen = seen_by_external(path)
    strange = sorted(seen - set(cases))
    files = [
        name for name in strange if "/" in name or "\\" in name or file_ending(Path(name)) or name.endswith("_0000")
    ]
    if files or (strange and len(strange) == len(seen)):
        raise RunError(
            f"{path / FILE}: 'train' names {(files or strange)[0]}, which is no case of the data set; list its cases "
            "without folder, "
            f'channel and ending, as in "{min(cases, default="case_01")}", or write [] if the weights have seen none '
            "of them."
        )
    return seen


def _seen_by_nnunet(path: Path, fold: str, cases: Sequence[str], raw: Path) -> frozenset[str]:
    check_fold(path, fold)
    splits = nnunet_splits(path, cases, raw)
    if fold == ALL:
        return frozenset(cases) | {case for split in splits for case in (*split.train, *split.val)}
    if not fold.isdigit() or int(fold) >= len(splits):
        raise RunError(
            f"{path}: nobody can say which cases fold_{fold} has seen, since there are splits for folds 0 to "
            f"{len(splits) - 1} only."
        )
    return frozenset(splits[int(fold)].train)
