"""Check the files of one training case: images, label map, and what they look like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medkd.core.dataset import CaseFiles
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.io.checks import (
    Finding,
    finite_finding,
    grid_findings,
    has_error,
    header_findings,
    label_counts,
    label_finding,
    unreadable_finding,
)
from medkd.io.facts import CaseFacts, ChannelFacts, add_voxels, describe_case, describe_channel
from medkd.io.painted import MOST_SURE, painted_values
from medkd.io.symmetry import MirrorPair, along_patient, mirror_pairs
from medkd.io.volumes import read_case_file, read_label

Grid = tuple[Path, Geometry]
"""A file and the grid of its voxels."""


@dataclass(frozen=True, kw_only=True)
class CaseCheck:
    """What the files of one case hold.

    Attributes:
        findings: problems and warnings.
        values: label values present.
        facts: what the case looks like, to compare it with the others; None where it is not good.
        looked_at: whether it was searched for structures that are mirror images of each other.
        pairs: the structures that are, axes along the patient (0 = head-foot, 1 = front-back,
            2 = left-right).
    """

    case: str
    findings: tuple[Finding, ...]
    values: tuple[int, ...] = ()
    facts: CaseFacts | None = None
    looked_at: bool = True
    pairs: tuple[MirrorPair, ...] = ()

    @property
    def good(self) -> bool:
        """Whether the case can be used."""
        return not has_error(self.findings)


def check_case(files: CaseFiles, labels: LabelSpec | None, mirrored: bool = True) -> CaseCheck:
    """Check the files of one case; one volume is in memory at a time.

    Args:
        files: image files in channel order, and the label map.
        labels: which label values are allowed, and are all that no scan consists of; None allows all.
        mirrored: also look for structures that are mirror images of each other.
    """
    asked = labels if files.label is None else None
    images = _check_images(files.case, files.images, asked)
    findings = [*images.findings]
    label = _Label()
    if files.label is not None:
        label = _check_label(files.case, files.label, images.grid, labels, mirrored)
        findings += label.findings
    elif images.painted and all(images.painted):
        findings.append(_label_map_finding(files, images.painted))
    facts = None
    if images.grid is not None and not has_error(findings):
        counts = _annotated(label.counts, labels)
        facts = describe_case(files.case, images.grid[1], images.channels, counts, images.digest)
    return CaseCheck(
        case=files.case,
        findings=tuple(findings),
        values=tuple(label.counts),
        facts=facts,
        looked_at=mirrored,
        pairs=label.pairs,
    )


def _label_map_finding(files: CaseFiles, painted: Sequence[frozenset[int]]) -> Finding:
    """A label map in the place of a scan; of many values a scan may have as many, so that it is no error."""
    found = frozenset().union(*painted)
    return Finding(
        case=files.case,
        file=str(files.images[0]),
        expected="a scan",
        found=f"a label map, with nothing but the values {', '.join(map(str, sorted(found)))}",
        action="put the scan there, and label maps of labelled cases into labelsTr",
        error=len(found) <= MOST_SURE,
    )


@dataclass(frozen=True)
class _Images:
    """What the channels of a case hold; the grid is the first one's, None where none can be read, and of each channel
    the values where it looks like a label map.
    """

    findings: list[Finding]
    channels: list[ChannelFacts]
    grid: Grid | None
    digest: str
    painted: list[frozenset[int]]


def _check_images(case: str, paths: Iterable[Path], labels: LabelSpec | None) -> _Images:
    findings: list[Finding] = []
    channels: list[ChannelFacts] = []
    painted: list[frozenset[int]] = []
    grid: Grid | None = None
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            volumes = read_case_file(path)
        except DataError as error:
            findings.append(unreadable_finding(case, path, error))
            continue
        for volume in volumes:
            findings += finite_finding(case, path, volume.array)
            findings += header_findings(case, path, volume.remarks)
            if grid is None:
                grid = path, volume.geometry
            findings += grid_findings(case, *grid, path, volume.geometry)
            add_voxels(digest, volume.array, volume.geometry)
            channels.append(describe_channel(volume.array))
            if labels is not None:
                painted.append(painted_values(volume.array, labels.values))
    return _Images(findings, channels, grid, digest.hexdigest(), painted)


@dataclass(frozen=True)
class _Label:
    """What a label map holds: findings, voxels per value, structures that are mirror images."""

    findings: tuple[Finding, ...] = ()
    counts: Mapping[int, int] = field(default_factory=dict)
    pairs: tuple[MirrorPair, ...] = ()


def _check_label(case: str, path: Path, grid: Grid | None, labels: LabelSpec | None, mirrored: bool) -> _Label:
    try:
        label = read_label(path)
    except DataError as error:
        return _Label((unreadable_finding(case, path, error),))
    counts = label_counts(label.array)
    findings = header_findings(case, path, label.remarks)
    if grid is not None:
        findings += grid_findings(case, *grid, path, label.geometry)
    if labels is not None:
        findings += label_finding(case, path, counts, labels.values)
    pairs: tuple[MirrorPair, ...] = ()
    if mirrored and not findings:
        found = mirror_pairs(label.array, _annotated(counts, labels), label.geometry.spacing)
        pairs = tuple(along_patient(pair, label.geometry) for pair in found)
    return _Label(tuple(findings), counts, pairs)


def _annotated(counts: Mapping[int, int], labels: LabelSpec | None) -> dict[int, int]:
    """Voxels per label value, without those that are not annotated."""
    kept = dict(counts)
    if labels is not None and labels.ignore is not None:
        kept.pop(labels.ignore, None)
    return kept
