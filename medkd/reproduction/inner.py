"""A root folder with the training cases of one fold and nothing else, for trainings that must not see the others."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkd.core.dataset import SEGMENTATION, CaseFiles, DatasetDescription, labelled_cases, unlabelled_cases
from medkd.core.errors import DataError, RunError
from medkd.core.files import write_json
from medkd.core.folds import joined_groups
from medkd.core.kind_of_splits import are_outdated
from medkd.core.links import link_or_copy
from medkd.core.meaning import check_meaning
from medkd.core.paths import Root
from medkd.core.patients import known_patients
from medkd.core.run import DATASET_FILE, PLANS_FILE, UNFINISHED
from medkd.core.serial import to_data
from medkd.core.splits import find_split
from medkd.detection.store import DetectionStore

_log = logging.getLogger(__name__)
_INDEX = "cases.json"  # of a store of radiographs
_PARTS = (".json", ".image.npy", ".label.npy", ".locations.npz", ".png", ".txt")


def make_inner_root(root: Root, dataset: str, fold: str, folder: Path, folds: int = 1) -> tuple[str, ...]:
    """Make a root with the labelled training cases of a fold, raw and preprocessed, and no file of any other case.

    Files are linked where the file system allows, else copied. What is there already is kept, unless the data set has
    it otherwise by now. Plan and labels are those of the data set; its splits are not taken over, so that the training
    makes inner folds of its own.

    Args:
        root: medkd's folders.
        dataset: full name, of a data set that is prepared.
        fold: 0-4 or ``all``.
        folder: of the new root.
        folds: how many inner folds are needed.

    Returns:
        The cases.

    Raises:
        DataError: the data set is not prepared, or there is no such fold.
        RunError: its cases are too few for the inner folds.
    """
    prepared, raw = root.preprocessed / dataset, root.raw_dataset(dataset)
    if not (prepared / PLANS_FILE).exists():
        raise DataError(f"{prepared} has no {PLANS_FILE}; run medkd_plan_and_preprocess -d {dataset}.")
    description = DatasetDescription.load(prepared / DATASET_FILE)
    check_meaning(raw, description, dataset)
    known = {files.case: files for files in labelled_cases(raw, description)}
    if not known:
        raise DataError(
            f"{dataset} has scans without labels only, and a search compares scores, which need labels; search on a "
            "data set that has some."
        )
    _tell_of_unlabelled(raw, description, dataset)
    description = replace(description, patients=known_patients(description, raw, known))
    kept = _training_cases(root, dataset, fold, description, sorted(known))
    told = _only(description, kept)
    _check_number(told, kept, f"{dataset}, fold {fold}", folds)
    inner = Root.resolve(folder)
    for case in kept:
        _link_raw(known[case], inner.raw / dataset, description)
    told.save(inner.raw / dataset / DATASET_FILE)
    told.save(inner.preprocessed / dataset / DATASET_FILE)
    shutil.copyfile(prepared / PLANS_FILE, inner.preprocessed / dataset / PLANS_FILE)
    for store in sorted(path for path in prepared.iterdir() if path.is_dir()):
        _link_store(store, inner.preprocessed / dataset / store.name, frozenset(kept))
    return kept


def check_folds(root: Root, dataset: str, fold: str, folds: int = 0) -> None:
    """Refuse a fold that a data set does not have, and a search in it on more inner folds than its training cases give,
    as far as the data are there, prepared or not; nothing is written.

    Args:
        root: medkd's folders.
        dataset: full name.
        fold: 0-4 or ``all``.
        folds: how many inner folds are needed; 0 where nothing is searched.

    Raises:
        DataError: there is no such fold, or the description of the data set is damaged.
        RunError: its cases are too few for the inner folds.
    """
    raw = root.raw_dataset(dataset)
    places = [place for place in (root.preprocessed / dataset, raw) if (place / DATASET_FILE).exists()]
    if not places:
        return
    description = DatasetDescription.load(places[0] / DATASET_FILE)
    try:
        known = sorted(files.case for files in labelled_cases(raw, description))
    except DataError:  # whoever prepares them says what is wrong
        return
    if known:
        description = replace(description, patients=known_patients(description, raw, known))
        kept = _training_cases(root, dataset, fold, description, known, write=False)
        _check_number(_only(description, kept), kept, f"{dataset}, fold {fold}", folds)


def _training_cases(
    root: Root, dataset: str, fold: str, description: DatasetDescription, known: Sequence[str], *, write: bool = True
) -> tuple[str, ...]:
    """Those of a fold, which may be made for that."""
    prepared, raw = root.preprocessed / dataset, root.raw_dataset(dataset)
    others = [scan.case for scan in unlabelled_cases(raw, description)]
    anew = are_outdated(prepared, raw, fold, known, others, write=write)
    return find_split(prepared, fold, known, description.patients, raw, anew=anew, write=write).train


def _check_number(inner: DatasetDescription, cases: Sequence[str], where: str, folds: int) -> None:
    """There are as many inner folds as cases or patients where these are fewer than five."""
    apart = len(set(joined_groups(cases, inner.patients, _twins(inner)).values()))
    if folds and apart < max(folds, 2):
        raise RunError(
            f"{where}: a search on {folds} inner folds needs as many training cases or patients, 2 at least, and the "
            f"fold has {apart}; search on fewer folds, or in another fold."
        )


def _twins(description: DatasetDescription) -> Sequence[Sequence[str]]:
    """Groups of cases with equal scans, as preprocessing found them."""
    own = description.extra.get("medkd")
    return own.get("duplicates", []) if isinstance(own, Mapping) else []


def _tell_of_unlabelled(raw: Path, description: DatasetDescription, dataset: str) -> None:
    """Say that they take no part, as far as ``imagesUn`` is in order; the search needs nothing of it."""
    try:
        count = len(unlabelled_cases(raw, description))
    except DataError:  # whoever prepares them says what is wrong
        return
    if count:
        _log.info("the %d cases without labels of %s take no part in the search", count, dataset)


def _link_raw(files: CaseFiles, target: Path, description: DatasetDescription) -> None:
    """The raw files of a case by the names of the usual layout."""
    ending = description.file_ending if description.task == SEGMENTATION else ".json"
    if files.label is not None:
        link_or_copy(files.label, target / "labelsTr" / f"{files.case}{ending}")
    for channel, image in enumerate(files.images):
        name = f"{files.case}{image.suffix}"
        if description.task == SEGMENTATION:
            name = f"{files.case}_{channel:04d}{ending}"
        link_or_copy(image, target / "imagesTr" / name)


def _only(description: DatasetDescription, cases: Iterable[str]) -> DatasetDescription:
    """A description that knows of these cases only."""
    kept = frozenset(cases)
    extra: dict[str, Any] = {key: value for key, value in description.extra.items() if key not in ("dataset", "medkd")}
    own = description.extra.get("medkd")
    if isinstance(own, Mapping):
        groups = [sorted(kept.intersection(group)) for group in own.get("duplicates", [])]
        extra["medkd"] = {**own, "duplicates": groups}
    patients = {case: patient for case, patient in description.patients.items() if case in kept}
    return replace(description, patients=patients, num_training=len(kept), extra=extra)


def _link_store(store: Path, target: Path, cases: frozenset[str]) -> None:
    """The files of some cases of a store of either task; scans without labels stay behind."""
    if (store / _INDEX).exists():
        index = to_data(DetectionStore(store).index)
        index["cases"] = {case: entry for case, entry in index["cases"].items() if case in cases}
        write_json(target / _INDEX, index)
    (target / UNFINISHED).unlink(missing_ok=True)
    link_or_copy(store / UNFINISHED, target / UNFINISHED)
    for folder in (store, store / "images", store / "labels"):
        for path in sorted(folder.glob("[!.]*")) if folder.is_dir() else ():
            if any(path.name.removesuffix(part) in cases for part in _PARTS):
                link_or_copy(path, target / path.relative_to(store))
