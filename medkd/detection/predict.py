"""Detections in a folder of radiographs: the function behind ``medkd_predict`` for runs of detectors."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

import torch

from medkd.core.checkpoint import weights_digest
from medkd.core.errors import DataError, MedkdError, RunError
from medkd.core.made_with import content_digest
from medkd.core.settled import SETTINGS_FILE, write_settings
from medkd.detection.detecting import MOST, SCORE, DetectReport, Limits, Source, detect_images
from medkd.detection.extras import DICOM_FOLDER, Extras
from medkd.detection.journal import JOURNAL_FILE, Journal, finished
from medkd.detection.models import TrainedDetector, place_of
from medkd.detection.pictures import PICTURE_SCORE, picture_path
from medkd.evaluation.detection.predictions import (
    COCO_IMAGES_FILE,
    COCO_RESULTS_FILE,
    PREDICTIONS_FILE,
    DetectionPredictions,
)
from medkd.io.dicom_header import is_dicom
from medkd.io.dicom_radiographs import read_eight_bit
from medkd.io.links import refuse_dangling
from medkd.io.radiographs import Scaling
from medkd.io.writing.formats import choose_formats
from medkd.io.writing.maker import Maker
from medkd.io.writing.terms import terms_with
from medkd.models.base import Checkpoint, open_model

_log = logging.getLogger(__name__)
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm", ".dicom")
_ENDINGS_SHOWN = ", ".join(ending[1:] for ending in ENDINGS)
_RESULTS = (PREDICTIONS_FILE, COCO_RESULTS_FILE, COCO_IMAGES_FILE, SETTINGS_FILE, JOURNAL_FILE)
_SHOWN = 10  # names of files


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """``predict_settings.json``: what the detections beside it were made with.

    Attributes:
        run: run folder.
        folds: folds whose boxes were fused.
        checkpoint: ``"final"`` or ``"best"``.
        score: lowest score that was kept.
        overlap: of non-maximum suppression, the detector's own where none was given.
        most: most boxes per image.
        image_size: side of the detector's input in pixels.
        medkd: version.
        weights: a hash of each fold's weights.
        network: name of the detector, since detectors of different names may have equal weights.
        categories: what it finds, in order.
        anchor_scale: see :class:`~medkd.detection.base.DetectorSpec`.
        sides: longest long and short side of an image on the input; None where images fill it.
        scaling: how images of more than 8 bits became 8.
    """

    run: str
    folds: tuple[str, ...]
    checkpoint: str
    score: float
    overlap: float
    most: int
    image_size: int
    medkd: str
    weights: tuple[str, ...] = ()
    network: str = ""
    categories: tuple[str, ...] = ()
    anchor_scale: float | None = None
    sides: tuple[int, int] | None = None
    scaling: str = "percentile"
    schema: int = 2
    oldest: ClassVar[int] = 1


def predict_detections(
    inputs: Path | str | Sequence[Path | str],
    outputs: Path,
    run: Path,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: Checkpoint = "final",
    score: float = SCORE,
    overlap: float | None = None,
    most: int = MOST,
    device: torch.device | str | None = None,
    pictures: bool = False,
    picture_score: float = PICTURE_SCORE,
    batch_size: int | None = None,
    resume: bool = False,
    strict: bool = False,
    format: str | Sequence[str] | None = None,
    terms: Path | str | None = None,
) -> DetectReport:
    """Find boxes in radiographs and write ``predictions.json``, ``coco_results.json`` and ``coco_images.json``.

    An image that cannot be read is reported and the others go on. Boxes are in pixels of the upright original image.
    What was finished before a kill is kept in ``predictions.jsonl`` and used with ``resume``; so are boxes of images
    that were given to an earlier call alone.

    Args:
        inputs: a folder (with its subfolders) of radiographs, or image files: PNG, JPEG, … and DICOM.
        outputs: folder for the results.
        run: run folder.
        folds: folds whose boxes are fused; None takes every trained one.
        checkpoint: ``"final"`` or ``"best"``.
        score: lowest score that is kept; the default is low enough for ``medkd_evaluate``.
        overlap: intersection over union above which the weaker box of a class is dropped; None is the detector's own.
        most: most boxes per image.
        device: None picks CUDA where present, else the CPU.
        pictures: write ``pictures/CASE.jpg`` with the boxes too.
        picture_score: lowest score that is drawn or reported.
        batch_size: images per forward; None follows from the device.
        resume: leave out images that were finished with the same settings, as long as their files are the same.
        strict: refuse a JPEG whose end is missing instead of warning of it.
        format: of DICOM objects that are written below ``dicom/`` too, ``"dicom-sr"``, ``"dicom-sc"`` or both.
        terms: JSON file with coded terms of the classes, see :func:`medkd.io.writing.terms.terms_with`.

    Returns:
        What became of each image.

    Raises:
        RunError: the run cannot be used, or ``resume`` meets predictions made with other settings.
        DataError: there are no inputs, the output folder cannot be written to, or the disk is full.
    """
    limits = _checked(Limits(score, overlap, most))
    formats = choose_formats(format, "detection")
    model = open_model(run, "detection")
    target = place_of(model, device)
    scaling = model.describe().scaling
    sources = find_radiographs(inputs, outputs, strict=strict, scaling=scaling)
    loaded: TrainedDetector = model.load(folds, checkpoint=checkpoint)
    detectors = [detector.to(target) for detector in loaded.networks]
    settings = _settings(Path(run), loaded, checkpoint, limits)
    extras = Extras.of(
        Path(outputs),
        loaded.categories,
        terms_with(None if terms is None else Path(terms), loaded.categories),
        Maker(Path(run).resolve().name, settings.weights[0]),
        formats=formats,
        pictures=pictures,
        score=picture_score,
    )
    extras.check(sources)
    replaced = [] if resume else _remove_earlier(Path(outputs))
    write_settings(Path(outputs) / SETTINGS_FILE, settings, resume=resume)
    journal = _journal(Path(outputs), loaded.categories, settings, resume)
    done = {source.case for source in sources if _done(source, journal, extras)}
    waiting = [source for source in sources if source.case not in done]
    earlier = set(journal.images).difference(source.case for source in sources)
    report = detect_images(
        detectors, waiting, journal, target, limits=limits, batch_size=batch_size, finished=extras.write
    )
    report.replaced = replaced
    report.skipped = sorted(done | earlier)
    _finish(journal, report, sources, earlier)
    return report


def _finish(journal: Journal, report: DetectReport, sources: Sequence[Source], earlier: Collection[str]) -> None:
    """Write what was found now and, where a call goes on, before."""
    failed = [source for source in sources if source.case in report.failed]
    journal.drop([source.case for source in failed if _is_elsewhere(source, journal)])
    kept = [source.case for source in failed if source.case in journal.images]
    path = journal.folder / PREDICTIONS_FILE
    if earlier:
        _log.warning(
            "%s: the boxes of %d images of earlier calls, made with the same settings, are kept", path, len(earlier)
        )
    if kept:
        _log.warning("%s: images that failed now keep the boxes that were found before: %s", path, ", ".join(kept))
    journal.finish()


def _is_elsewhere(source: Source, journal: Journal) -> bool:
    """Whether boxes are known of another file that makes the same case."""
    known = journal.images.get(source.case)
    return known is not None and known.file != source.file


def _settings(run: Path, loaded: TrainedDetector, checkpoint: Checkpoint, limits: Limits) -> DetectionSettings:
    """What the predictions are made with."""
    overlap = limits.overlap
    if overlap is None:
        overlap = loaded.networks[0].overlap  # the folds of a run are of one kind
    return DetectionSettings(
        run=str(run),
        folds=loaded.folds,
        checkpoint=checkpoint,
        score=limits.score,
        overlap=overlap,
        most=limits.most,
        image_size=loaded.spec.image_size,
        medkd=_version(),
        weights=tuple(weights_digest(detector.state_dict()) for detector in loaded.networks),
        network=loaded.spec.name,
        categories=loaded.spec.categories,
        anchor_scale=loaded.spec.anchor_scale,
        sides=loaded.spec.sides,
        scaling=loaded.scaling,
    )


def _journal(outputs: Path, categories: Sequence[str], settings: DetectionSettings, resume: bool) -> Journal:
    """Where predictions are kept as they are made, with those of an earlier call that goes on."""
    journal = Journal(outputs, categories, asdict(replace(settings, run="", medkd="")), resume=resume)
    earlier = finished(outputs) if resume else None
    if earlier is not None and earlier.categories == tuple(categories):
        journal.adopt(earlier)
    return journal


def find_radiographs(
    inputs: Path | str | Sequence[Path | str],
    outputs: Path | None = None,
    *,
    strict: bool = False,
    scaling: Scaling = "percentile",
) -> list[Source]:
    """List the radiographs to look at, sorted by case id.

    The case id is the file's name without ending and ``_0000``, with the names of the subfolders it lies in before it.

    Args:
        inputs: a folder, or files.
        outputs: where results go; the pictures there are passed over.
        strict: reading a JPEG whose end is missing fails.
        scaling: of images with more than 8 bits.

    Raises:
        DataError: an input does not exist, there is no radiograph, or two files have the same case id.
    """
    paths = [Path(inputs)] if isinstance(inputs, (str, Path)) else [Path(p) for p in inputs]
    refuse_dangling(paths)
    found: list[tuple[str, Path]] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"The input {path} does not exist.")
        found += _below(path, outputs) if path.is_dir() else [(case_id(Path(path.name)), path)]
    if not found:
        raise DataError(
            f"{paths[0]}: expected radiographs ({_ENDINGS_SHOWN}, or DICOM files of any name), found none; give a "
            "folder of such, or files."
        )
    _refuse_twins(found)
    sources = []
    for case, path in sorted(found):
        read = partial(read_eight_bit, path, strict=strict, scaling=scaling)
        sources.append(Source(case, str(path), read, digest=partial(content_digest, path)))
    return sources


def _refuse_twins(found: Sequence[tuple[str, Path]]) -> None:
    """No two files may be one case."""
    known: dict[str, Path] = {}
    for case, path in found:
        if case in known:
            raise DataError(f"{known[case]} and {path} would both be the case {case}; rename one of them.")
        known[case] = path


def case_id(path: Path) -> str:
    """``left/IMG_1_0000.png`` → ``left_IMG_1``."""
    name = path.name[: -len(path.suffix)] if path.suffix.lower() in ENDINGS else path.name
    return "_".join([*path.parts[:-1], name.removesuffix("_0000")])


def _below(folder: Path, outputs: Path | None) -> list[tuple[str, Path]]:
    found, others = [], []
    for path in _files_below(folder, outputs):
        if _is_radiograph(path):
            found.append((case_id(path.relative_to(folder)), path))
        else:
            others.append(str(path.relative_to(folder)))
    if others:
        shown = ", ".join(others[:_SHOWN]) + (f", … ({len(others)} in all)" if len(others) > _SHOWN else "")
        _log.warning("%s: no radiographs (%s, or DICOM files), so left out: %s", folder, _ENDINGS_SHOWN, shown)
    return found


def _files_below(folder: Path, outputs: Path | None) -> Iterator[Path]:
    """Those that are neither hidden, nor indices of DICOM files, nor results."""
    own: set[Path] = set()
    if outputs is not None:
        own = {(outputs / name).absolute() for name in (*_RESULTS, DICOM_FOLDER)}
        own.add(picture_path(outputs, "x").parent.absolute())
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.name.upper() == "DICOMDIR" or own & {path.absolute(), path.parent.absolute()}:
            continue
        refuse_dangling([path])
        if path.is_file():
            yield path


def _is_radiograph(path: Path) -> bool:
    """By its ending, or its content: DICOM files are often called by their UID, whose last number looks like one."""
    return path.suffix.lower() in ENDINGS or is_dicom(path)


def _done(source: Source, journal: Journal, extras: Extras) -> bool:
    return _is_same(source, journal) and all(path.exists() for path in extras.files(source.case))


def _is_same(source: Source, journal: Journal) -> bool:
    """Whether boxes are known that were found in this very file; earlier versions did not note its content."""
    known = journal.images.get(source.case)
    if known is None or _is_elsewhere(source, journal):
        return False
    try:
        return not known.content or source.digest is None or known.content == source.digest()
    except OSError:  # reading it says why
        return True


def _checked(limits: Limits) -> Limits:
    if not (0 <= limits.score < 1 and (limits.overlap is None or 0 < limits.overlap <= 1) and limits.most >= 1):
        overlap = "the detector's own" if limits.overlap is None else f"{limits.overlap:g}"
        raise RunError(
            "Expected a score from 0 to below 1, an overlap above 0 up to 1 and at least 1 box per image, found "
            f"{limits.score:g}, {overlap} and {limits.most}."
        )
    return limits


def _remove_earlier(outputs: Path) -> list[str]:
    """Remove the predictions of an earlier call, which a kill must not leave beside other settings, to be continued;
    returns their ids.
    """
    path = outputs / PREDICTIONS_FILE
    if not path.exists():
        return []
    try:
        replaced = sorted(DetectionPredictions.load(path).images)
    except MedkdError:  # whatever it was, it is replaced
        replaced = []
    _log.warning("%s of %d images is replaced by new predictions", path, len(replaced))
    path.unlink()
    return replaced


def _version() -> str:
    try:
        return version("medkd")
    except PackageNotFoundError:
        return "unknown"
