"""Cases compared with each other: what is right for each alone, but does not fit together.

Every rule looks at how far a case lies from the median of all cases, and asks for two things at once: a factor that
only a fault explains, and a distance of many median absolute deviations, so that data sets that are mixed on purpose
raise no alarm.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import log
from pathlib import Path

import numpy as np

from medkd.core.channels import machine
from medkd.io.checks import Finding
from medkd.io.facts import CaseFacts, ChannelFacts

_FEWEST = 3  # cases from which a median says what is usual
_DEVIATIONS = 8.0  # median absolute deviations
_SCALE = log(4)  # of the voxel's or the scan's edge (geometric mean of the axes)
_AXIS = log(6)  # of the spacing of one axis, where the extent is out of line too
_SPREAD = {True: log(6), False: log(50)}  # of the range of intensities, in HU or in arbitrary units
_HU_SHIFT = 700.0  # of the darkest voxels: a CT without its offset of 1024 lies 1000 higher
_MIXTURE = 0.05  # share of the cases beyond which another range of arbitrary units is no outlier
_VOLUME = log(50)  # of a structure
_USUAL = 0.95  # share of the cases that show a structure which "belongs there"
_MANY = 20  # cases from which one can say so
_SHOWN = 5


def compare_cases(
    facts: Sequence[CaseFacts],
    channels: Sequence[str],
    structures: Mapping[int, str],
    orientation: str | None = None,
    unlabelled: Sequence[CaseFacts] = (),
) -> list[Finding]:
    """Warnings about cases that do not fit the others.

    Args:
        facts: what each case with labels looks like.
        channels: names of the channels; those called CT are in HU.
        structures: label value → name of the structures that cases are expected to show.
        orientation: the axis code that all scans are turned to, if any; how they are stored is then no matter.
        unlabelled: what each scan without labels looks like, which is compared with all but for structures.
    """
    scans = [*facts, *unlabelled]
    findings = [] if orientation else _mixed_orientations(scans)
    findings += _constant_channels(scans, channels)
    findings += twin_findings(scans)
    findings += alike_findings([case.case for case in scans])
    if len(scans) >= _FEWEST:
        findings += _odd_sizes(scans)
        findings += _odd_intensities(scans, channels)
    if len(facts) >= _FEWEST:
        findings += _odd_structures(facts, structures)
    return findings


def twin_groups(facts: Sequence[CaseFacts]) -> list[tuple[str, ...]]:
    """Cases whose scans are equal voxel by voxel, in groups of two or more."""
    same: dict[str, list[str]] = defaultdict(list)
    for case in facts:
        if case.digest:
            same[case.digest].append(case.case)
    groups = []
    for cases in same.values():
        if len(cases) > 1:
            groups.append(tuple(cases))
    return groups


def twin_findings(facts: Sequence[CaseFacts]) -> list[Finding]:
    """A warning for each group of equal scans."""
    action = "keep one of them; new folds keep them together, folds that exist already may not"
    expected = "different images in different cases"
    findings = []
    for cases in twin_groups(facts):
        found = f"the same voxels in {', '.join(cases)}"
        findings.append(_warning(cases[0], expected, found, action))
    return findings


def alike_findings(cases: Sequence[str]) -> list[Finding]:
    """A warning for each group of cases whose names differ by capitals alone."""
    same: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        same[case.casefold()].append(case)
    action = "macOS and Windows take their files for one: rename all but one"
    findings = []
    for alike in same.values():
        if len(alike) > 1:
            findings.append(_warning(alike[0], "names that differ by more than capitals", some(alike), action))
    return findings


def spelling_findings(file: Path, what: str, names: Iterable[str]) -> list[Finding]:
    """A warning for each two names that are probably one."""
    spelled: dict[str, str] = {}
    findings = []
    for name in names:
        other = spelled.setdefault(" ".join(name.split()).casefold(), name)
        if other != name:
            findings.append(
                Finding(
                    case="",
                    file=str(file),
                    expected=f"{what} that differ in more than capitals and blanks",
                    found=f"'{other}' and '{name}'",
                    action="call them the same if they are one",
                    error=False,
                )
            )
    return findings


def outliers(values: Sequence[float], least: float) -> list[int]:
    """Indices of values that lie further from the median than ``least`` and than 8 median absolute deviations."""
    array = np.asarray(values, dtype=np.float64)
    distance = np.abs(array - np.median(array))
    limit = max(least, _DEVIATIONS * float(np.median(distance)))
    return np.flatnonzero(distance > limit).tolist()


def _mixed_orientations(facts: Sequence[CaseFacts]) -> list[Finding]:
    cases: dict[str, list[str]] = defaultdict(list)
    for case in facts:
        cases[case.orientation].append(case.case)
    if len(cases) < 2:
        return []
    ordered = sorted(cases, key=lambda code: -len(cases[code]))
    found = "; ".join(f"{code} in {len(cases[code])} ({some(cases[code])})" for code in ordered)
    action = f"a network would see the patient mirrored or turned in some: turn all to one with --reorient {ordered[0]}"
    return [_warning("", "scans that are all stored in one orientation", found, action)]


def _constant_channels(facts: Sequence[CaseFacts], channels: Sequence[str]) -> list[Finding]:
    findings = []
    action = "an empty channel says nothing to the network: restore it, or leave the case out"
    for case in facts:
        for index, channel in enumerate(case.channels):
            if channel.constant:
                expected = f"an image in channel {_channel_name(channels, index)}"
                found = f"the value {channel.median + 0.0:g} in all voxels"
                findings.append(_warning(case.case, expected, found, action))
    return findings


def _odd_sizes(facts: Sequence[CaseFacts]) -> list[Finding]:
    spacings = np.log([case.spacing for case in facts])
    sizes = np.log([case.size_mm for case in facts])
    odd_spacing = set(outliers(spacings.mean(axis=1).tolist(), _SCALE))
    for axis in range(3):
        coarse = outliers(spacings[:, axis].tolist(), _AXIS)
        large = outliers(sizes[:, axis].tolist(), _SCALE)
        odd_spacing |= set(coarse) & set(large)
    odd_size = set(outliers(sizes.mean(axis=1).tolist(), _SCALE)) - odd_spacing
    usual_spacing = millimetres(np.exp(np.median(spacings, axis=0)))
    usual_size = millimetres(np.exp(np.median(sizes, axis=0)))
    action = "check the unit and the header of the scan; correct them or leave the case out"
    findings = []
    for index in sorted(odd_spacing):
        case = facts[index]
        found = f"{millimetres(case.spacing)}, which makes the scan {millimetres(case.size_mm)} large"
        findings.append(_warning(case.case, f"a spacing near the others' ({usual_spacing})", found, action))
    for index in sorted(odd_size):
        case = facts[index]
        expected = f"a scan about as large as the others ({usual_size})"
        findings.append(_warning(case.case, expected, millimetres(case.size_mm), action))
    return findings


def _odd_intensities(facts: Sequence[CaseFacts], channels: Sequence[str]) -> list[Finding]:
    findings = []
    action = "check the unit and the rescaling of the scan; correct it or leave the case out"
    for index, name in enumerate(channels):
        cases, values = _filled(facts, index)
        if len(cases) < _FEWEST:
            continue
        low, high = np.median([(value.low, value.high) for value in values], axis=0)
        expected = f"intensities of channel {_channel_name(channels, index)} near the others' ({low:.4g} to {high:.4g})"
        for place in _odd_channels(values, is_ct(name)):
            found = f"{values[place].low:.4g} to {values[place].high:.4g}"
            findings.append(_warning(cases[place], expected, found, action))
    return findings


def _filled(facts: Sequence[CaseFacts], index: int) -> tuple[list[str], list[ChannelFacts]]:
    """The cases that have a channel which is not constant, and this channel of each."""
    cases, values = [], []
    for case in facts:
        if index < len(case.channels) and not case.channels[index].constant:
            cases.append(case.case)
            values.append(case.channels[index])
    return cases, values


def _odd_channels(values: Sequence[ChannelFacts], in_hu: bool) -> list[int]:
    """Places of the channels whose intensities are out of line."""
    spreads = [log(max(value.spread, 1e-12)) for value in values]
    odd = outliers(spreads, _SPREAD[in_hu])
    if in_hu:
        return sorted({*odd, *outliers([value.low for value in values], _HU_SHIFT)})
    differing_scanners = len(odd) > max(_MIXTURE * len(values), 1)  # units are arbitrary
    return [] if differing_scanners else odd


def _odd_structures(facts: Sequence[CaseFacts], structures: Mapping[int, str]) -> list[Finding]:
    """Structures that few cases lack, or that are far too small or large in one; and cases without any."""
    findings = []
    labelled = [case for case in facts if case.volumes]
    empty = _names_without(facts, labelled)
    if _is_rare(len(empty), len(facts)):
        action = "check that their label maps are finished"
        findings.append(_warning("", "a structure in every label map, as in most", f"none in {some(empty)}", action))
    for value, name in structures.items():
        having = [case for case in labelled if str(value) in case.volumes]
        lacking = _names_without(labelled, having)
        if _is_rare(len(lacking), len(labelled)):
            expected = f"the structure {name} ({value}), which {len(having)} of {len(labelled)} cases show"
            findings.append(_warning("", expected, f"none in {some(lacking)}", "check their label maps"))
        findings += _odd_volumes(having, value, name)
    return findings


def _names_without(cases: Sequence[CaseFacts], others: Sequence[CaseFacts]) -> list[str]:
    """Names of the cases that are not among the others."""
    known = {case.case for case in others}
    return [case.case for case in cases if case.case not in known]


def _is_rare(lacking: int, cases: int) -> bool:
    """Whether so few of many cases lack something that it belongs there."""
    return cases >= _MANY and lacking > 0 and cases - lacking >= _USUAL * cases


def _odd_volumes(having: Sequence[CaseFacts], value: int, name: str) -> list[Finding]:
    if len(having) < _FEWEST:
        return []
    volumes = [case.volumes[str(value)] for case in having]
    usual = float(np.median(volumes))
    action = "check its label map, and the spacing in its header"
    findings = []
    for place in outliers(list(map(log, volumes)), _VOLUME):
        expected = f"{name} ({value}) about as large as in the others ({usual:.3g} mm³)"
        findings.append(_warning(having[place].case, expected, f"{volumes[place]:.3g} mm³", action))
    return findings


def is_ct(channel: str) -> bool:
    """Whether a channel of this name is in Hounsfield units."""
    return machine(channel) == "CT"


def some(names: Sequence[str]) -> str:
    """The first few names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def millimetres(values: Sequence[float] | np.ndarray) -> str:
    """Three lengths, head-foot first."""
    return " × ".join(f"{value:.3g}" for value in values) + " mm"


def _channel_name(channels: Sequence[str], index: int) -> str:
    return f"{index} ({channels[index]})" if index < len(channels) else str(index)


def _warning(case: str, expected: str, found: str, action: str) -> Finding:
    return Finding(case=case, file="", expected=expected, found=found, action=action, error=False)


def count_orientations(facts: Sequence[CaseFacts]) -> dict[str, int]:
    """Axis code → number of cases, the most frequent first."""
    return dict(Counter(case.orientation for case in facts).most_common())
