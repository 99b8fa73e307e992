"""Which cases the folds of an nnU-Net model have seen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import RunError
from medkd.core.files import read_json, understood
from medkd.core.numbers import whole_number
from medkd.core.run import DATASET_FILE, PLANS_FILE
from medkd.core.splits import SPLITS_FILE, Split, load_splits, make_splits
from medkd.models.nnunet.plans import load_plans

_STATE_IT = 'or state in a teacher.json there which cases of the data set it has seen, for none of them {"train": []}'
_PREPROCESSED = "nnUNet_preprocessed"  # nnU-Net's own variable


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
    file = _recorded(path)
    if file is None and (raw / SPLITS_FILE).exists():
        file = _borne_out(raw / SPLITS_FILE, path, cases, data.file_ending)
    if file is None and data.num_training != len(cases):
        raise RunError(
            f"{path} was trained on {data.num_training} cases, the data set has {len(cases)}, so nobody can say which "
            f"cases its folds have seen; put nnU-Net's {SPLITS_FILE} into the model folder, {_STATE_IT}."
        )
    splits = load_splits(file) if file else make_splits(cases)
    _check_agreement(path, splits, cases, str(file or "nnU-Net's rule"), data.file_ending)
    return splits


def recorded_cases(path: Path, folds: Sequence[str], cases: Sequence[str]) -> frozenset[str]:
    """The cases of a data set on which some folds of a model were trained, as far as nnU-Net's own files say so.

    That is a recorded ``splits_final.json``, else the cases that nnU-Net scored: those of a fold were trained on in the
    others, and where the data set has as many cases as the training, the rest follows from nnU-Net's rule. Nothing
    where these name no case of the data set.
    """
    file = _recorded(path)
    splits = dict(enumerate(load_splits(file))) if file else _splits_of_scored(path, cases)
    found: set[str] = set()
    for fold in folds:
        number = whole_number(fold)
        listed = [split for place, split in splits.items() if number is None or place == number]
        for split in listed:
            found.update(split.train if number is not None else (*split.train, *split.val))
    return frozenset(found & set(cases))


def _splits_of_scored(path: Path, cases: Sequence[str]) -> dict[int, Split]:
    data = DatasetDescription.load(path / DATASET_FILE)
    scored: dict[int, set[str]] = {}
    for folder in path.glob("fold_*"):
        number = whole_number(folder.name.removeprefix("fold_"))
        if number is not None:
            scored[number] = _scored(_summary(path, number), data.file_ending)
    every = set().union(*scored.values())
    if not every & set(cases):
        return {}
    by_rule = make_splits(cases) if data.num_training == len(cases) else []
    found = {}
    for number, held_out in scored.items():
        train = every - held_out
        if number < len(by_rule) and held_out in (set(), set(by_rule[number].val)):
            train |= set(by_rule[number].train)
        found[number] = Split(tuple(sorted(train)), tuple(sorted(held_out)))
    return found


def _recorded(path: Path) -> Path | None:
    """The file of splits in the model folder, beside it, or in nnU-Net's preprocessed folder."""
    places = [path, path.absolute().parent]
    preprocessed = os.environ.get(_PREPROCESSED)
    if preprocessed:
        places.append(Path(preprocessed) / str(load_plans(path / PLANS_FILE).get("dataset_name")))
    for place in places:
        file = place / SPLITS_FILE
        if file.exists():
            return file
    return None


def _check_agreement(path: Path, splits: Sequence[Split], cases: Sequence[str], source: str, ending: str) -> None:
    """The splits must know the data set's cases, and hold out what nnU-Net scored."""
    known: set[str] = set()
    for split in splits:
        known.update(split.train, split.val)
    if not set(cases) & known:
        raise RunError(
            f"{path} and the data set have no case in common by {source}, so nobody can say which cases the teacher "
            f"has seen; name the cases as they were named in its training, {_STATE_IT}."
        )
    for fold, split in enumerate(splits):
        scored = _scored(_summary(path, fold), ending)
        if scored and scored != set(split.val):
            raise RunError(
                f"{path}: nnU-Net scored fold {fold} on other cases than {source} holds out, so nobody can say which "
                f"cases it has seen; put the {SPLITS_FILE} of its training into the model folder."
            )


def _borne_out(users: Path, path: Path, cases: Sequence[str], ending: str) -> Path | None:
    """A user's file if nnU-Net scored the model's folds on just what it holds out; None if it only repeats nnU-Net's
    rule.

    Raises:
        RunError: it says something else.
    """
    splits = load_splits(users)
    held_out = [set(split.val) for split in splits]
    agreeing = []
    for fold, cases_of_fold in enumerate(held_out):
        scored = _scored(_summary(path, fold), ending)
        if scored:
            agreeing.append(scored == cases_of_fold)
    if agreeing and all(agreeing):
        return users
    by_rule = [set(split.val) for split in make_splits(cases)]
    if held_out == by_rule:
        return None
    raise RunError(
        f"{users} need not hold the folds that {path} was trained with, so nobody can say which cases they have seen; "
        f"put the {SPLITS_FILE} of its training into the model folder."
    )


def _summary(path: Path, fold: int) -> Path:
    return path / f"fold_{fold}" / "validation" / "summary.json"


def _scored(summary: Path, ending: str) -> set[str]:
    """The cases in nnU-Net's ``summary.json``; none where there is no such file."""
    if not summary.exists():
        return set()
    data = read_json(summary)
    with understood(summary, "a summary.json of nnU-Net", "validate the fold again"):
        named = [str(case.get("prediction_file", "")) for case in data.get("metric_per_case", ())]
    found = set()
    for file in named:
        name = file.replace("\\", "/").rpartition("/")[2]
        found.add(name.removesuffix(ending))
    return found
