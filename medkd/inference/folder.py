"""Prediction of a folder of scans: the function behind ``medkd_predict``."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from medkd.core.checkpoint import weights_digest
from medkd.core.dataset import CaseFiles
from medkd.core.errors import DataError, MedkdError, RunError
from medkd.core.files import atomic_path
from medkd.core.geometry import Geometry
from medkd.core.serial import load, save
from medkd.inference.inputs import find_cases, output_ending
from medkd.inference.predictor import Precision, Prediction, Predictor
from medkd.io.volumes import read_image, write_volume
from medkd.preprocessing.pipeline import Preprocessed, preprocess_case

SETTINGS_FILE = "predict_settings.json"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # wrong for every further case, too
logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class PredictSettings:
    """``predict_settings.json``: what the predictions beside it were made with.

    Attributes:
        run: run folder.
        folds: folds whose logits were averaged.
        checkpoint: ``"final"`` or ``"best"``.
        step_size: tile distance as a share of the patch.
        mirror_axes: axes that were mirrored; empty without test-time augmentation.
        precision: arithmetic of the forwards.
        medkd: version.
        blending: ``gaussian`` or ``constant`` weights of a tile's voxels.
        weights: a hash of each network's weights.
    """

    run: str
    folds: tuple[str, ...]
    checkpoint: str
    step_size: float
    mirror_axes: tuple[int, ...]
    precision: str
    medkd: str
    blending: str = "gaussian"
    weights: tuple[str, ...] = ()
    schema: int = 1


@dataclass
class PredictReport:
    """What became of the cases: ids that were predicted, ids that were there already, and id → why it failed."""

    predicted: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def predict_folder(
    inputs: Path | str | Sequence[Path | str],
    outputs: Path,
    run: Path,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "final",
    step_size: float | None = None,
    mirror: bool | None = None,
    save_probabilities: bool = False,
    device: torch.device | str | None = None,
    precision: Precision | None = None,
    part: tuple[int, int] = (0, 1),
    resume: bool = False,
) -> PredictReport:
    """Predict raw scans and write label maps in the scans' own geometry.

    A scan that cannot be predicted is reported and the others go on. Reading the next and writing the last case happen
    in two threads beside the network. Every file is written atomically.

    Args:
        inputs: a folder, a scan, or the channel files of one case; see :func:`medkd.inference.inputs.find_cases`.
        outputs: folder for ``CASE.nii.gz``, with :data:`SETTINGS_FILE` beside them.
        run: run folder.
        folds: folds to average; None takes every trained one.
        checkpoint: ``"final"`` or ``"best"``.
        step_size: tile distance as a share of the patch; None is the protocol's of the plan, else 0.5.
        mirror: test-time augmentation over the axes that training mirrored; None is the protocol's of the plan, else
            True.
        save_probabilities: write ``CASE.npz`` with ``probabilities`` ``(K, z, y, x)`` float16 too, as nnU-Net does.
        device: None picks CUDA where present, else the CPU.
        precision: None is fp16 on CUDA, fp32 elsewhere.
        part: (index from 0, count): predict only every count-th case, for several machines.
        resume: leave out cases whose files are there already.

    Returns:
        What became of each case.

    Raises:
        RunError: the run cannot be used, or ``resume`` meets predictions made with other settings.
        DataError: there are no inputs, the output folder cannot be written to, or the disk is full.
    """
    predictor = Predictor.from_run(
        run, folds, device, step_size=step_size, mirror=mirror, precision=precision, checkpoint=checkpoint
    )  # fmt: skip
    cases = find_cases(inputs, len(predictor.configuration.normalization))
    outputs = Path(outputs)
    _protect_inputs(cases, outputs)
    if not 0 <= part[0] < part[1]:
        raise RunError(f"The part must be I of N with I from 1 to N, found {part[0] + 1} of {part[1]}.")
    _write_settings(outputs, _settings(predictor, Path(run), checkpoint), resume)
    return predict_cases(
        predictor, cases[part[0] :: part[1]], outputs, save_probabilities=save_probabilities, resume=resume
    )


def predict_cases(
    predictor: Predictor,
    cases: Sequence[CaseFiles],
    outputs: Path,
    *,
    save_probabilities: bool = False,
    resume: bool = False,
) -> PredictReport:
    """Predict ``cases`` into ``outputs``; see :func:`predict_folder`.

    Raises:
        DataError: the disk is full or read-only; no further case could be written.
    """
    done = [
        case
        for case in cases
        if resume and all(path.exists() for path in _output_paths(case, outputs, save_probabilities))
    ]
    waiting = [case for case in cases if case not in done]
    report = PredictReport(skipped=[case.case for case in done])
    bar = tqdm(total=len(waiting), desc="predicting", unit="case", disable=None)
    with ThreadPoolExecutor(1, "writer") as writer, bar:
        writing: tuple[CaseFiles, Future[None]] | None = None
        for case, prepared in _prefetched(waiting, partial(_prepare, predictor)):
            prediction = _attempt(case, report, partial(_predict, predictor, prepared, save_probabilities))
            if writing:
                _finish(*writing, report, bar)
            writing = (case, writer.submit(_write, case, outputs, *prediction)) if prediction else None
            if not writing:
                bar.update()
        if writing:
            _finish(*writing, report, bar)
    return report


def _prefetched(
    cases: Sequence[CaseFiles], load_case: Callable[[CaseFiles], Preprocessed]
) -> Iterator[tuple[CaseFiles, Future[Preprocessed]]]:
    """Yield the cases in order while one thread loads the next one; at most two are in memory."""
    with ThreadPoolExecutor(1, "reader") as reader:
        following = reader.submit(load_case, cases[0]) if cases else None
        for i, case in enumerate(cases):
            current = following
            following = reader.submit(load_case, cases[i + 1]) if i + 1 < len(cases) else None
            if current is not None:
                yield case, current


def _prepare(predictor: Predictor, case: CaseFiles) -> Preprocessed:
    image, geometry = read_image(case.images, case.case)
    return preprocess_case(case.case, image, geometry, predictor.plan, predictor.configuration, overwrite=True)


def _predict(predictor: Predictor, prepared: Future[Preprocessed], probabilities: bool) -> tuple[Prediction, Geometry]:
    case = prepared.result()
    return predictor.predict(case, probabilities=probabilities), case.properties.geometry


def _write(case: CaseFiles, outputs: Path, prediction: Prediction, geometry: Geometry) -> None:
    paths = _output_paths(case, outputs, prediction.probabilities is not None)
    if prediction.probabilities is not None:
        with atomic_path(paths[1]) as temporary:
            np.savez_compressed(temporary, probabilities=prediction.probabilities)
    write_volume(paths[0], prediction.labels, geometry)  # last: its presence says that the case is finished


def _output_paths(case: CaseFiles, outputs: Path, probabilities: bool) -> list[Path]:
    return [outputs / f"{case.case}{output_ending(case)}", *([outputs / f"{case.case}.npz"] if probabilities else [])]


def _finish(case: CaseFiles, future: Future[None], report: PredictReport, bar: tqdm) -> None:
    _attempt(case, report, future.result)
    if case.case not in report.failed:
        report.predicted.append(case.case)
    bar.update()


def _attempt(case: CaseFiles, report: PredictReport, action: Callable[[], T]) -> T | None:
    """Run one step of a case; what goes wrong is noted in the report, unless it will go wrong for every further
    case.
    """
    try:
        return action()
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _NO_SPACE:
            raise
        text = str(error) if isinstance(error, MedkdError) else f"Case {case.case}: {_unforeseen(error)}"
        report.failed[case.case] = text
        logger.error("%s", text)
        logger.debug("details", exc_info=error)
        return None


def _unforeseen(error: Exception) -> str:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "memory ran out; close other programs, use a larger machine, or predict with --device cpu."
    return f"{type(error).__name__}: {error}; run with -v for details."


def _protect_inputs(cases: Sequence[CaseFiles], outputs: Path) -> None:
    scans = {path.resolve() for case in cases for path in case.images}
    for case in cases:
        target = _output_paths(case, outputs, False)[0]
        if target.resolve() in scans:
            raise DataError(f"The label map {target} would overwrite the scan; choose another output folder.")


def _settings(predictor: Predictor, run: Path, checkpoint: str) -> PredictSettings:
    try:
        medkd_version = version("medkd")
    except PackageNotFoundError:
        medkd_version = "unknown"
    axes = predictor.mirror_axes if predictor.settings.mirror else ()
    folds, blending = tuple(predictor.folds), predictor.settings.blending
    weights = tuple(weights_digest(network.state_dict()) for network in predictor.networks)
    step, precision = predictor.settings.step_size, predictor.precision
    return PredictSettings(str(run), folds, checkpoint, step, axes, precision, medkd_version, blending, weights)


def _write_settings(outputs: Path, settings: PredictSettings, resume: bool) -> None:
    path = outputs / SETTINGS_FILE
    if resume and path.exists():
        old = load(PredictSettings, path)
        if replace(old, medkd=settings.medkd, run=settings.run) != settings:
            raise RunError(
                f"{path} says that the predictions there were made with other settings or weights; "
                "choose another folder, or leave out --continue."
            )
    save(path, settings)
