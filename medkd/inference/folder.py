"""Prediction of a folder of scans: the function behind ``medkd_predict``."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from tqdm import tqdm

from medkd.core.dataset import SEGMENTATION, CaseFiles
from medkd.core.errors import MedkdError, RunError, ran_out_of_memory
from medkd.core.geometry import Geometry
from medkd.core.precision import PrecisionChoice
from medkd.inference.inputs import find_cases
from medkd.inference.made_here import Folder, MadeHere, notes_of
from medkd.inference.opening import open_predictor
from medkd.inference.outputs import Outputs
from medkd.inference.postprocessing import Choice
from medkd.inference.scan_check import check_scan
from medkd.inference.settings import PredictSettings, written_as
from medkd.inference.writers import writer_of
from medkd.io.comparison import some
from medkd.io.volumes import read_image
from medkd.io.writing.dicom_seg import SegmentationKind
from medkd.io.writing.formats import Format, choose_formats
from medkd.io.writing.label_maps import LabelMapWriter
from medkd.models.base import Checkpoint
from medkd.preprocessing.pipeline import Preprocessed
from medkd.runtime.engines import EngineName
from medkd.runtime.prediction import CasePredictor, Prediction

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # wrong for every further case, too
logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class PredictReport:
    """What became of the cases.

    Attributes:
        predicted: ids that were predicted.
        skipped: ids that were there already and were left as they are.
        failed: id → why it failed.
        replaced: ids of ``predicted`` whose earlier label maps were replaced.
    """

    predicted: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)


def predict_folder(
    inputs: Path | str | Sequence[Path | str],
    outputs: Path | str,
    run: Path | str,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: Checkpoint = "final",
    step_size: float | None = None,
    mirror: bool | None = None,
    save_probabilities: bool = False,
    device: str | None = None,
    precision: PrecisionChoice | None = None,
    engine: EngineName | Literal["torch", "auto"] | None = None,
    threads: int | None = None,
    part: tuple[int, int] = (0, 1),
    resume: bool = False,
    strict: bool = False,
    format: str | Sequence[str] | None = None,
    seg_kind: SegmentationKind | None = None,
    source_series: Path | str | None = None,
    terms: Path | str | None = None,
    postprocessing: Choice = None,
) -> PredictReport:
    """Predict raw scans and write label maps in the scans' own geometry.

    A scan that cannot be predicted is reported and the others go on. Reading the next and writing the last case happen
    in two threads beside the network. Every file is written atomically.

    Args:
        inputs: a folder, a scan, or the channel files of one case; see :func:`medkd.inference.inputs.find_cases`.
        outputs: folder for ``CASE.nii.gz``, with :data:`~medkd.core.settled.SETTINGS_FILE` beside them; for one
            case also the very file (``seg.nii.gz``), then without settings.
        run: run folder, or another model for segmentation; of an exported one torch is not loaded.
        folds: folds to average; None takes every trained one.
        checkpoint: ``"final"`` or ``"best"``.
        step_size: tile distance as a share of the patch; None is the protocol's of the plan, else 0.5.
        mirror: test-time augmentation over the axes that training mirrored; None is the protocol's of the plan, else
            True.
        save_probabilities: write ``CASE.npz`` with ``probabilities`` ``(K, z, y, x)`` float16 too, as nnU-Net does.
        device: None picks CUDA where present, else the CPU.
        precision: of the networks' arithmetic, see :func:`medkd.core.arithmetic.chosen_precision`.
        engine: ``"torch"``, ``"openvino"``, ``"onnxruntime"`` or ``"auto"``: what computes the network on a CPU, see
            :func:`medkd.inference.converted.in_engine`; None is torch, of an exported model what is installed
            and reads it.
        threads: of another engine than torch; None leaves them to it.
        part: (index from 0, count): predict only every count-th case, for several machines.
        resume: leave out cases whose files are there as these weights and settings made them of the scans as they are;
            what an earlier version predicted is taken as it is, with a warning.
        strict: refuse scans that do not look like the training cases (orientation, spacing, size, intensities, empty
            channels, contradictory headers) instead of warning of them.
        format: of the label maps, one or several of :data:`medkd.io.writing.formats.FORMATS`; None is the scan's own,
            where that can be written, else NIfTI.
        seg_kind: of DICOM-SEG, ``"binary"`` (the default) or ``"labelmap"``.
        source_series: DICOM series (or a tree with one per case, called as it) that DICOM label maps refer to, of scans
            that are no DICOM themselves.
        terms: JSON file with coded terms and colours of structures, see :func:`medkd.io.writing.terms.terms_with`.
        postprocessing: a ``postprocessing.json``, or False for none; None takes what was found on the validation cases
            of these folds, or came with an exported model. Probabilities are left as they are.

    Returns:
        What became of each case.

    Raises:
        RunError: the run cannot be used, ``resume`` meets predictions made with other settings or nobody knows how, or
            the folder holds others of other cases.
        DataError: there are no inputs, one file is named for several, the output folder cannot be written to, or the
            disk is full.
    """
    predictor = open_predictor(
        run,
        folds,
        device=device,
        step_size=step_size,
        mirror=mirror,
        precision=precision,
        checkpoint=checkpoint,
        engine=engine,
        threads=threads,
        postprocessing=postprocessing,
    )
    if postprocessing is False:
        logger.info("no post-processing, as asked for")
    formats = choose_formats(format, SEGMENTATION)
    writer = _writer(predictor, Path(run), formats, seg_kind, terms)
    cases = find_cases(inputs, len(predictor.configuration.normalization))
    _check_part(*part)
    wanted = Outputs.at(
        Path(outputs),
        cases,
        probabilities=save_probabilities,
        formats=formats,
        writer=writer,
        series=None if source_series is None else Path(source_series),
    )
    removed: list[str] = []
    if wanted.file is None:
        settings = PredictSettings.of(predictor, Path(run), checkpoint, written_as(formats, writer))
        noted = MadeHere(notes_of(wanted.folder, predictor, settings, writer, part), wanted.sources.files)
        wanted = replace(wanted, made=noted)
        removed = _begin(wanted, settings, noted, cases, resume)
    elif resume:
        raise RunError(f"--continue needs an output folder, which says how it was made; {outputs} is a file.")
    report = predict_cases(predictor, cases[part[0] :: part[1]], wanted, resume=resume, strict=strict)
    report.replaced = [case for case in report.predicted if case in {*removed, *report.replaced}]
    return report


def _check_part(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise RunError(f"The part must be I of N with I from 1 to N, found {index + 1} of {count}.")


def _begin(
    outputs: Outputs, settings: PredictSettings, noted: MadeHere, cases: Sequence[CaseFiles], resume: bool
) -> list[str]:
    """Make the folder ready; returns the cases of which label maps were removed."""
    folder = Folder(settings, outputs.folder, noted, [(case, outputs.files(case)) for case in cases])
    if not resume:
        return folder.start()
    folder.resume()
    return []


def _writer(
    predictor: CasePredictor,
    run: Path,
    formats: Sequence[Format],
    seg_kind: SegmentationKind | None,
    terms: Path | str | None,
) -> LabelMapWriter:
    """The writer of the label maps; which structures have no term is said."""
    own = None if terms is None else Path(terms)
    writer = writer_of(predictor, run.resolve().name, kind=seg_kind, terms=own)
    coded = [entry.name for entry in formats if entry.name == "dicom-seg"]
    if coded and writer.untold:
        logger.warning(
            "No coded term is known for %s; --format %s states them as unknown unless --terms names a file with them.",
            some(writer.untold),
            coded[0],
        )
    return writer


def predict_cases(
    predictor: CasePredictor,
    cases: Sequence[CaseFiles],
    outputs: Outputs,
    *,
    resume: bool = False,
    strict: bool = False,
) -> PredictReport:
    """Predict ``cases`` into ``outputs``; see :func:`predict_folder`.

    Raises:
        DataError: the disk is full or read-only; no further case could be written.
    """
    done = [case for case in cases if resume and outputs.finished(case)]
    waiting = [case for case in cases if case not in done]
    if done:
        logger.info("%d cases are predicted already and are left out, for example %s", len(done), done[0].case)
    replaced = outputs.warn_of_replacing(waiting, resume=resume)
    report = PredictReport(skipped=[case.case for case in done], replaced=replaced)
    _predict_each(predictor, waiting, outputs, report, strict)
    return report


def _predict_each(
    predictor: CasePredictor, waiting: Sequence[CaseFiles], outputs: Outputs, report: PredictReport, strict: bool
) -> None:
    """Predict one case while the next is read and the last is written."""
    bar = tqdm(total=len(waiting), desc="predicting", unit="case", disable=None)
    with ThreadPoolExecutor(1, "writer") as writer, bar:
        writing: tuple[CaseFiles, Future[None]] | None = None
        for case, prepared in _prefetched(waiting, partial(_prepare, predictor, outputs, strict)):
            prediction = _attempt(case, report, partial(_predict, predictor, prepared, outputs.probabilities))
            if writing:
                _finish(*writing, report, bar)
            writing = (case, writer.submit(outputs.write, case, *prediction)) if prediction else None
            if not writing:
                bar.update()
        if writing:
            _finish(*writing, report, bar)


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


def _prepare(predictor: CasePredictor, outputs: Outputs, strict: bool, case: CaseFiles) -> Preprocessed:
    outputs.begin(case)
    image, geometry = read_image(case.images, case.case)
    outputs.check(case, geometry)
    check_scan(predictor, case, image, geometry, strict=strict)
    return predictor.prepare(case.case, image, geometry, overwrite=True)


def _predict(
    predictor: CasePredictor, prepared: Future[Preprocessed], probabilities: bool
) -> tuple[Prediction, Geometry]:
    case = prepared.result()
    return predictor.predict(case, probabilities=probabilities), case.properties.geometry


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
    if ran_out_of_memory(error):
        return "memory ran out; close other programs, use a larger machine, or predict with --device cpu."
    if isinstance(error, ImportError) and error.name:
        package = error.name.partition(".")[0]
        return f"this file needs the package {package}, which is not installed; pip install {package}."
    return f"{type(error).__name__}: {error}; run with -v for details."
