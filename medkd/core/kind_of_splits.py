"""Splits of a data set that had no labels and has got some, or the other way round."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.core.splits import ALL, NO_LABELS, SPLITS_FILE, load_named_splits, save_splits

_log = logging.getLogger(__name__)


def are_outdated(
    folder: Path,
    given: Path,
    fold: int | str,
    cases: Sequence[str],
    without_labels: Sequence[str],
    *,
    write: bool = True,
) -> bool:
    """Whether a data set's splits were made when no case had a label, and must be made anew, since some have by now.

    No network can have been trained on them with labels, unless every case in them has got one: they are kept then.

    Args:
        folder: preprocessed data set folder.
        given: raw data set folder, where a user may have put a file of their own.
        fold: that is wanted.
        cases: those that are trained and judged on: the labelled ones, or all where none is.
        without_labels: the preprocessed cases without labels.
        write: note in splits that are kept what they are for by now.

    Raises:
        DataError: the fold is of the other kind of cases, and only the user knows whether the splits are needed still.
    """
    own = folder / SPLITS_FILE
    files = [place / SPLITS_FILE for place in (folder, given) if (place / SPLITS_FILE).exists()]
    if str(fold) == ALL:
        return False
    only = set(cases) <= set(without_labels)
    outdated = not only and made_without_labels(own) and not _is_settled(own, cases, without_labels, write)
    judged = [file for file in files if not (outdated and file == own)]
    if judged:
        _refuse_other_kind(judged, fold, cases, without_labels)
    return outdated


def made_without_labels(file: Path) -> bool:
    """Whether a file says that it was made when no case had a label; False where there is none."""
    data = read_json(file) if file.exists() else None
    return isinstance(data, list) and any(isinstance(fold, Mapping) and fold.get(NO_LABELS) for fold in data)


def _is_settled(own: Path, cases: Sequence[str], without_labels: Sequence[str], write: bool) -> bool:
    """Whether every case of the splits has got a label, so that they are those of labelled cases from now on."""
    splits = load_named_splits(own, [*cases, *without_labels])
    if any((set(split.train) | set(split.val)) - set(cases) for split in splits):
        _log.info("%s was made when no case had a label; those that have one get new folds", own)
        return False
    if write:
        save_splits(own, splits)
    return True


def _refuse_other_kind(
    files: Sequence[Path], fold: int | str, cases: Sequence[str], without_labels: Sequence[str]
) -> None:
    """Say of a fold of the first of some files why nobody can be trained on it."""
    only = set(cases) <= set(without_labels)
    named: set[str] = set()
    for number, split in enumerate(load_named_splits(files[0], [*cases, *without_labels])):
        named |= {*split.train, *split.val} if str(number) == str(fold) else set()
    missing = sorted(named - set(cases))
    if only and missing:
        raise DataError(
            f"Fold {fold} of {files[0]} names {len(missing)} cases that are not preprocessed ({_some(missing)}), and "
            f"the data set has {len(cases)} without labels alone; bring these cases back and run "
            f"medkd_plan_and_preprocess, or delete {_listed(files)}, so that those without labels get folds."
        )
    others = sorted(set(missing) & set(without_labels))
    if others:
        raise DataError(
            f"Fold {fold} of {files[0]} names {len(others)} cases that have no labels ({_some(others)}), while "
            f"{len(cases)} others have some; delete {_listed(files)}, so that these get folds."
        )


def _listed(files: Sequence[Path]) -> str:
    return " and ".join(map(str, files))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
