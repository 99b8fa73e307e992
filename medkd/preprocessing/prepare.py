"""Plan a raw data set and preprocess it: verify, fingerprint, plan, preprocess; each step is skipped where nothing
changed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np

from medkd.core.dataset import CaseFiles, DatasetDescription, labelled_cases, unlabelled_cases
from medkd.core.dataset_keys import check_meant
from medkd.core.errors import DataError
from medkd.core.files import write_text
from medkd.core.paths import Root
from medkd.core.patients import named_patients
from medkd.core.plan import Configuration, Plan
from medkd.core.protocol import Protocol
from medkd.core.protocol_files import find_protocol
from medkd.core.run import DATASET_FILE, PLANS_FILE, UNFINISHED
from medkd.core.serial import load, save
from medkd.core.splits import SPLITS_FILE, Split, save_splits
from medkd.core.workers import run_cases, worker_count
from medkd.io.orientation import check_code
from medkd.io.verify import REPORT_FILE, Report, accept, verify_dataset
from medkd.io.verify_patients import are_told, patient_findings
from medkd.io.verify_unlabelled import check_layout
from medkd.io.volumes import read_image, read_label
from medkd.preprocessing.fingerprint import FINGERPRINT_FILE, Fingerprint, make_fingerprint, source_of
from medkd.preprocessing.pipeline import preprocess_case
from medkd.preprocessing.resampling import resampled_shape
from medkd.preprocessing.store import CaseStore, describe_source, recipe_of
from medkd.preprocessing.wishes import (
    Wishes,
    check_mirror_axes,
    keep_plan,
    mirrored_axes,
    new_plan,
    orientation_of,
    with_twins,
)

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class TakenOver:
    """What a data set takes over from a model that was trained elsewhere.

    Attributes:
        plan: the model's, for this data set.
        splits: its folds; None where they say nothing here.
    """

    plan: Plan
    splits: Sequence[Split] | None = None


def plan_and_preprocess(
    dataset: str | int,
    *,
    root: str | Path | None = None,
    configurations: Sequence[str] | None = None,
    workers: int | None = None,
    gpu_memory_gb: float | None = None,
    overwrite_plan: bool = False,
    verify: bool = True,
    protocol: str | None = None,
    orientation: str | None = None,
    mirror_axes: tuple[int, ...] | None = None,
    strict: bool = False,
    taken: TakenOver | None = None,
) -> Plan:
    """Make a raw data set ready for training.

    Every step looks at what is there: raw data that did not change since the fingerprint was made are not verified or
    read for it again, an existing plan is kept (a person may have edited it), and a stored case is made anew only if
    its raw files or the parts of the plan that it depends on changed. A killed run therefore goes on where it stopped.

    Args:
        dataset: number or full name.
        root: medkd's folder; None takes ``$MEDKD_ROOT``, else ``./medkd_data``.
        configurations: which to preprocess; None takes all that are planned.
        workers: largest number of cases at a time; None derives it from cores. Memory limits it in both cases.
        gpu_memory_gb: memory that training may use, for a new plan.
        overwrite_plan: make the plan anew; configurations that the planner does not know are kept.
        verify: check the raw data first.
        protocol: name of a published protocol (or a JSON file of that form) that a new plan follows.
        orientation: axis code (``"RAS"``) that a new plan turns all scans to; None takes the one that the data set's
            ``overwrite_image_reader_writer`` means, else scans as they are stored.
        mirror_axes: axes of the 3D network (0 is the plan's first axis, mostly head-foot or the coarsest) that training
            and test-time augmentation may mirror; 2D configurations take those of their slices. None leaves it to the
            plan, which mirrors all.
        strict: refuse what is otherwise a warning.
        taken: of a model, in place of the existing plan, which stays where the raw data are refused.

    Returns:
        The plan.

    Raises:
        DataError: the raw data are missing or faulty (or, with ``strict``, odd), or cases failed (each is named; the
            others are done).
        PlanError: the plan has no such configuration, the protocol is unknown, the existing plan follows another one
            or turns scans otherwise, or ``dataset.json`` names a reader that medkd cannot stand in for.
    """
    place = Root.resolve(root)
    name = place.dataset_name(dataset)
    raw, folder = place.raw_dataset(name), place.preprocessed / name
    description = _description(raw)
    wishes = Wishes(
        gpu_memory_gb=gpu_memory_gb,
        protocol=_protocol(protocol, description),
        orientation=check_code(orientation) if orientation else None,
        mirror_axes=check_mirror_axes(mirror_axes),
    )
    path = folder / PLANS_FILE
    old = Plan.load(path) if path.exists() else None
    kept = taken.plan if taken else None if overwrite_plan else old
    turn_to = orientation_of(kept, wishes, description, path)
    files = _scans(raw, description, kept)
    chosen_axes = wishes.mirror_axes is not None
    mirrored = wishes.mirror_axes if chosen_axes else mirrored_axes(kept)
    raw_data = _RawData(raw, description, files, turn_to, mirrored)
    fingerprint = _fingerprint(raw_data, folder, workers, verify, strict, again=chosen_axes)
    plan = (
        keep_plan(kept, wishes, path, fingerprint, description)
        if kept
        else new_plan(name, fingerprint, description, wishes, old)
    )
    chosen = [plan.configuration(key) for key in configurations or plan.configurations]
    _write(folder, plan, old, taken)
    with_twins(_with_named_patients(description, files), fingerprint).save(folder / DATASET_FILE)
    for configuration in chosen:
        preprocess_dataset(files, folder, plan, configuration, description, fingerprint, workers)
    _check_still_there(folder)
    return plan


def _write(folder: Path, plan: Plan, old: Plan | None, taken: TakenOver | None) -> None:
    """Write the plan, and folds that are taken over, where nothing is refused any more and before the cases: those that
    are not made anew yet are then known to be old.
    """
    if taken and taken.splits is not None:
        save_splits(folder / SPLITS_FILE, taken.splits)
    if plan != old:
        save(folder / PLANS_FILE, plan)


def _description(raw: Path) -> DatasetDescription:
    """What the raw data set says of itself; it has label maps."""
    description = DatasetDescription.load(raw / DATASET_FILE)
    check_meant(raw / DATASET_FILE)
    if description.task == "detection":
        raise DataError(
            f"{raw.name} holds boxes for detection; it is prepared by medkd_plan_and_preprocess or "
            "medkd.detection.prepare."
        )
    return description


def _with_named_patients(description: DatasetDescription, files: Sequence[CaseFiles]) -> DatasetDescription:
    """With patients by the ids of the cases, however the raw data set spells them."""
    return replace(description, patients=named_patients(description.patients, [case.case for case in files]))


def _scans(raw: Path, description: DatasetDescription, kept: Plan | None) -> list[CaseFiles]:
    """The cases, and scans without labels behind them; a new plan needs cases."""
    labelled = labelled_cases(raw, description)
    if not labelled and kept is None:
        raise DataError(
            f"{raw} has scans without labels only, and intensities and structures to plan from need labels; take over "
            "the preprocessing of a model with --like MODEL."
        )
    return labelled + unlabelled_cases(raw, description)


def _protocol(named: str | None, description: DatasetDescription) -> Protocol | None:
    return find_protocol(named, description.extra) if named else None


def _check_still_there(folder: Path) -> None:
    """Somebody may have removed the folder in the meantime."""
    for name in (PLANS_FILE, DATASET_FILE, FINGERPRINT_FILE):
        if not (folder / name).exists():
            raise DataError(f"{folder} lost its {name} meanwhile; run the command again, and let nothing remove it.")


def preprocess_dataset(
    files: Sequence[CaseFiles],
    folder: Path,
    plan: Plan,
    configuration: Configuration,
    description: DatasetDescription,
    fingerprint: Fingerprint,
    workers: int | None = None,
) -> CaseStore:
    """Preprocess the cases of one configuration that are not stored yet or changed; stored cases without raw files are
    removed.

    Args:
        files: the training cases, and the scans without labels.
        folder: ``<root>/preprocessed/DATASET``.
        plan: the plan.
        configuration: one of the plan's configurations.
        description: channels and labels.
        fingerprint: gives the shapes, from which the memory per case follows.
        workers: see :func:`plan_and_preprocess`.

    Raises:
        DataError: cases failed; each is named, the others are stored.
    """
    store = CaseStore(folder / configuration.name)
    recipe = recipe_of(plan, configuration, description.labels)
    by_name = {case.case: case for case in files}
    stores = {case: store if files.label else store.unlabelled for case, files in by_name.items()}
    _remove_others(store, stores)
    todo = []
    for name, case_files in by_name.items():
        if not stores[name].is_current(name, _paths(case_files), recipe):
            todo.append(name)
    if not todo:
        (store.folder / UNFINISHED).unlink(missing_ok=True)
        _log.info("%s: all %d cases are up to date", configuration.name, len(by_name))
        return store

    def make(case: str) -> None:
        files = by_name[case]
        sources = [describe_source(path) for path in _paths(files)]
        image, geometry = read_image(files.images, case)
        blank = np.zeros(image.shape[1:], np.uint8)  # of a scan without labels the non-zero mask is kept
        label = blank if files.label is None else read_label(files.label).array
        made = preprocess_case(case, image, geometry, plan, configuration, label, overwrite=True)
        stores[case].write(case, made, description.labels, sources, recipe)

    bytes_per_case = _bytes_per_case(fingerprint, plan, configuration, len(description.channel_names))
    with _marked(store.folder / UNFINISHED):
        run_cases(make, todo, worker_count(bytes_per_case, len(todo), workers), f"preprocess {configuration.name}")
    lost = [case for case in by_name if not stores[case].is_complete(case)]
    if lost:
        raise DataError(
            f"{store.folder} lost {len(lost)} of its {len(by_name)} cases while they were made, for example {lost[0]}; "
            "run the command again, and let nothing else remove files there."
        )
    return store


@contextmanager
def _marked(mark: Path) -> Iterator[None]:
    """Mark a store as long as its cases are made. Failures are told, and what they left can be used; a kill leaves the
    mark, by which trainings know that cases are missing, or are of two states of the raw data.
    """
    write_text(mark, "cases are being made, or a preparation was killed: run it again\n")
    try:
        yield
    except Exception:
        mark.unlink(missing_ok=True)
        raise
    mark.unlink(missing_ok=True)


def _remove_others(store: CaseStore, stores: Mapping[str, CaseStore]) -> None:
    """Remove stored cases that are no cases any longer, or have got or lost their label map since."""
    for part in (store, store.unlabelled):
        for case in part.cases():
            if case not in stores or stores[case].labelled != part.labelled:
                part.remove(case)


def _paths(case: CaseFiles) -> list[Path]:
    """The files of a case, its label map last."""
    paths = list(case.images)
    if case.label is not None:
        paths.append(case.label)
    return paths


@dataclass(frozen=True)
class _RawData:
    """A raw data set and how it is going to be used: the axis code to turn to, the axes of the network to mirror."""

    folder: Path
    description: DatasetDescription
    files: Sequence[CaseFiles]
    orientation: str | None
    mirror_axes: tuple[int, ...] | None


def _fingerprint(
    raw: _RawData, folder: Path, workers: int | None, verify: bool, strict: bool, *, again: bool
) -> Fingerprint:
    """The fingerprint, made anew where the raw data changed; they are verified before.

    Args:
        raw: the raw data.
        folder: ``<root>/preprocessed/DATASET``.
        workers: threads.
        verify: check the raw data first.
        strict: refuse warnings too.
        again: verify also what did not change.
    """
    path, report_path = folder / FINGERPRINT_FILE, folder / REPORT_FILE
    source = source_of(raw.files)
    known = _existing(path, Fingerprint)
    if known is not None and not _is_current(known, source, raw):
        known = None
    if verify:
        report = None if known is None or again else _existing(report_path, Report)
        if report is None or not _holds(report, raw):
            report = verify_dataset(
                raw.folder, workers=workers, orientation=raw.orientation, mirror_axes=raw.mirror_axes
            )
            report.save(report_path)
        accept(report, report_path, strict)
    if known is not None:
        return known
    fingerprint = make_fingerprint(raw.folder, raw.description, workers, raw.orientation)
    save(path, fingerprint)
    return fingerprint


def _holds(report: Report, raw: _RawData) -> bool:
    """Whether a report of the same cases found no problem, and says what is true of what they do not show."""
    told = are_told([*report.problems, *report.warnings], patient_findings(raw.folder, raw.description))
    return report.ok and told and not _has_strays(raw)


def _has_strays(raw: _RawData) -> bool:
    """Whether anything lies among the scans without labels that is none, which the cases do not show."""
    labelled = {files.case for files in raw.files if files.label is not None}
    return bool(check_layout(raw.folder, raw.description, labelled)[1])


def _is_current(known: Fingerprint, source: str, raw: _RawData) -> bool:
    """Whether a fingerprint is one of these very data, and made by a version that described each case."""
    return known.source == source and known.orientation == raw.orientation and bool(known.facts)


def _existing(path: Path, kind: type[T]) -> T | None:
    try:
        return load(kind, path) if path.exists() else None
    except DataError:  # of another version, or damaged: it costs only time to make it anew
        return None


def _bytes_per_case(fingerprint: Fingerprint, plan: Plan, configuration: Configuration, channels: int) -> float:
    """Peak memory of the largest case: image, masks and label as read, one channel in flight, and the results."""
    axes = list(plan.transpose)
    largest = 0.0
    grids = list(zip(fingerprint.shapes_after_crop, fingerprint.spacings, strict=True))
    grids += [(scan.shape_after_crop, scan.spacing) for scan in fingerprint.unlabelled]
    for shape, native in grids:
        transposed, spacing = np.array(shape)[axes].tolist(), np.array(native)[axes].tolist()
        target = (*spacing[: len(spacing) - configuration.rank], *configuration.spacing)
        before = prod(shape)
        after = prod(resampled_shape(transposed, spacing, target))
        needed = (before + after) * (4 * channels + 12) + 4 * max(before, after)
        largest = max(largest, needed)
    return largest
