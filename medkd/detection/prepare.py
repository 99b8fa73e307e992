"""Make a raw detection data set ready for training: verify, fingerprint, plan, split, store; what did not change is not
done again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import UNLABELLED_FOLDER, CaseFiles, DatasetDescription, training_cases, unlabelled_cases
from medkd.core.dataset_keys import check_meant
from medkd.core.errors import DataError, PlanError
from medkd.core.folds import joined_groups, stratified_folds
from medkd.core.paths import Root
from medkd.core.patients import named_patients
from medkd.core.protocol import DetectionProtocol
from medkd.core.protocol_files import find_detection_protocol
from medkd.core.run import DATASET_FILE, DETECTION, PLANS_FILE
from medkd.core.serial import load, save
from medkd.core.splits import SPLITS_FILE, Split, ensure_splits, save_splits
from medkd.core.workers import run_cases, worker_count
from medkd.detection.fingerprint import (
    FINGERPRINT_FILE,
    DetectionFingerprint,
    known_fingerprint,
    make_fingerprint,
    source_of_files,
)
from medkd.detection.plan import DetectionPlan
from medkd.detection.planner import Wishes, apply_wishes, make_plan
from medkd.detection.sampling import sampling_groups
from medkd.detection.store import DetectionStore, DetectionStoreWriter, source_of_case
from medkd.io.checks import Finding
from medkd.io.radiographs import radiograph_size, scaling_of
from medkd.io.verify import REPORT_FILE, Report, accept, verify_dataset
from medkd.io.verify_patients import are_told, patient_findings

_BYTES_PER_PIXEL = 24  # of a raw radiograph while it is stored: as read, as float32, as uint8
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Raw:
    """The training cases of a raw data set: their files, and the state of these.

    Attributes:
        unlabelled: the images without annotation.
        sources: of both kinds.
        of_patients: what is wrong with the patients.
    """

    folder: Path
    description: DatasetDescription
    files: Mapping[str, CaseFiles]
    unlabelled: Mapping[str, CaseFiles]
    sources: Mapping[str, str]
    of_patients: Sequence[Finding]


def plan_and_preprocess_detection(
    dataset: str | int,
    *,
    root: str | Path | None = None,
    workers: int | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    overwrite_plan: bool = False,
    verify: bool = True,
    strict: bool = False,
    protocol: str | None = None,
) -> DetectionPlan:
    """Make a raw detection data set ready for training.

    An existing plan is kept, since a person may have edited it, but for what the arguments say. A stored image is made
    anew only if its raw files changed or the plan asks for another size. A killed run goes on where it stopped.

    Args:
        dataset: number or full name.
        root: medkd's folder; None takes ``$MEDKD_ROOT``, else ``./medkd_data``.
        workers: largest number of images at a time; None takes the cores.
        image_size: side of the square input in pixels, a multiple of 32; None leaves it to the plan.
        batch_size: images per step; None leaves it to the plan.
        overwrite_plan: make the plan anew.
        verify: check the raw data first.
        strict: refuse raw data that raise a warning.
        protocol: name of published settings (or a JSON file of that form) that a new plan follows.

    Returns:
        The plan.

    Raises:
        DataError: the raw data are missing or faulty, or images failed (each is named; the others are done).
        PlanError: a value makes no sense, the protocol is unknown, or the existing plan follows another one.
    """
    place = Root.resolve(root)
    name = place.dataset_name(dataset)
    folder = place.preprocessed / name
    raw = _read(place.raw_dataset(name))
    followed = find_detection_protocol(protocol, raw.description.extra) if protocol else None
    source = source_of_files({case: raw.sources[case] for case in raw.files})  # a plan follows from boxes alone
    current = known_fingerprint(folder / FINGERPRINT_FILE, source)
    if verify:
        _verify(raw, folder, workers, bool(current) and not raw.unlabelled, strict)
    annotations = _annotations(raw)
    if not current:
        save(folder / FINGERPRINT_FILE, make_fingerprint(annotations, raw.description.categories, source))
    fingerprint = load(DetectionFingerprint, folder / FINGERPRINT_FILE)
    plan = _plan(name, folder, raw.description, fingerprint, Wishes(image_size, batch_size), overwrite_plan, followed)
    raw.description.save(folder / DATASET_FILE)
    ensure_detection_splits(folder, annotations, raw.description, raw.folder)
    _store(raw, annotations, folder / DETECTION, plan, workers)
    return plan


def ensure_detection_splits(
    folder: Path, annotations: Mapping[str, BoxAnnotation], description: DatasetDescription, raw: Path
) -> list[Split]:
    """The splits of a preprocessed data set: its own file, else the one in the raw folder, else five folds.

    The folds are stratified by class; a patient's images and equal images stay together.

    Raises:
        DataError: a file of splits is damaged, or there is one patient only.
    """
    if not (folder / SPLITS_FILE).exists() and not (raw / SPLITS_FILE).exists():
        twins = description.extra.get("medkd", {}).get("duplicates", [])
        groups = joined_groups(annotations, description.patients, twins)
        numbers = {name: i + 1 for i, name in enumerate(description.categories)}
        folds = stratified_folds(
            {case: sorted({numbers[n] for n in a.names or a.ignored_names}) for case, a in annotations.items()}, groups
        )
        if folds:
            save_splits(folder / SPLITS_FILE, [Split(train, val) for train, val in folds])
    return ensure_splits(folder, sorted(annotations), description.patients, raw)


def _read(folder: Path) -> _Raw:
    description = DatasetDescription.load(folder / DATASET_FILE)
    check_meant(folder / DATASET_FILE)
    if description.task != "detection":
        raise DataError(f"{folder} is a data set for segmentation; it is prepared by medkd.preprocessing.")
    unlabelled = {case.case: case for case in unlabelled_cases(folder, description)}
    files = {case.case: case for case in _annotated(folder, description, unlabelled)}
    _refuse_absent(files)
    both = sorted(set(files) & set(unlabelled))
    if both:
        raise DataError(
            f"{unlabelled[both[0]].images[0]}: expected images without annotation in {UNLABELLED_FOLDER}, found one of "
            f"the name of labelsTr/{both[0]}.json; move it to imagesTr, or give it another name."
        )
    sources = {name: source_of_case(*_paths(case)) for name, case in files.items()}
    sources |= {name: source_of_case(case.images[0]) for name, case in unlabelled.items()}
    named = replace(description, patients=named_patients(description.patients, [*files, *unlabelled]))
    return _Raw(
        folder=folder,
        description=named,
        files=files,
        unlabelled=unlabelled,
        sources=sources,
        of_patients=patient_findings(folder, description),
    )


def _refuse_absent(files: Mapping[str, CaseFiles]) -> None:
    absent = [path for case in files.values() for path in _paths(case) if not path.exists()]
    if absent:
        raise DataError(
            f"{absent[0]} does not exist ({len(absent)} files are missing); restore it, or remove the annotation."
        )


def _annotated(folder: Path, description: DatasetDescription, unlabelled: Mapping[str, CaseFiles]) -> list[CaseFiles]:
    """The annotated cases, of which a data set must have some: a detector is judged by boxes only."""
    if unlabelled and not any((folder / "labelsTr").glob("[!.]*")):
        raise DataError(
            f"{folder}: expected annotated images beside the {len(unlabelled)} in {UNLABELLED_FOLDER}, found none, but "
            "the plan follows from boxes and detectors are judged by them; annotate some images, or convert the data "
            "set whose annotations are missing."
        )
    return training_cases(folder, description)


def _paths(case: CaseFiles) -> tuple[Path, Path]:
    if case.label is None:
        raise DataError(
            f"Case {case.case} has no boxes; expected labelsTr/{case.case}.json, with an empty list for a negative."
        )
    return case.images[0], case.label


def _annotations(raw: _Raw) -> dict[str, BoxAnnotation]:
    found = {name: BoxAnnotation.load(_paths(case)[1]) for name, case in raw.files.items()}
    for name, annotation in found.items():
        try:
            annotation.indices(raw.description.categories)
            annotation.ignored_indices(raw.description.categories)
        except DataError as error:
            raise DataError(f"{_paths(raw.files[name])[1]}: {error}") from error
    return found


def _verify(raw: _Raw, folder: Path, workers: int | None, current: bool, strict: bool) -> None:
    """Verify what changed, and tell what was found in any case."""
    path = folder / REPORT_FILE
    report = load(Report, path) if current and path.exists() else None
    if report is None or not are_told([*report.problems, *report.warnings], raw.of_patients):
        report = verify_dataset(raw.folder, workers=workers)
        report.save(path)
    accept(report, path, strict)


def _plan(
    name: str,
    folder: Path,
    description: DatasetDescription,
    fingerprint: DetectionFingerprint,
    wishes: Wishes,
    overwrite: bool,
    protocol: tuple[str, DetectionProtocol] | None,
) -> DetectionPlan:
    path = folder / PLANS_FILE
    if path.exists() and not overwrite:
        old = DetectionPlan.load(path)
        sampling_groups(old)
        if protocol is not None and old.protocol != protocol[0]:
            raise PlanError(
                f"{path} follows {old.protocol or 'no protocol'}, not {protocol[0]}; give --overwrite-plan to make it "
                "anew."
            )
        if old.categories != description.categories:
            found, wanted = ", ".join(old.categories), ", ".join(description.categories)
            raise PlanError(
                f"{path} is for the categories {found}, the data set has {wanted}; give --overwrite-plan to make it "
                "anew."
            )
        _log.info("%s is kept; --overwrite-plan makes a new one", path)
        plan = apply_wishes(old, wishes)
        if plan is old:
            return old
    else:
        plan = make_plan(name, description.categories, fingerprint, wishes, protocol)
    plan.save(path)
    return plan


def _store(
    raw: _Raw, annotations: Mapping[str, BoxAnnotation], folder: Path, plan: DetectionPlan, workers: int | None
) -> DetectionStore:
    scaling = scaling_of(raw.description.extra, str(raw.folder / DATASET_FILE))
    writer = DetectionStoreWriter(folder, plan.categories, plan.image_size, scaling)
    sizes = {case: (a.width, a.height) for case, a in annotations.items()}
    sizes |= {case: radiograph_size(files.images[0]) for case, files in raw.unlabelled.items()}
    every = {**raw.files, **raw.unlabelled}
    crowds = {case: len(annotation.ignored) for case, annotation in annotations.items()}
    todo = [case for case in every if not _is_stored(writer, raw, case, sizes[case], crowds.get(case, 0))]
    if todo:
        largest = max(sizes[case][0] * sizes[case][1] for case in todo)
        count = worker_count(largest * _BYTES_PER_PIXEL, len(todo), workers)
        run_cases(
            lambda case: writer.write(case, every[case].images[0], annotations.get(case), raw.sources[case]),
            todo,
            count,
            f"preprocess {DETECTION}",
        )
    return writer.finish(sorted(every))


def _is_stored(writer: DetectionStoreWriter, raw: _Raw, case: str, size: tuple[int, int], crowds: int) -> bool:
    """Whether a case is stored as it should be; beside images without annotation all must be comparable with them."""
    if not writer.is_current(case, raw.sources[case], size, crowds):
        return False
    return not raw.unlabelled or writer.is_compared(case)
