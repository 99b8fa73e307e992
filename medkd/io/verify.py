"""Check a whole raw data set and name every problem of every case, with what to do about it."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from pathlib import Path

import psutil

from medkd.core.dataset import CaseFiles, DatasetDescription, labelled_cases
from medkd.core.dataset_keys import check_meant
from medkd.core.errors import DataError
from medkd.core.files import write_text
from medkd.core.labels import LabelSpec
from medkd.core.numbers import whole_number
from medkd.core.serial import save
from medkd.io.checks import Finding
from medkd.io.comparison import compare_cases, spelling_findings
from medkd.io.facts import CaseFacts
from medkd.io.symmetry import common_pairs, network_axes
from medkd.io.verify_case import CaseCheck, check_case
from medkd.io.verify_detection import DetectionCheck, check_detection
from medkd.io.verify_patients import patient_findings
from medkd.io.verify_unlabelled import check_layout
from medkd.io.volumes import file_ending, read_shape, stem

_log = logging.getLogger(__name__)
REPORT_FILE = "verification_report.json"
_MIRROR_CASES = 25  # cases that are searched for structures that are mirror images of each other
_SIZED = (".tif", ".tiff")
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
        unlabelled: scans without labels and without a problem.
    """

    dataset: str
    good_cases: tuple[str, ...]
    bad_cases: tuple[str, ...]
    problems: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    unlabelled: tuple[str, ...] = ()
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
        counts = [
            f"{len(self.bad_cases)} bad cases",
            f"{len(self.problems)} problems",
            f"{len(self.warnings)} warnings",
        ]
        if self.unlabelled:
            counts.insert(0, f"{len(self.unlabelled)} good scans without labels")
        if self.good_cases or not self.unlabelled:
            counts.insert(0, f"{len(self.good_cases)} good cases")
        return f"{self.dataset}: {', '.join(counts)}"

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
        check_meant(folder / "dataset.json")
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
    checks, unlabelled = _check_cases(cases, plain, description.labels, workers)
    facts = _facts_of(checks)
    findings = _count_findings(folder, description, cases) + layout
    findings += patient_findings(folder, description)
    findings += chain.from_iterable(check.findings for check in unlabelled)
    findings += _listed_names(folder, cases)
    findings += _stray_files(folder, description, cases)
    structures = structures_of(description.labels)
    findings += spelling_findings(folder / "dataset.json", "labels", dict(description.labels.foreground))
    findings += compare_cases(facts, description.channel_names, structures, orientation, _facts_of(unlabelled))
    if facts:
        network = network_axes(facts, orientation)
        findings += _mirror_images(checks, description.labels, network, mirror_axes)
    findings += _unused_labels(description.labels, checks)
    without = tuple(check.case for check in unlabelled if check.good)
    return replace(_report(folder, checks, findings), unlabelled=without)


def _facts_of(checks: Iterable[CaseCheck]) -> list[CaseFacts]:
    """What the good ones among the cases look like."""
    return [check.facts for check in checks if check.facts is not None]


def _check_cases(
    cases: Sequence[CaseFiles], plain: Sequence[CaseFiles], labels: LabelSpec, workers: int | None
) -> tuple[list[CaseCheck], list[CaseCheck]]:
    """Check all cases, and scans without labels, in threads; some cases also for structures that are mirror images."""
    largest: list[Path] = []
    for case in (*cases, *plain):
        largest += case.images[:1]
        if case.label is not None:
            largest.append(case.label)
    every = max(len(cases) // _MIRROR_CASES, 1)  # structures that are mirror images are so in any case
    looked_at = {case.case for case in cases[::every]}
    with ThreadPoolExecutor(workers or worker_count(largest)) as pool:
        checks = list(pool.map(lambda case: check_case(case, labels, case.case in looked_at), cases))
        return checks, list(pool.map(lambda case: check_case(case, labels), plain))


def _report(folder: Path, checks: Sequence[CaseCheck] | Sequence[DetectionCheck], others: list[Finding]) -> Report:
    findings: list[Finding] = []
    good: list[str] = []
    bad: list[str] = []
    for check in checks:
        findings += check.findings
        if check.good:
            good.append(check.case)
        else:
            bad.append(check.case)
    findings += others
    return Report(
        dataset=folder.name,
        good_cases=tuple(good),
        bad_cases=tuple(sorted(bad)),
        problems=tuple(finding for finding in findings if finding.error),
        warnings=tuple(finding for finding in findings if not finding.error),
    )


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
    lines = [f"problem: {finding.text()}" for finding in problems]
    lines += [f"warning: {finding.text()}" for finding in warnings]
    return lines


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
    others = []
    for case in cases:
        if case.label is not None and stem(case.label) != case.case:
            others.append(f"{case.label} of case {case.case}")
    if not others:
        return []
    expected = "label maps named after their cases (in any folder), since scores are told apart by these names"
    found = f"{len(others)} others, for example {others[0]}"
    action = (
        f"link the files under their usual names with 'medkd_convert nnunet {folder} -d NNN' and use the new data set"
    )
    return [Finding(case="", file=str(folder / "dataset.json"), expected=expected, found=found, action=action)]


def _stray_files(folder: Path, description: DatasetDescription, cases: list[CaseFiles]) -> list[Finding]:
    """Files of ``imagesTr`` that belong to no case: further channels, images without label, other endings."""
    known: set[str] = set()
    for case in cases:
        known.update(path.name for path in case.images)
    headers = set()
    if description.file_ending in _DETACHED:
        headers = {name.removesuffix(description.file_ending) for name in known}
    ids = {case.case for case in cases}
    findings = []
    for path in _visible_files(folder / "imagesTr"):
        if path.name not in known and not _is_beside(path, description.file_ending, headers):
            findings.append(_stray_file(path, description, ids))
    return findings


def _is_beside(path: Path, ending: str, headers: set[str]) -> bool:
    """Whether a file belongs to a scan of another file: its voxels, or the voxel size of a stack."""
    voxels_of = Path(path.name.removesuffix(".gz")).stem  # the header that names such a file
    sized = path.suffix == ".json" and ending in _SIZED
    return sized or (file_ending(path) is None and voxels_of in headers)


def _visible_files(folder: Path) -> list[Path]:
    """The files of a folder, sorted, without hidden ones; none where there is no folder."""
    if not folder.is_dir():
        return []
    paths = []
    for path in folder.iterdir():
        if not path.name.startswith(".") and not path.is_dir():
            paths.append(path)
    return sorted(paths)


def _stray_file(path: Path, description: DatasetDescription, ids: set[str]) -> Finding:
    """What is wrong with a file that belongs to no case."""
    ending = description.file_ending
    case, _, channel = path.name.removesuffix(ending).rpartition("_")
    if not path.name.endswith(ending) or whole_number(channel) is None:
        return Finding(
            case="",
            file=str(path),
            expected=f"files named CASE_0000{ending}",
            found=path.name,
            action="rename, convert or remove it",
            error=file_ending(path) is not None,
        )
    if case in ids:
        names = description.channel_names
        return Finding(
            case=case,
            file=str(path),
            expected=f"{len(names)} channels per case ({', '.join(names)})",
            found=f"a channel {channel}",
            action="name it in channel_names or remove it",
        )
    return Finding(
        case=case,
        file=str(path),
        expected=f"a label map labelsTr/{case}{ending}",
        found="none",
        action="add the label map or move the image to imagesTs",
    )


def structures_of(labels: LabelSpec) -> dict[int, str]:
    """Label value → name of the structures; a label that is only a part of regions is called after its value."""
    names = {}
    for value in labels.values:
        if value not in (0, labels.ignore):
            names[value] = f"label {value}"
    for name, members in labels.foreground:
        if len(members) == 1:
            names[members[0]] = name
    return names


def _mirror_images(
    checks: Sequence[CaseCheck], labels: LabelSpec, network: Sequence[int], mirror_axes: tuple[int, ...] | None
) -> list[Finding]:
    """One warning for all structures that are mirror images of each other along one axis of the network.

    Args:
        checks: of the cases.
        labels: give the structures' names.
        network: axis of the network along each axis of the patient.
        mirror_axes: axes of the network that training mirrors; None is all of them.
    """
    names = structures_of(labels)
    found: dict[int, list[str]] = defaultdict(list)
    for pair in common_pairs((check.pairs, check.values) for check in checks if check.looked_at):
        found[network[pair.axis]].append(f"{names[pair.first]} and {names[pair.second]}")
    findings = []
    for axis in sorted(found):
        if mirror_axes is None or axis in mirror_axes:
            findings.append(_mirror_finding(axis, found[axis]))
    return findings


def _mirror_finding(axis: int, pairs: Sequence[str]) -> Finding:
    others = " ".join(str(other) for other in range(3) if other != axis)
    return Finding(
        case="",
        file="",
        expected="structures that a network can tell apart in a mirrored patch",
        found=f"mirror images of each other along axis {axis}: {', '.join(pairs)}",
        action=f"plan without mirroring along it (--mirror-axes {others}), unless their surroundings differ",
        error=False,
    )


def _unused_labels(labels: LabelSpec, checks: list[CaseCheck]) -> list[Finding]:
    present: set[int] = set()
    for check in checks:
        present.update(check.values)
    expected = set(labels.values) - {0, labels.ignore}
    unused = sorted(expected - present)
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
