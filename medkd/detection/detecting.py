"""Detectors on many images: read, letterbox, batch, detect, fuse, and back to the images' own pixels."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from medkd.core.errors import MedkdError
from medkd.detection.base import Detector, DetectorSpec
from medkd.detection.ensemble import fuse
from medkd.detection.journal import Journal
from medkd.detection.letterbox import Letterbox, letterbox
from medkd.evaluation.detection.predictions import Boxes, ImagePredictions

SCORE, MOST = 0.001, 300
"""Lowest score and most boxes per image; low enough for COCO's metric and FROC."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # wrong for every further case, too
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """An image to look at.

    Attributes:
        case: its id.
        file: what it is called in the results.
        read: gives its pixels ``(H, W)`` or ``(H, W, 3)`` uint8.
        original: (width, height) to give boxes back in; None for that of the pixels.
        digest: gives a hash of its file; None where it has none of its own.
    """

    case: str
    file: str
    read: Callable[[], np.ndarray]
    original: tuple[int, int] | None = None
    digest: Callable[[], str] | None = None


@dataclass(frozen=True)
class Limits:
    """What is kept.

    Attributes:
        score: lowest score.
        overlap: intersection over union above which the weaker box of a class is dropped; None is every detector's own.
        most: most boxes per image.
    """

    score: float = SCORE
    overlap: float | None = None
    most: int = MOST


@dataclass
class DetectReport:
    """What became of the images.

    Attributes:
        predicted: ids that were looked at.
        skipped: ids that were there already and were left as they are; of detections also those that are not among the
            images now.
        failed: id → why it failed.
        replaced: ids of an earlier prediction in this folder, all of which was replaced.
    """

    predicted: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Loaded:
    source: Source
    pixels: np.ndarray
    square: torch.Tensor
    place: Letterbox
    content: str = ""


Finished = Callable[[Source, np.ndarray, ImagePredictions], None]


def detect_images(
    detectors: Sequence[Detector],
    sources: Sequence[Source],
    journal: Journal,
    device: torch.device,
    *,
    limits: Limits | None = None,
    batch_size: int | None = None,
    finished: Finished | None = None,
) -> DetectReport:
    """Look at every image and note what was found; one bad image does not stop the others.

    Args:
        detectors: one, or several of the same classes and image size whose boxes are fused.
        sources: the images.
        journal: where the detections go.
        device: where the detectors are.
        limits: what is kept.
        batch_size: images per forward; None is 16 on CUDA and 2 elsewhere.
        finished: is called with every image, its pixels and its detections before these are noted.

    Raises:
        DataError: the disk is full or read-only.
    """
    report, limits = DetectReport(), limits or Limits()
    spec = detectors[0].spec
    count = batch_size or (16 if device.type == "cuda" else 2)
    batches = [sources[i : i + count] for i in range(0, len(sources), count)]
    with tqdm(total=len(sources), desc="detecting", unit="image", disable=None) as bar:
        for loaded in _prefetched(batches, spec, report):
            for item, found in _detect(detectors, loaded, device, limits, report):
                width, height = item.place.width, item.place.height
                image = ImagePredictions(item.source.file, width, height, found, item.content)
                if _attempt(item.source.case, report, partial(_hand_on, finished, item, image)):
                    journal.add(item.source.case, image)
                    report.predicted.append(item.source.case)
            bar.n = len(report.predicted) + len(report.failed)
            bar.refresh()
    return report


def detect_pixels(
    detectors: Sequence[Detector], pixels: np.ndarray, device: torch.device, limits: Limits | None = None
) -> Boxes:
    """The boxes in one image.

    Args:
        detectors: see :func:`detect_images`.
        pixels: ``(H, W)`` or ``(H, W, 3)`` uint8.
        device: where the detectors are.
        limits: what is kept.

    Returns:
        By falling score, in pixels of the image.
    """
    source = Source("pixels", "", lambda: pixels)
    spec = detectors[0].spec
    item = _Loaded(source, pixels, *letterbox(pixels, spec.image_size, sides=spec.sides))
    return _forward(detectors, [item], device, limits or Limits())[0]


def _hand_on(finished: Finished | None, item: _Loaded, image: ImagePredictions) -> None:
    """Call ``finished``, where there is such a function, with what was found in one image."""
    if finished is not None:
        finished(item.source, item.pixels, image)


def _prefetched(
    batches: Sequence[Sequence[Source]], spec: DetectorSpec, report: DetectReport
) -> Iterator[list[_Loaded]]:
    """Load the next batch in a thread while this one is looked at."""
    with ThreadPoolExecutor(1, "reader") as reader:
        following = reader.submit(_load, batches[0], spec, report) if batches else None
        for i in range(len(batches)):
            current, following = (
                following,
                (reader.submit(_load, batches[i + 1], spec, report) if i + 1 < len(batches) else None),
            )
            if current is not None:
                yield current.result()


def _load(batch: Sequence[Source], spec: DetectorSpec, report: DetectReport) -> list[_Loaded]:
    found: list[_Loaded] = []

    def one(source: Source) -> None:
        pixels = source.read()  # says in a sentence what is wrong with the file
        content = "" if source.digest is None else source.digest()
        square, place = letterbox(pixels, spec.image_size, source.original, spec.sides)
        found.append(_Loaded(source, pixels, square, place, content))

    for source in batch:
        _attempt(source.case, report, lambda s=source: one(s))  # type: ignore[misc]
    return found


def _detect(
    detectors: Sequence[Detector], loaded: Sequence[_Loaded], device: torch.device, limits: Limits, report: DetectReport
) -> list[tuple[_Loaded, Boxes]]:
    """The boxes of a batch in the images' pixels; where the batch fails, its images are tried one by one."""
    if not loaded:
        return []
    try:
        return list(zip(loaded, _forward(detectors, loaded, device, limits), strict=True))
    except Exception as error:
        if len(loaded) > 1:
            return [pair for item in loaded for pair in _detect(detectors, [item], device, limits, report)]
        _note(loaded[0].source.case, error, report)
        return []


def _forward(
    detectors: Sequence[Detector], loaded: Sequence[_Loaded], device: torch.device, limits: Limits
) -> list[Boxes]:
    images = torch.stack([item.square for item in loaded]).to(device)
    with torch.no_grad():
        found = [d.detect(images, score=limits.score, overlap=limits.overlap, most=limits.most) for d in detectors]
    result = []
    for item, *parts in zip(loaded, *found, strict=True):
        fused = fuse([Boxes.of(p.boxes, p.classes, p.scores) for p in parts])
        moved = Boxes(item.place.back(fused.boxes), fused.classes, fused.scores)
        sides = moved.boxes[:, 2:] - moved.boxes[:, :2]
        inside = moved.only(
            (sides > 0).all(axis=1) & (moved.scores >= limits.score)
        )  # a box in the border has no side left
        result.append(inside.only(np.argsort(-inside.scores, kind="stable")[: limits.most]))
    return result


def _attempt(case: str, report: DetectReport, action: Callable[[], None]) -> bool:
    try:
        action()
    except Exception as error:
        _note(case, error, report)
        return False
    return True


def _note(case: str, error: Exception, report: DetectReport) -> None:
    """Write down why an image failed, unless every further one will fail as well."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno in _NO_SPACE:
        raise error
    text = str(error) if isinstance(error, MedkdError) else f"Case {case}: {_unforeseen(error)}"
    report.failed[case] = text
    _log.error("%s", text)
    _log.debug("details", exc_info=error)


def _unforeseen(error: Exception) -> str:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "memory ran out; close other programs, use a larger machine, or predict with --device cpu."
    return f"{type(error).__name__}: {error}; run with -v for details."
