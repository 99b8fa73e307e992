"""Evaluation of a folder of predictions against a folder of references."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
import psutil

from medkd.core.errors import DataError, MedkdError
from medkd.core.labels import LabelSpec
from medkd.core.patients import named_patients
from medkd.evaluation.segmentation.cases import DEFAULT_TOLERANCE_MM, evaluate_case
from medkd.evaluation.segmentation.metrics import HausdorffDefinition
from medkd.evaluation.segmentation.results import CaseScores, Metric, Summary
from medkd.io.checks import grid_deviation
from medkd.io.volumes import WRITABLE, Volume, read_geometry, read_label

__all__ = ["Summary", "evaluate_folder"]

_log = logging.getLogger(__name__)

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".mgz", ".mgh", ".img", ".tif", ".tiff", ".gipl")
_SHOWN = 10  # names in a warning

_WRITTEN = ".nii.gz"  # predictions of scans in a format that medkd cannot write

# Two int16 maps as read and as used, masks and surfaces of a structure that fills the image, and their copies.
_BYTES_PER_VOXEL = 24


def evaluate_folder(
    predictions: Path,
    references: Path | Mapping[str, Path],
    labels: LabelSpec,
    *,
    file_ending: str = ".nii.gz",
    prediction_ending: str | None = None,
    cases: Sequence[str] | None = None,
    workers: int | None = None,
    nsd_tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    definition: HausdorffDefinition = "max",
    further: tuple[Metric, ...] = (),
    patients: Mapping[str, str] | None = None,
    allow_missing: bool = False,
    progress: bool = False,
) -> Summary:
    """Score ``predictions/CASE.nii.gz`` against ``references/CASE.nii.gz``.

    Args:
        predictions: folder of predicted label maps.
        references: folder of reference label maps; or case id → reference, wherever they lie and whatever they are
            called.
        labels: the structures.
        file_ending: of the references.
        prediction_ending: of the predictions; None is ``file_ending``, or ``.nii.gz`` where medkd cannot write that
            format and the folder holds no such files.
        cases: the cases to score; all references where None.
        workers: threads; None follows from cores and free memory.
        nsd_tolerance_mm: tolerance of the normalised surface distance.
        definition: of HD95, see :func:`medkd.evaluation.segmentation.metrics.hausdorff95`.
        further: metrics beside Dice, IoU, HD95 and NSD: ``ASD``, ``ASSD``.
        patients: case id → patient, where known; intervals are over patients then.
        allow_missing: count a case without a prediction as an empty prediction (everything missed) instead of refusing.
        progress: show a progress bar.

    A prediction whose origin or direction differs from the reference's by one voxel at most is scored voxel by voxel,
    as nnU-Net does, and named in a warning; data sets are verified by the same rule.

    Raises:
        DataError: predictions or references are missing (all are named), a file cannot be read, or a prediction does
            not lie on its reference's grid or holds unknown values (every such case is named).
    """
    predictions = Path(predictions)
    truths = _references(references, file_ending, cases, predictions)
    ending = _ending(predictions, file_ending) if prediction_ending is None else prediction_ending
    missing = _missing(predictions, list(truths), ending, allow_missing)
    _tell_skipped(predictions, ending)
    if not isinstance(references, Mapping):
        _tell_skipped(Path(references), file_ending)
    shifted: dict[str, float] = {}
    owners = named_patients(patients or {}, truths)

    def one(case: str) -> CaseScores | str:
        reference, prediction = truths[case], predictions / f"{case}{ending}"
        try:
            truth = read_label(reference)
            if case in missing:
                array = np.zeros_like(truth.array)
            else:
                array = _on_same_grid(read_label(prediction), truth, case, shifted)
            scores = evaluate_case(
                array,
                truth.array,
                truth.geometry.spacing,
                labels,
                nsd_tolerance_mm=nsd_tolerance_mm,
                definition=definition,
                further=further,
                case=case,
            )
        except MedkdError as error:
            return str(error)
        return CaseScores(str(reference), str(prediction), scores, owners.get(case))

    threads = workers_for(list(truths.values())) if workers is None else max(1, workers)
    with ThreadPoolExecutor(threads) as pool:
        scored = _without_problems(_bar(pool.map(one, truths), len(truths), progress))
    _warn_of(shifted, len(truths))
    return Summary(
        cases=scored,
        nsd_tolerance_mm=nsd_tolerance_mm,
        hd95_definition=definition,
        missing=tuple(missing),
        further=further,
    )


def _without_problems(results: Iterable[CaseScores | str]) -> tuple[CaseScores, ...]:
    """The scores, where every case could be scored.

    Raises:
        DataError: some could not; each says why.
    """
    scored, problems = [], []
    for result in results:
        if isinstance(result, str):
            problems.append(result)
        else:
            scored.append(result)
    if problems:
        total = len(scored) + len(problems)
        raise DataError(f"{len(problems)} of {total} cases cannot be scored: " + " ".join(problems))
    return tuple(scored)


def _references(
    references: Path | Mapping[str, Path], ending: str, cases: Sequence[str] | None, predictions: Path
) -> dict[str, Path]:
    """Case id → reference of the cases to score, sorted by case id."""
    if isinstance(references, Mapping):
        names = sorted(references if cases is None else set(cases))
        paths = {name: Path(path) for name, path in references.items()}
        shown = {name: f"{name} ({path})" for name, path in paths.items()}
        _check_present(names, paths, shown, "No reference", predictions)
    else:
        folder = Path(references)
        names = _cases_in(folder, ending) if cases is None else sorted(set(cases))
        paths = {name: folder / f"{name}{ending}" for name in names}
        _check_present(names, paths, {}, f"{folder}: no reference (CASE{ending})", predictions)
    return {name: paths[name] for name in names}


def _check_present(
    names: Sequence[str], paths: Mapping[str, Path], shown: Mapping[str, str], expected: str, predictions: Path
) -> None:
    if not names:
        raise DataError(f"There is no case to score in {predictions}: the list of cases is empty.")
    unknown = []
    for name in names:
        if name not in paths or not paths[name].exists():
            unknown.append(shown.get(name, name))
    if unknown:
        raise DataError(
            f"{expected} for {len(unknown)} of {len(names)} cases: {', '.join(unknown)}; restore the files or leave "
            "these cases out."
        )


def _cases_in(folder: Path, ending: str) -> list[str]:
    names = _names_in(folder, ending)
    if not names:
        raise DataError(
            f"{folder}: expected label maps named CASE{ending}, found none; check the folder and the file ending."
        )
    return names


def _names_in(folder: Path, ending: str) -> list[str]:
    """Names of the cases whose files lie in a folder, sorted; hidden files are none."""
    names = []
    for path in folder.glob(f"*{ending}"):
        if not path.name.startswith("."):
            names.append(path.name.removesuffix(ending))
    return sorted(names)


def _ending(predictions: Path, references: str) -> str:
    if references in WRITABLE or any(predictions.glob(f"*{references}")):
        return references
    return _WRITTEN


def _missing(predictions: Path, names: Sequence[str], ending: str, allowed: bool) -> list[str]:
    missing = [name for name in names if not (predictions / f"{name}{ending}").exists()]
    if not predictions.is_dir():
        raise DataError(f"The folder of predictions {predictions} does not exist; check the path.")
    if missing and not allowed:
        raise DataError(
            f"{predictions}: no prediction (CASE{ending}) for {len(missing)} of {len(names)} cases: "
            f"{', '.join(missing)}. "
            "Predict them, or allow missing ones to count as missed."
        )
    if len(missing) == len(names):
        raise DataError(
            f"{predictions} has no prediction (CASE{ending}) for any of the {len(names)} cases, {names[0]} for example"
            f"{_instead(predictions)}; check the folder and the file ending."
        )
    extra = sorted(set(_names_in(predictions, ending)) - set(names))
    if extra:
        _log.warning(
            "%d predictions are not scored, since they are not among the references: %s", len(extra), ", ".join(extra)
        )
    return missing


def _instead(folder: Path) -> str:
    """What a folder holds."""
    files = sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(VOLUME_ENDINGS))
    return f"; it holds {', '.join(files[:3])}{' and more' if len(files) > 3 else ''}" if files else ""


def _tell_skipped(folder: Path, ending: str) -> None:
    """Name the volumes in a folder that are not scored, since their names end otherwise."""
    skipped = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = path.name
        if name.startswith(".") or name.endswith(ending) or not path.is_file():
            continue
        if name.lower().endswith(VOLUME_ENDINGS):
            skipped.append(name)
    if not skipped:
        return
    shown = ", ".join(skipped[:_SHOWN])
    if len(skipped) > _SHOWN:
        shown += f" and {len(skipped) - _SHOWN} more"
    _log.warning("%s: %d volumes are skipped, since they do not end in %s: %s", folder, len(skipped), ending, shown)


def _on_same_grid(prediction: Volume, reference: Volume, case: str, shifted: dict[str, float]) -> np.ndarray:
    """The prediction's voxels; ``shifted`` notes by how many mm they lie elsewhere, where that is little enough."""
    deviation = grid_deviation(reference.geometry, prediction.geometry)
    if deviation is not None and deviation.error:
        raise DataError(
            f"{case}: prediction and reference differ in {', '.join(deviation.names)} "
            f"(shape {prediction.geometry.shape} and {reference.geometry.shape}, "
            f"spacing {_rounded(prediction)} and {_rounded(reference)} mm{_apart(deviation.moved_mm)}); "
            "bring the prediction onto the reference's grid."
        )
    if deviation is not None and deviation.moved_mm is not None:
        shifted[case] = deviation.moved_mm
    return prediction.array


def _apart(moved_mm: float | None) -> str:
    return "" if moved_mm is None else f", up to {moved_mm:.3g} mm apart"


def _warn_of(shifted: Mapping[str, float], total: int) -> None:
    if shifted:
        _log.warning(
            "%d of %d cases: prediction and reference differ in origin or direction by one voxel or less (up to %.3g "
            "mm) and are scored "
            "voxel by voxel; check that they show the same place: %s",
            len(shifted),
            total,
            max(shifted.values()),
            ", ".join(sorted(shifted)),
        )


def _rounded(volume: Volume) -> tuple[float, ...]:
    return tuple(round(s, 4) for s in volume.geometry.spacing)


def workers_for(files: Sequence[Path]) -> int:
    """Threads that fit the memory: the costly parts (inflating, k-d trees, NumPy) release the interpreter's lock."""
    try:
        largest = max(prod(read_geometry(path).shape) for path in files)
    except MedkdError:
        return 1  # the unreadable file is reported with its case later
    usable = 0.5 * psutil.virtual_memory().available
    fitting = int(usable / (_BYTES_PER_VOXEL * max(largest, 1)))
    return max(1, min(os.cpu_count() or 1, fitting, len(files)))


def _bar(results: Iterable[CaseScores | str], total: int, show: bool) -> Iterable[CaseScores | str]:
    from tqdm import tqdm

    return tqdm(results, total=total, disable=None if show else True, unit="case", desc="scoring")
