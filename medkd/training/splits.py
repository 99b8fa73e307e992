"""Cross-validation splits, nnU-Net's own rule and file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import KFold

from medkd.core.errors import DataError
from medkd.core.files import read_json, write_json

SPLITS_FILE = "splits_final.json"
ALL = "all"
_FOLDS = 5
_SEED = 12345  # nnU-Net's, so that both tools make the same folds


@dataclass(frozen=True)
class Split:
    """The case ids one fold trains on and is judged on; fold ``all`` is judged on none."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def make_splits(cases: Sequence[str], patients: Mapping[str, str] | None = None) -> list[Split]:
    """Five folds: ``KFold(5, shuffle, random_state=12345)`` over the sorted case ids, or over the sorted patients where known.

    With fewer than five cases (or patients) there are as many folds as cases.

    Raises:
        DataError: there are fewer than two cases or patients, so nothing can be held out.
    """
    groups: dict[str, list[str]] = {}
    for case in sorted(cases):
        groups.setdefault((patients or {}).get(case, case), []).append(case)
    keys = np.array(sorted(groups))
    if len(keys) < 2:
        raise DataError(f"Cross-validation needs at least two cases or patients, found {len(keys)}; train fold 'all' instead.")
    folds = KFold(min(_FOLDS, len(keys)), shuffle=True, random_state=_SEED).split(keys)
    return [Split(*(tuple(sorted(c for k in keys[part] for c in groups[k])) for part in (train, val))) for train, val in folds]


def load_splits(path: Path) -> list[Split]:
    """Read a ``splits_final.json``.

    Raises:
        DataError: the file is not a list of ``{"train": [...], "val": [...]}``.
    """
    data = read_json(path)
    try:
        return [Split(tuple(map(str, fold["train"])), tuple(map(str, fold["val"]))) for fold in data]
    except (TypeError, KeyError) as error:
        raise DataError(
            f'{path}: expected a list of {{"train": [...], "val": [...]}}, one entry per fold; mend or delete the file.'
        ) from error


def save_splits(path: Path, splits: Sequence[Split]) -> None:
    """Write splits in nnU-Net's form."""
    write_json(path, [{"train": list(s.train), "val": list(s.val)} for s in splits])


def ensure_splits(
    folder: Path, cases: Sequence[str], patients: Mapping[str, str] | None, given: Path | None = None, *, write: bool = True
) -> list[Split]:
    """The splits of a preprocessed data set: its own file, else the user's in the raw folder, else newly made ones.

    Args:
        folder: preprocessed data set folder.
        cases: all training cases.
        patients: case → patient, where known.
        given: raw data set folder, where a user may have put a file of their own.
        write: keep the splits in the preprocessed folder where it has none yet.
    """
    own = folder / SPLITS_FILE
    if own.exists():
        return load_splits(own)
    users = given / SPLITS_FILE if given else None
    splits = load_splits(users) if users and users.exists() else make_splits(cases, patients)
    if write:
        save_splits(own, splits)
    return splits


def split_of_fold(splits: Sequence[Split], fold: int | str, cases: Sequence[str]) -> Split:
    """The split of one fold, restricted to nothing: every case it names must exist.

    Raises:
        DataError: the fold does not exist, names unknown cases, or trains on its own validation cases.
    """
    if str(fold) == ALL:
        return Split(tuple(sorted(cases)), ())
    if not str(fold).isdigit() or int(fold) >= len(splits):
        raise DataError(f"Fold '{fold}' does not exist; there are folds 0 to {len(splits) - 1} and '{ALL}'.")
    split = splits[int(fold)]
    unknown = sorted({*split.train, *split.val} - set(cases))
    if unknown:
        shown = ", ".join(unknown[:5]) + (" …" if len(unknown) > 5 else "")
        raise DataError(
            f"Fold {fold} names {len(unknown)} cases that are not preprocessed ({shown}); preprocess them or mend {SPLITS_FILE}."
        )
    both = sorted(set(split.train) & set(split.val))
    if both:
        raise DataError(f"Fold {fold} has the case {both[0]} both in 'train' and in 'val'; mend {SPLITS_FILE}.")
    return split
