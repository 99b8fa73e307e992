"""What the training cases looked like, as the plan keeps it, and scans compared with it before they are predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log

import numpy as np

from medkd.core.dataset import CaseFiles
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.plan import ChannelRange, Configuration, DataRanges, Interval, Plan
from medkd.io.checks import Finding, header_findings
from medkd.io.comparison import count_orientations, is_ct, millimetres
from medkd.io.dicom import modality
from medkd.io.facts import CaseFacts, ChannelFacts, describe_case, describe_channel
from medkd.io.volumes import header_remarks

_SCALE = log(4)  # beyond what was seen, of the voxel's or the scan's edge (geometric mean of the axes)
_AXIS = log(6)  # of the spacing of one axis, where the extent is out of line too
_SPREAD = {True: log(6), False: log(50)}  # of the range of intensities, in HU or in arbitrary units
_HU_SHIFT = 700.0
_AIR = -300.0  # HU; no MR scan has such values where none of the others is below 0
_MR_NAMES = ("mr", "mri", "t1", "t1w", "t1ce", "t1gd", "t2", "t2w", "flair", "adc", "dwi", "pd")


def ranges_of(facts: Sequence[CaseFacts], channels: Sequence[str], orientation: str | None) -> DataRanges | None:
    """The ranges of a data set; None without cases.

    Args:
        facts: what each case looks like.
        channels: names of the channels.
        orientation: the axis code that scans are turned to, if any.
    """
    if not facts:
        return None
    found = []
    for index, name in enumerate(channels):
        seen = [case.channels[index] for case in facts if index < len(case.channels)]
        filled = [channel for channel in seen if not channel.constant] or seen
        found.append(
            ChannelRange(
                name,
                _interval([channel.low for channel in filled]),
                _interval([channel.median for channel in filled]),
                _interval([channel.high for channel in filled]),
            )
        )
    return DataRanges(
        orientations={orientation: len(facts)} if orientation else count_orientations(facts),
        spacing=tuple(_interval([case.spacing[axis] for case in facts]) for axis in range(3)),
        size_mm=tuple(_interval([case.size_mm[axis] for case in facts]) for axis in range(3)),
        channels=tuple(found),
    )


def compare_scan(
    files: CaseFiles, image: np.ndarray, geometry: Geometry, plan: Plan, configuration: Configuration
) -> list[Finding]:
    """What in a scan a network of this plan has never seen, or cannot have seen; an empty list where it fits.

    Args:
        files: its files, whose DICOM headers may name a modality.
        image: ``(C, z, y, x)`` as read.
        geometry: its grid.
        plan: the plan; without ranges (of an older version) only the spacing and empty channels are looked at.
        configuration: the configuration that the network was trained on.
    """
    facts = describe_case(files.case, geometry, [describe_channel(channel) for channel in image])
    findings = _headers(files) + _constant(facts)
    ranges = plan.ranges
    if ranges is None:
        return findings + _against_target(facts, configuration)
    if plan.orientation is None and facts.orientation not in ranges.orientations:
        findings.append(_orientation(facts, ranges))
    findings += _sizes(facts, ranges)
    dicom = modality(files.images)
    for index, (channel, seen) in enumerate(zip(facts.channels, ranges.channels, strict=False)):
        if not channel.constant:
            findings += _intensities(facts.case, index, channel, seen, dicom)
    return findings


def _headers(files: CaseFiles) -> list[Finding]:
    findings = []
    for path in files.images:
        try:
            findings += header_findings(files.case, path, header_remarks(path))
        except DataError:  # it was read otherwise: the image need not come from these files
            continue
    return findings


def _constant(facts: CaseFacts) -> list[Finding]:
    action = "an empty channel says nothing to the network; restore it"
    findings = []
    for index, channel in enumerate(facts.channels):
        if channel.constant:
            found = f"the value {channel.median:g} in all voxels"
            findings.append(_warning(facts.case, f"an image in channel {index}", found, action))
    return findings


def _orientation(facts: CaseFacts, ranges: DataRanges) -> Finding:
    expected = f"a scan stored in {' or '.join(ranges.orientations)}, as the training cases"
    action = "the network sees the patient turned or mirrored: turn the scan, or plan with --reorient and train again"
    return _warning(facts.case, expected, facts.orientation, action)


def _sizes(facts: CaseFacts, ranges: DataRanges) -> list[Finding]:
    action = "check the unit and the header of the scan"
    spacing, size = _beyond(facts.spacing, ranges.spacing), _beyond(facts.size_mm, ranges.size_mm)
    one_axis = any(abs(s) > _AXIS and abs(e) > _SCALE and s * e > 0 for s, e in zip(spacing, size, strict=True))
    if one_axis or _mean_beyond(facts.spacing, ranges.spacing) > _SCALE:
        expected = f"a spacing as in the training cases ({_shown(ranges.spacing)})"
        found = f"{millimetres(facts.spacing)}, which makes the scan {millimetres(facts.size_mm)} large"
        return [_warning(facts.case, expected, found, action)]
    if _mean_beyond(facts.size_mm, ranges.size_mm) > _SCALE:
        expected = f"a scan as large as the training cases ({_shown(ranges.size_mm)})"
        return [_warning(facts.case, expected, millimetres(facts.size_mm), action)]
    return []


def _against_target(facts: CaseFacts, configuration: Configuration) -> list[Finding]:
    target = float(np.mean(np.log(configuration.spacing)))
    own = float(np.mean(np.log(sorted(facts.spacing)[: configuration.rank])))
    if abs(own - target) <= log(8):
        return []
    expected = f"a spacing near the plan's ({millimetres(configuration.spacing)})"
    action = "check the unit and the header of the scan"
    return [_warning(facts.case, expected, millimetres(facts.spacing), action)]


def _intensities(case: str, index: int, channel: ChannelFacts, seen: ChannelRange, dicom: str) -> list[Finding]:
    in_hu = is_ct(seen.name)
    spreads = Interval(_least_spread(seen), max(seen.high.high - seen.low.low, 1e-12))
    odd = _outside(log(max(channel.spread, 1e-12)), spreads, log) > _SPREAD[in_hu]
    if in_hu:
        odd |= _outside(channel.low, seen.low) > _HU_SHIFT
    odd |= seen.low.low >= 0 and channel.low < _AIR and not in_hu
    other = _other_modality(dicom, seen.name)
    if not odd and not other:
        return []
    expected = (
        f"intensities of channel {index} ({seen.name}) from {_ends(seen.low)} to {_ends(seen.high)}, as in training"
    )
    found = f"{channel.low:.4g} to {channel.high:.4g}" + (f" in a series of modality {other}" if other else "")
    return [_warning(case, expected, found, "check that it is a scan of the same kind and its values are rescaled")]


def _least_spread(seen: ChannelRange) -> float:
    """At least the narrowest case's range of intensities, as far as the intervals tell."""
    return max(seen.high.low - seen.low.high, (seen.high.low - seen.low.low) / 4, 1e-12)


def _other_modality(dicom: str, channel: str) -> str:
    """The series' modality where it is known and contradicts the channel's name."""
    name = channel.strip().casefold()
    wrong = (dicom == "MR" and is_ct(channel)) or (dicom == "CT" and name in _MR_NAMES)
    return dicom if wrong else ""


def _interval(values: Sequence[float]) -> Interval:
    return Interval(float(min(values)), float(max(values)))


def _outside(value: float, seen: Interval, scale: Callable[[float], float] = float) -> float:
    """How far a value lies outside of an interval, whose ends are brought to the value's scale."""
    return max(scale(seen.low) - value, value - scale(seen.high), 0.0)


def _beyond(values: Sequence[float], seen: Sequence[Interval]) -> list[float]:
    """Logarithm of the factor by which each value is smaller (negative) or larger than what was seen; 0 inside."""
    found = []
    for value, interval in zip(values, seen, strict=True):
        found.append(min(log(value / interval.low), 0.0) + max(log(value / interval.high), 0.0))
    return found


def _mean_beyond(values: Sequence[float], seen: Sequence[Interval]) -> float:
    """The same for the geometric mean of the axes, without the sign."""
    low, high = (float(np.mean(np.log([getattr(i, end) for i in seen]))) for end in ("low", "high"))
    mean = float(np.mean(np.log(values)))
    return max(low - mean, mean - high, 0.0)


def _shown(intervals: Sequence[Interval]) -> str:
    return " × ".join(_ends(interval) for interval in intervals) + " mm"


def _ends(interval: Interval) -> str:
    low, high = f"{interval.low:.3g}", f"{interval.high:.3g}"
    return low if low == high else f"{low}…{high}"


def _warning(case: str, expected: str, found: str, action: str) -> Finding:
    return Finding(case=case, file="", expected=expected, found=found, action=action, error=False)
