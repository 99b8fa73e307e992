"""Cross-validation splits, nnU-Net's own rule and file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.files import read_json, write_json
from medkd.core.folds import joined_groups
from medkd.core.patients import cases_and_patients, torn_patients
from medkd.core.resolve import NameIndex
from medkd.core.run import DATASET_FILE

SPLITS_FILE = "splits_final.json"
ALL = "all"
_FOLDS = 5
_SEED = 12345  # nnU-Net's, so that both tools make the same folds
_SPLITS_FORM = 'a list of {"train": [...], "val": [...]}, one entry per fold'
_PREPROCESSED = "nnUNet_preprocessed"  # nnU-Net's own variable
NO_LABELS = "without_labels"
"""Key in every entry of splits that were made when no case had a label."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """The case ids one fold trains on and is judged on; fold ``all`` is judged on none.

    Attributes:
        train: labelled training cases.
        val: validation cases.
        unlabelled: scans without labels from which a teacher teaches; never in a file of splits.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()


def make_splits(cases: Sequence[str], patients: Mapping[str, str] | None = None) -> list[Split]:
    """Five folds: ``KFold(5, shuffle, random_state=12345)`` over the sorted case ids, or over the sorted patients where
    known.

    With fewer than five cases (or patients) there are as many folds as cases.

    Raises:
        DataError: there are fewer than two cases or patients, so nothing can be held out.

    >>> cases = [f"case_{number}" for number in range(10)]
    >>> splits = make_splits(cases)
    >>> len(splits), len(splits[0].train), len(splits[0].val)
    (5, 8, 2)
    >>> sorted(case for split in splits for case in split.val) == cases
    True
    """
    from sklearn.model_selection import KFold  # heavy, and most commands make no splits

    owners = patients or {}
    groups: dict[str, list[str]] = {}
    for case in sorted(cases):
        groups.setdefault(owners.get(case, case), []).append(case)
    keys = np.array(sorted(groups))
    if len(keys) < 2:
        raise DataError(
            f"Cross-validation needs at least two cases or patients, found {len(keys)}; train fold 'all' instead."
        )
    folds = KFold(min(_FOLDS, len(keys)), shuffle=True, random_state=_SEED).split(keys)
    return [Split(_cases_of(groups, keys[train]), _cases_of(groups, keys[val])) for train, val in folds]


def _cases_of(groups: Mapping[str, Sequence[str]], chosen: Iterable[str]) -> tuple[str, ...]:
    """The cases of some groups, sorted."""
    cases: list[str] = []
    for group in chosen:
        cases += groups[group]
    return tuple(sorted(cases))


def load_splits(path: Path) -> list[Split]:
    """Read a ``splits_final.json``.

    Raises:
        DataError: the file is not a list of ``{"train": [...], "val": [...]}``.
    """
    data = read_json(path)
    if not isinstance(data, list) or not data:
        raise DataError(f"{path}: expected {_SPLITS_FORM}, found {_found(data)}; mend or delete the file.")
    splits = []
    for number, fold in enumerate(data):
        stated = fold if isinstance(fold, Mapping) else {}
        train, val = _case_names(stated.get("train")), _case_names(stated.get("val"))
        if not train or val is None:
            raise DataError(
                f"{path}: expected {_SPLITS_FORM}, with cases in 'train', but entry {number} is not; mend or delete "
                "the file."
            )
        splits.append(Split(train, val))
    return splits


def load_named_splits(path: Path, cases: Iterable[str]) -> list[Split]:
    """Read a ``splits_final.json`` whose entries may be spelled as files are (``imagesTr/case_01_0000.nii.gz``).

    An entry that is no case of ``cases`` stays as it is; :func:`split_of_fold` refuses the fold that it is in.

    Raises:
        DataError: as for :func:`load_splits`, or an entry means several cases.
    """
    index = NameIndex(cases)

    def named(texts: Iterable[str]) -> tuple[str, ...]:
        try:
            return tuple(dict.fromkeys(index.find(text) or text for text in texts))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    return [Split(named(split.train), named(split.val)) for split in load_splits(path)]


@dataclass(frozen=True)
class FoldRecord:
    """``split.json`` of a fold folder: what its network was trained and is judged on.

    Attributes:
        train: training cases.
        val: validation cases.
        teacher_train: cases that its teacher has seen.
        unlabelled: training cases without labels.
        teacher_weights: a hash of each network that taught, sorted; none where an older version trained.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    teacher_train: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    teacher_weights: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> FoldRecord:
        """Read a ``split.json``; keys of other versions are passed over.

        Raises:
            DataError: the file is missing, or not of this form.
        """
        data = read_json(path)
        further: dict[str, Any] = {"teacher_train": [], "unlabelled": [], "teacher_weights": []}
        stated = further | dict(data) if isinstance(data, Mapping) else {}
        found = {}
        for key in ("train", "val", *further):
            names = _case_names(stated.get(key))
            if names is None:
                raise DataError(
                    f"{path}: expected an object with lists of case names under 'train' and 'val', found another form "
                    f"of '{key}'; train this fold anew with --overwrite."
                )
            found[key] = names
        return cls(**found)


def _case_names(value: Any) -> tuple[str, ...] | None:
    """A list of names (or numbers) as texts; None for anything else."""
    if not isinstance(value, list):
        return None
    names = []
    for name in value:
        if isinstance(name, bool) or not isinstance(name, (str, int)):
            return None
        names.append(str(name))
    return tuple(names)


def _found(data: Any) -> str:
    return "an empty list" if data == [] else type(data).__name__


def save_splits(path: Path, splits: Sequence[Split], *, labelled: bool = True) -> None:
    """Write splits in nnU-Net's form; those of scans that all have no labels say so."""
    further = {} if labelled else {NO_LABELS: True}
    entries = []
    for split in splits:
        entries.append({"train": list(split.train), "val": list(split.val), **further})
    write_json(path, entries)


def find_split(
    folder: Path,
    fold: int | str,
    cases: Sequence[str],
    patients: Mapping[str, str] | None,
    given: Path | None = None,
    **others: bool,
) -> Split:
    """The split of one fold of a preprocessed data set; fold ``all`` needs no splits and makes none.

    Args:
        fold: 0-4 or ``all``.
        others: see :func:`ensure_splits`.

    Raises:
        DataError: see :func:`split_of_fold` and :func:`make_splits`.
    """
    if str(fold) != ALL:
        return split_of_fold(ensure_splits(folder, cases, patients, given, **others), fold, cases)
    missing = cases_and_patients(cases, patients, given)[0] - set(cases)
    if missing:
        text = "%s not preprocessed and left out: %s; run medkd_plan_and_preprocess"
        _log.warning(text, _count(missing), _some(missing))
    return split_of_fold([], fold, cases)


def ensure_splits(
    folder: Path,
    cases: Sequence[str],
    patients: Mapping[str, str] | None,
    given: Path | None = None,
    *,
    write: bool = True,
    anew: bool = False,
    labelled: bool = True,
) -> list[Split]:
    """The splits of a preprocessed data set: its own file, else the user's in the raw folder, else nnU-Net's, else
    newly made ones.

    New splits are of all cases of the raw folder, preprocessed or not. Those that nnU-Net keeps in
    ``$nnUNet_preprocessed`` are taken where they name only cases of this data set, and no patients are known, whom
    nnU-Net would tear apart. A warning names cases that are in no fold, and a file of the user's that is not the one in
    use.

    Args:
        folder: preprocessed data set folder.
        cases: the preprocessed cases.
        patients: case → patient, where known.
        given: raw data set folder, where a user may have put a file of their own.
        write: keep the splits in the preprocessed folder where it has none yet.
        anew: as if the preprocessed folder had none.
        labelled: whether the cases have labels.

    Raises:
        DataError: a file of splits is damaged, or there are too few cases for new ones.
    """
    own = folder / SPLITS_FILE
    users = given / SPLITS_FILE if given else own
    known, owners = cases_and_patients(cases, patients, given)
    twins = _twins(folder)
    theirs = load_named_splits(users, known) if users.exists() else None
    if own.exists() and not anew:
        splits = load_named_splits(own, known)
        _warn_of_others(splits, own, theirs, users)
    else:
        splits = theirs or _nnunet_splits(folder.name, known, owners) or _new_splits(known, owners, twins)
        if write:
            save_splits(own, splits, labelled=labelled)
    source = own if own.exists() else users
    _warn_of_torn_twins(splits, twins, source)
    _warn_of_torn_patients(splits, owners, source)
    _warn_of_unused(known - _all_cases(splits), twins, _all_cases(splits), source)
    return splits


def _warn_of_others(splits: list[Split], own: Path, theirs: list[Split] | None, users: Path) -> None:
    """A file of the user's that is not the one in use."""
    if theirs is not None and _parts(theirs) != _parts(splits):
        _log.warning("%s differs from %s, which is used; delete the latter to use the former", users, own)


def _new_splits(cases: set[str], patients: Mapping[str, str], twins: Sequence[Sequence[str]]) -> list[Split]:
    """Folds that keep patients together, and cases with equal scans."""
    groups = joined_groups(cases, patients, twins) if twins else patients
    return make_splits([*cases], groups)


def _all_cases(splits: Iterable[Split]) -> set[str]:
    cases: set[str] = set()
    for split in splits:
        cases.update(split.train, split.val)
    return cases


def _twins(folder: Path) -> list[list[str]]:
    """Groups of cases with equal scans, as preprocessing found them."""
    try:
        own = DatasetDescription.load(folder / DATASET_FILE).extra.get("medkd", {})
    except DataError:  # reported where the description is needed
        return []
    found = own.get("duplicates", [])
    if not isinstance(found, list):
        return []
    return [group for group in found if isinstance(group, list)]


def _warn_of_unused(cases: set[str], twins: Sequence[Sequence[str]], used: set[str], source: Path) -> None:
    """Name the cases that no fold has; one whose equal scan is in a fold is rightly left out."""
    for group in twins:
        if not used.isdisjoint(group):
            cases = cases - set(group)
    if cases:
        _log.warning(
            "%s in no fold of %s, so neither trained on nor scored: %s; unless they were left out on purpose, add them "
            "there, or delete the file to make new splits, for which networks are trained anew",
            _count(cases),
            source,
            _some(cases),
        )


def _warn_of_torn_twins(splits: Sequence[Split], twins: Sequence[Sequence[str]], source: Path) -> None:
    for group in twins:
        if any(_tears(split, set(group)) for split in splits):
            _log.warning(
                "equal scans are in training and validation at once in %s: %s; delete the file to make new splits, for "
                "which networks are trained anew",
                source,
                ", ".join(group),
            )


def _warn_of_torn_patients(splits: Sequence[Split], patients: Mapping[str, str], source: Path) -> None:
    torn = [torn_patients(fold, split.train, split.val, patients) for fold, split in enumerate(splits)]
    told = [found.text() for found in torn if found is not None]
    if told:
        _log.warning(
            "%s tears patients between training and validation, so that scores flatter: %s; mend the file, or delete "
            "it to make new splits, for which networks are trained anew",
            source,
            ", ".join(told),
        )


def _tears(split: Split, members: set[str]) -> bool:
    """Whether some of these cases are trained on and others judged on."""
    return not members.isdisjoint(split.train) and not members.isdisjoint(split.val)


def split_of_fold(splits: Sequence[Split], fold: int | str, cases: Sequence[str]) -> Split:
    """The split of one fold, restricted to nothing: every case it names must exist.

    Raises:
        DataError: the fold does not exist, names unknown cases, or trains on its own validation cases.
    """
    if str(fold) == ALL:
        return Split(tuple(sorted(cases)), ())
    if str(fold) not in map(str, range(len(splits))):
        raise DataError(f"Fold '{fold}' does not exist; there are folds 0 to {len(splits) - 1} and '{ALL}'.")
    split = splits[int(fold)]
    unknown = sorted(_all_cases([split]) - set(cases))
    if unknown:
        raise DataError(
            f"Fold {fold} names {len(unknown)} cases that are not preprocessed ({_some(unknown)}); run "
            f"medkd_plan_and_preprocess, or take them out of {SPLITS_FILE}."
        )
    for part, named in (("train", split.train), ("val", split.val)):
        if len(set(named)) < len(named):
            case = max(named, key=named.count)
            raise DataError(f"Fold {fold} has the case {case} more than once in '{part}'; mend {SPLITS_FILE}.")
    both = sorted(set(split.train) & set(split.val))
    if both:
        raise DataError(f"Fold {fold} has the case {both[0]} both in 'train' and in 'val'; mend {SPLITS_FILE}.")
    return split


def _nnunet_splits(dataset: str, known: set[str], patients: Mapping[str, str]) -> list[Split] | None:
    """The splits in ``$nnUNet_preprocessed``; None where there are none that fit this data set."""
    folder = os.environ.get(_PREPROCESSED)
    if not folder or patients:
        return None
    path = Path(folder) / dataset / SPLITS_FILE
    if not path.exists():
        return None
    splits = load_named_splits(path, known)
    foreign = _all_cases(splits) - known
    if foreign:
        _log.warning("%s is not used, since it names cases that this data set does not have: %s", path, _some(foreign))
        return None
    _log.info("the splits are taken from %s", path)
    return splits


def _parts(splits: Sequence[Split]) -> list[tuple[set[str], set[str]]]:
    return [(set(split.train), set(split.val)) for split in splits]


def _count(cases: Iterable[str]) -> str:
    number = len(set(cases))
    return "1 training case is" if number == 1 else f"{number} training cases are"


def _some(cases: Iterable[str]) -> str:
    """The first few names, in order."""
    names = sorted(cases)
    shown = ", ".join(names[:5])
    return f"{shown} …" if len(names) > 5 else shown
