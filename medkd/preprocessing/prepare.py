"""Plan a raw data set and preprocess it: verify, fingerprint, plan, preprocess; each step is skipped where nothing
changed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

from medkd.core.dataset import CaseFiles, DatasetDescription, training_cases
from medkd.core.errors import DataError, PlanError
from medkd.core.paths import Root
from medkd.core.plan import Configuration, Plan
from medkd.core.protocol import Protocol, find_protocol
from medkd.core.run import DATASET_FILE, PLANS_FILE
from medkd.core.serial import load, save
from medkd.core.workers import run_cases, worker_count
from medkd.io.verify import REPORT_FILE, verify_dataset
from medkd.io.volumes import read_image, read_label
from medkd.preprocessing.fingerprint import FINGERPRINT_FILE, Fingerprint, make_fingerprint, source_of
from medkd.preprocessing.pipeline import preprocess_case
from medkd.preprocessing.planner import CONFIGURATIONS, make_plan
from medkd.preprocessing.resampling import resampled_shape
from medkd.preprocessing.store import CaseStore, describe_source, recipe_of

_log = logging.getLogger(__name__)


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

    Returns:
        The plan.

    Raises:
        DataError: the raw data are missing or faulty, or cases failed (each is named; the others are done).
        PlanError: the plan has no such configuration, the protocol is unknown, or the existing plan follows another
            one.
    """
    place = Root.resolve(root)
    name = place.dataset_name(dataset)
    raw, folder = place.raw_dataset(name), place.preprocessed / name
    description = DatasetDescription.load(raw / DATASET_FILE)
    if description.task == "detection":
        raise DataError(
            f"{name} holds boxes for detection; it is prepared by medkd_plan_and_preprocess or medkd.detection.prepare."
        )
    followed = find_protocol(protocol, description.extra) if protocol else None
    files = training_cases(raw, description)
    fingerprint = _fingerprint(raw, folder, description, files, workers, verify)
    plan = _plan(name, folder, fingerprint, description, gpu_memory_gb, overwrite_plan, followed)
    chosen = [plan.configuration(c) for c in configurations or plan.configurations]
    description.save(folder / DATASET_FILE)
    for configuration in chosen:
        preprocess_dataset(files, folder, plan, configuration, description, fingerprint, workers)
    return plan


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
        files: the training cases.
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
    for case in set(store.cases()) - set(by_name):
        store.remove(case)
    todo = [case for case in by_name if not store.is_current(case, _paths(by_name[case]), recipe)]
    if not todo:
        _log.info("%s: all %d cases are up to date", configuration.name, len(by_name))
        return store

    def make(case: str) -> None:
        paths = _paths(by_name[case])
        sources = [describe_source(path) for path in paths]
        image, geometry = read_image(paths[:-1], case)
        label = read_label(paths[-1]).array
        store.write(
            case,
            preprocess_case(case, image, geometry, plan, configuration, label, overwrite=True),
            description.labels,
            sources,
            recipe,
        )

    bytes_per_case = _bytes_per_case(fingerprint, plan, configuration, len(description.channel_names))
    run_cases(make, todo, worker_count(bytes_per_case, len(todo), workers), f"preprocess {configuration.name}")
    return store


def _paths(case: CaseFiles) -> list[Path]:
    if case.label is None:
        raise DataError(f"Case {case.case} has no label map; expected one in labelsTr.")
    return [*case.images, case.label]


def _fingerprint(
    raw: Path,
    folder: Path,
    description: DatasetDescription,
    files: Sequence[CaseFiles],
    workers: int | None,
    verify: bool,
) -> Fingerprint:
    path, report_path = folder / FINGERPRINT_FILE, folder / REPORT_FILE
    source = source_of(files)
    known = _existing(path)
    current = known is not None and known.source == source
    if verify and not (current and report_path.exists()):
        report = verify_dataset(raw, workers=workers)
        report.save(report_path)
        if not report.ok:
            raise DataError(
                f"{report.text().rstrip()}\nNothing was preprocessed; mend these, or go on without the check "
                "(--no-verify)."
            )
        _log.info("%s", report.summary())
    if known is not None and current:
        return known
    fingerprint = make_fingerprint(raw, description, workers)
    save(path, fingerprint)
    return fingerprint


def _existing(path: Path) -> Fingerprint | None:
    try:
        return load(Fingerprint, path) if path.exists() else None
    except DataError:  # of another version, or damaged: it costs only time to make it anew
        return None


def _plan(
    name: str,
    folder: Path,
    fingerprint: Fingerprint,
    description: DatasetDescription,
    gpu_memory_gb: float | None,
    overwrite: bool,
    protocol: Protocol | None,
) -> Plan:
    path = folder / PLANS_FILE
    old = Plan.load(path) if path.exists() else None
    if old is not None and not overwrite:
        if protocol is not None and old.protocol != protocol:
            follows = old.protocol.name if old.protocol else "no protocol"
            raise PlanError(
                f"{path} follows {follows}, not {protocol.name}; give --overwrite-plan to make it anew, which "
                "preprocesses again."
            )
        _log.info("%s is kept as it is; --overwrite-plan makes a new one", path)
        return old
    plan = make_plan(name, fingerprint, description, gpu_memory_gb=gpu_memory_gb, protocol=protocol)
    if old is not None and protocol is None:
        custom = {key: value for key, value in old.configurations.items() if key not in CONFIGURATIONS}
        plan = replace(plan, configurations={**plan.configurations, **custom})
    save(path, plan)
    return plan


def _bytes_per_case(fingerprint: Fingerprint, plan: Plan, configuration: Configuration, channels: int) -> float:
    """Peak memory of the largest case: image, masks and label as read, one channel in flight, and the results."""
    largest = 0.0
    for shape, native in zip(fingerprint.shapes_after_crop, fingerprint.spacings, strict=True):
        transposed, spacing = [shape[axis] for axis in plan.transpose], [native[axis] for axis in plan.transpose]
        target = (*spacing[: len(spacing) - configuration.rank], *configuration.spacing)
        before, after = prod(shape), prod(resampled_shape(transposed, spacing, target))
        largest = max(largest, before * (4 * channels + 12) + after * (4 * channels + 12) + 4 * max(before, after))
    return largest
