"""What a data set is like: spacings, shapes and foreground intensities, the input of planning."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from medkd.core.dataset import CaseFiles, DatasetDescription, labelled_cases, unlabelled_cases
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.plan import IntensityStatistics
from medkd.core.serial import load
from medkd.core.workers import run_cases, worker_count
from medkd.io.checks import label_counts
from medkd.io.facts import CaseFacts, add_voxels, describe_case, describe_channel
from medkd.io.orientation import axis_code, turn, turn_geometry
from medkd.io.volumes import read_geometry, read_image, read_label
from medkd.preprocessing.cropping import bounding_box, box_slices, nonzero_mask

FINGERPRINT_FILE = "fingerprint.json"

_BUDGET = 10_000_000  # foreground voxels of all cases together; below it the statistics are exact
_SEED = 1234


@dataclass(frozen=True)
class PlainScan:
    """A scan without a label: what it looks like as stored, its voxel size in mm and the voxels of its non-zero box."""

    facts: CaseFacts
    spacing: tuple[float, ...]
    shape_after_crop: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """``fingerprint.json``; axes are ``(z, y, x)``, not transposed.

    Attributes:
        cases: ids of the training cases.
        spacings: voxel size in mm of each case.
        shapes_after_crop: voxels of each case's non-zero box.
        intensities: foreground intensities per channel; every case weighs the same.
        median_relative_size_after_crop: median over cases of box voxels divided by all voxels.
        orientation: axis code that the scans were turned to before; None as they are stored.
        facts: what each case looks like, as stored.
        source: stands for names, sizes and times of change of the raw files it was made from.
        unlabelled: the scans without labels. Nothing above counts them, so that a plan does not depend on them:
            foreground intensities need labels, as in nnU-Net.
        comparable: whether the hashes in ``facts`` are those of other data sets; earlier versions took scans as they
            are stored, which is the same for those in RAS alone.
    """

    cases: tuple[str, ...]
    spacings: tuple[tuple[float, ...], ...]
    shapes_after_crop: tuple[tuple[int, ...], ...]
    intensities: tuple[IntensityStatistics, ...]
    median_relative_size_after_crop: float
    source: str = ""
    orientation: str | None = None
    facts: tuple[CaseFacts, ...] = ()
    unlabelled: tuple[PlainScan, ...] = ()
    comparable: bool = False
    schema: int = 1


@dataclass(frozen=True)
class _Case:
    facts: CaseFacts
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    relative_size: float
    voxels: np.ndarray  # (C, n) float32 foreground intensities


def contents_of(fingerprint: Fingerprint) -> dict[str, str]:
    """Case → hash of its voxels, of all cases, those without labels included."""
    return {facts.case: facts.digest for facts in _facts_of(fingerprint)}


def known_contents(prepared: Path) -> dict[str, str]:
    """The same of a preprocessed data set, as far as it is comparable with others; nothing where it has no fingerprint
    that can be read.
    """
    try:
        found = load(Fingerprint, prepared / FINGERPRINT_FILE)
    except DataError:
        return {}
    return {facts.case: facts.digest for facts in _facts_of(found) if found.comparable or facts.orientation == "RAS"}


def _facts_of(fingerprint: Fingerprint) -> list[CaseFacts]:
    return [*fingerprint.facts, *(scan.facts for scan in fingerprint.unlabelled)]


def make_fingerprint(
    raw: Path, description: DatasetDescription, workers: int | None = None, orientation: str | None = None
) -> Fingerprint:
    """Read all cases once, labelled and unlabelled, and describe them.

    nnU-Net draws an equal number of foreground voxels of every case with replacement (10⁸ together). The same
    distribution is computed here without the noise of drawing: each case's voxels share an equal weight, and only cases
    larger than their part of a budget of 10⁷ voxels are thinned out (without replacement, fixed seed). Voxels of an
    ``ignore`` label do not count as foreground.

    Args:
        raw: the raw data set's folder.
        description: its ``dataset.json``.
        workers: number of threads, or None to derive it from memory and cores.
        orientation: axis code that the scans are turned to first; None takes them as they are stored.

    Raises:
        DataError: a case cannot be read, or no case has any foreground.
    """
    labelled = labelled_cases(raw, description)
    unlabelled = unlabelled_cases(raw, description)
    files = {case.case: case for case in labelled + unlabelled}
    quota = max(_BUDGET // max(len(labelled), 1), 1)
    channels = len(description.channel_names)
    largest = max(map(_voxels, files.values()))
    count = worker_count(largest * (4 * channels + 8), len(files), workers)

    def look(case: str) -> _Case:
        return _describe(files[case], description.labels.ignore, quota, orientation)

    every = run_cases(look, list(files), count, "fingerprint")
    cases = [every[case.case] for case in labelled]
    plain = [every[case.case] for case in unlabelled]
    sizes = [case.relative_size for case in cases or plain]
    return Fingerprint(
        cases=tuple(case.facts.case for case in cases),
        spacings=tuple(case.spacing for case in cases),
        shapes_after_crop=tuple(case.shape for case in cases),
        intensities=_intensities(cases, channels, raw),
        median_relative_size_after_crop=float(np.median(sizes)),
        source=source_of(labelled + unlabelled),
        orientation=orientation,
        facts=tuple(case.facts for case in cases),
        unlabelled=tuple(map(_plain_scan, plain)),
        comparable=True,
    )


def _plain_scan(case: _Case) -> PlainScan:
    return PlainScan(case.facts, case.spacing, case.shape)


def _intensities(cases: Sequence[_Case], channels: int, raw: Path) -> tuple[IntensityStatistics, ...]:
    """Foreground statistics of each channel; none where there are no cases."""
    if not cases:
        return ()
    found = []
    for channel in range(channels):
        voxels = [case.voxels[channel] for case in cases]
        found.append(_statistics(voxels, raw))
    return tuple(found)


def source_of(files: Sequence[CaseFiles]) -> str:
    """A hash of the names, sizes and times of change of all raw files; a missing file counts as empty."""
    digest = hashlib.blake2b(digest_size=16)
    for case in files:
        paths = case.images if case.label is None else (*case.images, case.label)
        for path in paths:
            size, changed = None, None
            if path.exists():
                state = path.stat()
                size, changed = state.st_size, state.st_mtime_ns
            digest.update(f"{case.case}|{path.name}|{size}|{changed}\n".encode())
    return digest.hexdigest()


def _voxels(case: CaseFiles) -> int:
    """Voxels of a case by its header; 0 where it cannot be read, which is reported when its turn comes."""
    try:
        return prod(read_geometry(case.images[0]).shape)
    except DataError:
        return 0


def _describe(files: CaseFiles, ignore: int | None, quota: int, orientation: str | None) -> _Case:
    image, geometry = read_image(files.images, files.case)
    label = np.zeros(image.shape[1:], np.uint8) if files.label is None else read_label(files.label).array
    if label.shape != image.shape[1:]:
        raise DataError(
            f"Case {files.case}: image {image.shape[1:]} and label {label.shape} differ in shape; verify the raw data "
            "set."
        )
    facts = _facts(files.case, image, label, geometry, ignore)
    if orientation is not None:
        stored = axis_code(geometry)
        image = turn(image, stored, orientation)
        label = turn(label, stored, orientation)
        geometry = turn_geometry(geometry, orientation)
    box = box_slices(bounding_box(nonzero_mask(image)))
    inside = label[box]
    foreground = inside > 0
    if ignore is not None:
        foreground &= inside != ignore
    chosen = np.flatnonzero(foreground)
    if len(chosen) > quota:
        draw = np.random.default_rng(_SEED)
        chosen = np.sort(draw.choice(chosen, quota, replace=False, shuffle=False))
    where = np.unravel_index(chosen, inside.shape)
    voxels = np.stack([channel[box][where] for channel in image])
    return _Case(facts, geometry.spacing, inside.shape, inside.size / label.size, voxels)


def _facts(case: str, image: np.ndarray, label: np.ndarray, geometry: Geometry, ignore: int | None) -> CaseFacts:
    digest = hashlib.blake2b(digest_size=16)
    for channel in image:
        add_voxels(digest, channel, geometry)
    counts = label_counts(label)
    if ignore is not None:
        counts.pop(ignore, None)
    channels = list(map(describe_channel, image))
    return describe_case(case, geometry, channels, counts, digest.hexdigest())


def _statistics(parts: Sequence[np.ndarray], raw: Path) -> IntensityStatistics:
    filled = [part for part in parts if part.size]
    if not filled:
        raise DataError(
            f"{raw / 'labelsTr'}: no label map has any foreground voxel inside the image's non-zero box; check the "
            "labels."
        )
    values = np.concatenate(filled).astype(np.float64)
    sizes = np.array(list(map(len, filled)))
    weights = np.repeat(1 / (sizes * len(filled)), sizes)  # every case weighs the same
    mean = float(np.dot(weights, values))
    variance = np.dot(weights, (values - mean) ** 2)
    std = float(np.sqrt(variance))
    order = np.argsort(values, kind="stable")
    low, median, high = _quantiles(values[order], weights[order], (0.005, 0.5, 0.995))
    return IntensityStatistics(
        mean=mean,
        median=median,
        std=std,
        min=float(values[order[0]]),
        max=float(values[order[-1]]),
        percentile_00_5=low,
        percentile_99_5=high,
    )


def _quantiles(values: np.ndarray, weights: np.ndarray, levels: Sequence[float]) -> list[float]:
    """Weighted quantiles of sorted values, linear between the middles of their weights (Hazen's definition for equal
    weights).
    """
    middles = np.cumsum(weights) - weights / 2
    wanted = np.array(levels) * weights.sum()
    return np.interp(wanted, middles, values).tolist()
