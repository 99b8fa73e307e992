"""Check a whole raw data set and name every problem of every case, with what to do about it."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import psutil

from medkd.core.dataset import CaseFiles, DatasetDescription, labelled_cases
from medkd.core.errors import DataError
from medkd.core.files import write_text
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.serial import save
from medkd.io.checks import (
    Finding,
    finite_finding,
    grid_findings,
    header_findings,
    label_counts,
    label_finding,
    unreadable_finding,
)
from medkd.io.comparison import compare_cases
from medkd.io.facts import CaseFacts, ChannelFacts, describe_case, describe_channel
from medkd.io.symmetry import MirrorPair, along_patient, common_pairs, mirror_pairs, network_axes
from medkd.io.verify_detection import DetectionCheck, check_detection
from medkd.io.verify_unlabelled import check_layout
from medkd.io.volumes import file_ending, read_label, read_shape, read_volume, stem

_log = logging.getLogger(__name__)
REPORT_FILE = "verification_report.json"
_MIRROR_CASES = 25  # cases that are searched for structures that are mirror images of each other
_DETACHED = (".mhd", ".nhdr")  # headers with the voxels in a file beside them


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found in a raw data set.

    Attributes:
        dataset: folder name.
        good_cases: training cases without a problem (they may have warnings).
        bad_cases: training cases that cannot be used.
        problems: errors of all cases and of the data set.
        warnings: what may be wrong.
    """

    dataset: str
    good_cases: tuple[str, ...]
    bad_cases: tuple[str, ...]
    problems: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    schema: int = 1

    @property
    def ok(self) -> bool:
        """Whether there is no problem (warnings are allowed)."""
        return not self.problems

    def text(self) -> str:
        """The report for people: a summary, then one line per finding, problems first."""
        return "\n".join([self.summary(), *findings_text(self.problems, self.warnings)]) + "\n"

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.dataset}: {len(self.good_cases)} good cases, {len(self.bad_cases)} bad cases, "
            f"{len(self.problems)} problems, {len(self.warnings)} warnings"
        )

    def save(self, path: Path) -> None:
        """Write the report as JSON to ``path`` and for people beside it with the ending ``.txt``."""
        save(path, self)
        write_text(Path(path).with_suffix(".txt"), self.text())


def accept(report: Report, path: Path, strict: bool = False) -> None:
    """Say what was found in raw data that are going to be preprocessed, every warning of it.

    Args:
        report: what was found.
        path: where the report is kept.
        strict: refuse warnings too.

    Raises:
        DataError: there are problems, or warnings and ``strict``.
    """
    readable = Path(path).with_suffix(".txt")
    if not report.ok:
        raise DataError(
            f"{report.text().rstrip()}\nNothing was preprocessed; mend these, or go on without the check "
            f"(--no-verify); the report is {readable}."
        )
    if report.warnings and strict:
        raise DataError(
            f"{report.text().rstrip()}\nNothing was preprocessed; mend these, or leave out --strict; the report is "
            f"{readable}."
        )
    for warning in report.warnings:
        _log.warning("%s", warning.text())
    where = f"; all of them are in {readable}" if report.warnings else ""
    _log.info("%s%s", report.summary(), where)


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
        return not any(f.error for f in self.findings)


def verify_dataset(
    folder: Path,
    *,
    workers: int | None = None,
    orientation: str | None = None,
    mirror_axes: tuple[int, ...] | None = None,
) -> Report:
    """Check ``dataset.json`` and the training cases of a raw data set; nothing is changed.

    Scans without labels (``imagesUn``) are checked for what can be wrong with a scan.

    Checked: the description itself, ``numTraining``, missing and additional channels, images without label and labels
    without image, label maps that are not named after their case, unreadable files, NaN and infinity, label values
    outside ``dataset.json``, one grid for all files of a case, labels that never occur. The cases are compared with
    each other (:func:`~medkd.io.comparison.compare_cases`), and structures that are mirror images of each other are
    named. Data sets for detection: see :func:`~medkd.io.verify_detection.check_detection`.

    Args:
        folder: the raw data set, nnU-Net v2 layout.
        workers: threads; None follows from cores and memory.
        orientation: the axis code that all scans are turned to, if any; how they are stored is then no matter.
        mirror_axes: axes of the network that training mirrors, where they were chosen; None is all of them.

    Returns:
        The report. It never raises for what is wrong inside the data set.
    """
    folder = Path(folder)
    try:
        description = DatasetDescription.load(folder / "dataset.json")
        if description.task == "detection":
            return _report(folder, *check_detection(folder, description, workers=workers))
        cases = labelled_cases(folder, description)
    except DataError as error:
        finding = Finding(
            case="",
            file=str(folder),
            expected="a valid dataset.json and training cases",
            found=str(error).rstrip("."),
            action="mend it, then verify again",
        )
        return Report(dataset=folder.name, good_cases=(), bad_cases=(), problems=(finding,), warnings=())
    plain, layout = check_layout(folder, description, {case.case for case in cases})
    largest = (path for case in (*cases, *plain) for path in (*case.images[:1], case.label) if path)
    with ThreadPoolExecutor(workers or worker_count(largest)) as pool:
        every = max(len(cases) // _MIRROR_CASES, 1)  # structures that are mirror images are so in any case
        looked_at = {case.case for case in cases[::every]}
        checks = list(pool.map(lambda case: check_case(case, description.labels, case.case in looked_at), cases))
        unlabelled = list(pool.map(lambda case: check_case(case, None), plain))
    facts = [check.facts for check in checks if check.facts is not None]
    findings = _count_findings(folder, description, cases)
    findings += layout
    findings += [finding for check in unlabelled for finding in check.findings]
    findings += _listed_names(folder, cases)
    findings += _stray_files(folder, description, cases)
    findings += compare_cases(facts, description.channel_names, structures_of(description.labels), orientation)
    findings += _mirror_images(checks, description.labels, orientation, mirror_axes)
    findings += _unused_labels(description.labels, checks)
    return _report(folder, checks, findings)


def _report(folder: Path, checks: Sequence[CaseCheck] | Sequence[DetectionCheck], others: list[Finding]) -> Report:
    findings = [*(f for check in checks for f in check.findings), *others]
    return Report(
        dataset=folder.name,
        good_cases=tuple(check.case for check in checks if check.good),
        bad_cases=tuple(sorted(check.case for check in checks if not check.good)),
        problems=tuple(f for f in findings if f.error),
        warnings=tuple(f for f in findings if not f.error),
    )


def check_case(files: CaseFiles, labels: LabelSpec | None, mirrored: bool = True) -> CaseCheck:
    """Check the files of one case; one volume is in memory at a time.

    Args:
        files: image files in channel order, and the label map.
        labels: which label values are allowed; None allows all.
        mirrored: also look for structures that are mirror images of each other.
    """
    findings: list[Finding] = []
    grid: tuple[Path, Geometry] | None = None
    channels: list[ChannelFacts] = []
    digest = hashlib.blake2b(digest_size=16)
    for path in files.images:
        try:
            volume = read_volume(path)
        except DataError as error:
            findings.append(unreadable_finding(files.case, path, error))
            continue
        findings += finite_finding(files.case, path, volume.array)
        findings += header_findings(files.case, path, volume.remarks)
        grid = grid or (path, volume.geometry)
        findings += grid_findings(files.case, *grid, path, volume.geometry)
        digest.update(volume.array.data)
        channels.append(describe_channel(volume.array))
    label = _Label()
    if files.label is not None:
        label = _check_label(files.case, files.label, grid, labels, mirrored)
        findings += label.findings
    facts = None
    if grid is not None and not any(f.error for f in findings):
        ignore = labels.ignore if labels else None
        counts = {value: count for value, count in label.counts.items() if value != ignore}
        facts = describe_case(files.case, grid[1], channels, counts, digest.hexdigest())
    return CaseCheck(
        case=files.case,
        findings=tuple(findings),
        values=tuple(label.counts),
        facts=facts,
        looked_at=mirrored,
        pairs=label.pairs,
    )


@dataclass(frozen=True)
class _Label:
    """What a label map holds: findings, voxels per value, structures that are mirror images."""

    findings: tuple[Finding, ...] = ()
    counts: Mapping[int, int] = field(default_factory=dict)
    pairs: tuple[MirrorPair, ...] = ()


def _check_label(
    case: str, path: Path, grid: tuple[Path, Geometry] | None, labels: LabelSpec | None, mirrored: bool
) -> _Label:
    try:
        label = read_label(path)
    except DataError as error:
        return _Label((unreadable_finding(case, path, error),))
    counts = label_counts(label.array)
    findings = header_findings(case, path, label.remarks)
    findings += grid_findings(case, *grid, path, label.geometry) if grid else []
    findings += label_finding(case, path, counts, labels.values) if labels else []
    pairs: tuple[MirrorPair, ...] = ()
    if mirrored and not findings:
        ignore = labels.ignore if labels else None
        structures = {value: count for value, count in counts.items() if value != ignore}
        found = mirror_pairs(label.array, structures, label.geometry.spacing)
        pairs = tuple(along_patient(pair, label.geometry) for pair in found)
    return _Label(tuple(findings), counts, pairs)


def worker_count(paths: Iterable[Path], *, bytes_per_voxel: int = 16) -> int:
    """Threads that neither exceed the cores nor half of the free memory, judged by the largest of the files."""
    voxels = 1
    for path in paths:
        try:
            voxels = max(voxels, prod(read_shape(path)))
        except DataError:  # reported where the file itself is read
            continue
    by_memory = psutil.virtual_memory().available // 2 // (voxels * bytes_per_voxel)
    return max(1, min(os.cpu_count() or 1, by_memory, 16))


def findings_text(problems: Iterable[Finding], warnings: Iterable[Finding]) -> list[str]:
    """One line per finding, problems first."""
    return [*(f"problem: {f.text()}" for f in problems), *(f"warning: {f.text()}" for f in warnings)]


def _count_findings(folder: Path, description: DatasetDescription, cases: list[CaseFiles]) -> list[Finding]:
    if description.num_training == len(cases):
        return []
    expected = f"{description.num_training} training cases (numTraining)"
    action = "correct numTraining or restore the missing cases"
    return [
        Finding(
            case="",
            file=str(folder / "dataset.json"),
            expected=expected,
            found=f"{len(cases)} label maps",
            action=action,
        )
    ]


def _listed_names(folder: Path, cases: list[CaseFiles]) -> list[Finding]:
    """Label maps of a listing in ``dataset.json`` (nnU-Net's alternative form) that are not named after their case."""
    others = [case for case in cases if case.label is not None and stem(case.label) != case.case]
    if not others:
        return []
    expected = "label maps named after their cases (in any folder), since scores are told apart by these names"
    found = f"{len(others)} others, for example {others[0].label} of case {others[0].case}"
    action = (
        f"link the files under their usual names with 'medkd_convert nnunet {folder} -d NNN' and use the new data set"
    )
    return [Finding(case="", file=str(folder / "dataset.json"), expected=expected, found=found, action=action)]


def _stray_files(folder: Path, description: DatasetDescription, cases: list[CaseFiles]) -> list[Finding]:
    """Files of ``imagesTr`` that belong to no case: further channels, images without label, other endings."""
    known = {path.name for case in cases for path in case.images}
    headers = (
        {name.removesuffix(description.file_ending) for name in known}
        if description.file_ending in _DETACHED
        else set()
    )
    ids = {case.case for case in cases}
    channels = len(description.channel_names)
    findings = []
    for path in sorted((folder / "imagesTr").glob("*")) if (folder / "imagesTr").is_dir() else []:
        if path.name.startswith(".") or path.name in known or path.is_dir():
            continue
        if file_ending(path) is None and Path(path.name.removesuffix(".gz")).stem in headers:
            continue  # the voxels that a header names
        case, _, channel = path.name.removesuffix(description.file_ending).rpartition("_")
        if not path.name.endswith(description.file_ending) or not channel.isdigit():
            expected = f"files named CASE_0000{description.file_ending}"
            severe = file_ending(path) is not None
            findings.append(
                Finding(
                    case="",
                    file=str(path),
                    expected=expected,
                    found=path.name,
                    action="rename, convert or remove it",
                    error=severe,
                )
            )
        elif case in ids:
            expected = f"{channels} channels per case ({', '.join(description.channel_names)})"
            findings.append(
                Finding(
                    case=case,
                    file=str(path),
                    expected=expected,
                    found=f"a channel {channel}",
                    action="name it in channel_names or remove it",
                )
            )
        else:
            action = "add the label map or move the image to imagesTs"
            findings.append(
                Finding(
                    case=case,
                    file=str(path),
                    expected=f"a label map labelsTr/{case}{description.file_ending}",
                    found="none",
                    action=action,
                )
            )
    return findings


def structures_of(labels: LabelSpec) -> dict[int, str]:
    """Label value → name of the structures; a label that is only a part of regions is called after its value."""
    names = {value: f"label {value}" for value in labels.values if value not in (0, labels.ignore)}
    names.update({members[0]: name for name, members in labels.foreground if len(members) == 1})
    return names


def _mirror_images(
    checks: Sequence[CaseCheck], labels: LabelSpec, orientation: str | None, mirror_axes: tuple[int, ...] | None
) -> list[Finding]:
    """One warning for all structures that are mirror images of each other along one axis."""
    facts = [check.facts for check in checks if check.facts is not None]
    if not facts:
        return []
    names = structures_of(labels)
    network = network_axes(facts, orientation)
    found: dict[int, list[str]] = defaultdict(list)
    for pair in common_pairs((check.pairs, check.values) for check in checks if check.looked_at):
        found[network[pair.axis]].append(f"{names[pair.first]} and {names[pair.second]}")
    findings = []
    for axis, pairs in sorted(found.items()):
        if mirror_axes is not None and axis not in mirror_axes:
            continue
        others = " ".join(str(other) for other in range(3) if other != axis)
        findings.append(
            Finding(
                case="",
                file="",
                expected="structures that a network can tell apart in a mirrored patch",
                found=f"mirror images of each other along axis {axis}: {', '.join(pairs)}",
                action=f"plan without mirroring along it (--mirror-axes {others}), unless their surroundings differ",
                error=False,
            )
        )
    return findings


def _unused_labels(labels: LabelSpec, checks: list[CaseCheck]) -> list[Finding]:
    present = {v for check in checks for v in check.values}
    unused = [v for v in labels.values if v not in present and v not in (0, labels.ignore)]
    if not unused or not present:
        return []
    found = f"no voxel with {', '.join(map(str, unused))} in any case"
    return [
        Finding(
            case="",
            file="dataset.json",
            expected="every label to occur",
            found=found,
            action="remove these labels or check the label maps",
            error=False,
        )
    ]
