"""What the training cases looked like, as the plan keeps it, and scans compared with it before they are predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

import numpy as np

from medkd.core.channels import machine
from medkd.core.dataset import CaseFiles
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.plan import ChannelRange, Configuration, DataRanges, Interval, Plan, StructureRange
from medkd.io.checks import Finding, grid_findings, header_findings
from medkd.io.comparison import count_orientations, is_ct, millimetres
from medkd.io.dicom import modality
from medkd.io.facts import CaseFacts, describe_case, describe_channel
from medkd.io.volumes import header_remarks, read_geometry

_SCALE = log(4)  # beyond what was seen, of the voxel's or the scan's edge (geometric mean of the axes)
_AXIS = log(6)  # of the spacing of one axis, where the extent is out of line too
_SPREAD = {True: log(6), False: log(50)}  # of the range of intensities, in HU or in arbitrary units
_HU_SHIFT = 700.0
_AIR = -300.0  # HU; no MR scan has such values where none of the others is below 0


def ranges_of(
    facts: Sequence[CaseFacts],
    channels: Sequence[str],
    orientation: str | None,
    structures: Mapping[int, str] | None = None,
) -> DataRanges | None:
    """The ranges of a data set; None without cases.

    Args:
        facts: what each case looks like.
        channels: names of the channels.
        orientation: the axis code that scans are turned to, if any.
        structures: label value → name of the structures.
    """
    if not facts:
        return None
    return DataRanges(
        orientations={orientation: len(facts)} if orientation else count_orientations(facts),
        spacing=_intervals([case.spacing for case in facts]),
        size_mm=_intervals([case.size_mm for case in facts]),
        channels=tuple(_channel_range(facts, index, name) for index, name in enumerate(channels)),
        structures=tuple(_structure_range(facts, value, name) for value, name in (structures or {}).items()),
    )


def _structure_range(facts: Sequence[CaseFacts], value: int, name: str) -> StructureRange:
    volumes = [case.volumes[str(value)] for case in facts if str(value) in case.volumes]
    return StructureRange(name, len(volumes), Interval(min(volumes), max(volumes)) if volumes else None)


def _channel_range(facts: Sequence[CaseFacts], index: int, name: str) -> ChannelRange:
    """Of the cases in which the channel is not constant, or of all where it is so in all."""
    seen, filled = [], []
    for case in facts:
        if index < len(case.channels):
            channel = case.channels[index]
            values = (channel.low, channel.median, channel.high)
            seen.append(values)
            if not channel.constant:
                filled.append(values)
    low, median, high = _intervals(filled or seen)
    return ChannelRange(name, low, median, high, empty=len(seen) - len(filled))


def _intervals(values: Sequence[Sequence[float]]) -> tuple[Interval, ...]:
    """The interval of each column of values ``(cases, n)``."""
    table = np.array(values, dtype=np.float64)
    lowest = table.min(axis=0).tolist()
    highest = table.max(axis=0).tolist()
    return tuple(map(Interval, lowest, highest))


def compare_scan(
    files: CaseFiles,
    image: np.ndarray,
    geometry: Geometry,
    plan: Plan,
    configuration: Configuration,
    channels: Sequence[str] = (),
) -> list[Finding]:
    """What in a scan a network of this plan has never seen, or cannot have seen; an empty list where it fits.

    Args:
        files: its files, whose DICOM headers may name a modality; of an array, which has none, axes are not compared.
        image: ``(C, z, y, x)`` as read.
        geometry: its grid.
        plan: the plan; without ranges (of an older version) only the spacing and empty channels are looked at.
        configuration: the configuration that the network was trained on.
        channels: names of the model's channels, for plans without ranges.
    """
    facts = describe_case(files.case, geometry, list(map(describe_channel, image)))
    findings = _headers(files) + _constant(facts)
    if len(image) > 1:  # several files of one channel are the slices of a series
        findings += _channels_apart(files, geometry)
    ranges = plan.ranges
    dicom = modality(files.images) if files.images else ""
    if ranges is None:
        findings += _against_target(facts, configuration)
        return findings + _strange_modality(facts, dicom, channels or _names_by_normalisation(configuration))
    if files.images and plan.orientation is None and facts.orientation not in ranges.orientations:
        findings.append(_orientation(facts, ranges))
    findings += _sizes(facts, ranges)
    known = min(len(facts.channels), len(ranges.channels))
    for index in range(known):
        if not facts.channels[index].constant:
            findings += _intensities(facts, index, ranges.channels[index], dicom)
    return findings


def _headers(files: CaseFiles) -> list[Finding]:
    findings = []
    for path in files.images:
        try:
            findings += header_findings(files.case, path, header_remarks(path))
        except DataError:  # it was read otherwise: the image need not come from these files
            continue
    return findings


def _channels_apart(files: CaseFiles, geometry: Geometry) -> list[Finding]:
    """Channels that lie less than a voxel beside the first, so that they could be read as one image."""
    findings: list[Finding] = []
    for path in files.images[1:]:
        try:
            findings += grid_findings(files.case, files.images[0], geometry, path, read_geometry(path))
        except DataError:  # it was read otherwise
            continue
    return [finding for finding in findings if not finding.error]  # what is one, reading refuses


def _constant(facts: CaseFacts) -> list[Finding]:
    action = "an empty channel says nothing to the network; restore it"
    findings = []
    for index, channel in enumerate(facts.channels):
        if channel.constant:
            found = f"the value {channel.median + 0.0:g} in all voxels"
            findings.append(_warning(facts.case, f"an image in channel {index}", found, action))
    return findings


def _orientation(facts: CaseFacts, ranges: DataRanges) -> Finding:
    expected = f"a scan stored in {' or '.join(ranges.orientations)}, as the training cases"
    action = "the network sees the patient turned or mirrored: turn the scan, or plan with --reorient and train again"
    return _warning(facts.case, expected, facts.orientation, action)


def _sizes(facts: CaseFacts, ranges: DataRanges) -> list[Finding]:
    action = "check the unit and the header of the scan"
    one_axis = _one_axis_beyond(facts, ranges)
    if one_axis or _mean_beyond(facts.spacing, ranges.spacing) > _SCALE:
        expected = f"a spacing as in the training cases ({_shown(ranges.spacing)})"
        found = f"{millimetres(facts.spacing)}, which makes the scan {millimetres(facts.size_mm)} large"
        return [_warning(facts.case, expected, found, action)]
    if _mean_beyond(facts.size_mm, ranges.size_mm) > _SCALE:
        expected = f"a scan as large as the training cases ({_shown(ranges.size_mm)})"
        return [_warning(facts.case, expected, millimetres(facts.size_mm), action)]
    return []


def _one_axis_beyond(facts: CaseFacts, ranges: DataRanges) -> bool:
    """Whether spacing and extent of one axis are both too large, or both too small."""
    spacing = _beyond(facts.spacing, ranges.spacing)
    size = _beyond(facts.size_mm, ranges.size_mm)
    too_large = (spacing > _AXIS) & (size > _SCALE)
    too_small = (spacing < -_AXIS) & (size < -_SCALE)
    return bool((too_large | too_small).any())


def _against_target(facts: CaseFacts, configuration: Configuration) -> list[Finding]:
    finest = sorted(facts.spacing)[: configuration.rank]
    factor = _log_mean(finest) - _log_mean(configuration.spacing)
    if abs(factor) <= log(8):
        return []
    expected = f"a spacing near the plan's ({millimetres(configuration.spacing)})"
    action = "check the unit and the header of the scan"
    return [_warning(facts.case, expected, millimetres(facts.spacing), action)]


def _intensities(facts: CaseFacts, index: int, seen: ChannelRange, dicom: str) -> list[Finding]:
    channel = facts.channels[index]
    in_hu = is_ct(seen.name)
    spread = log(max(channel.spread, 1e-12))
    odd = _outside(spread, _log_spreads(seen)) > _SPREAD[in_hu]
    if in_hu:
        odd |= _outside(channel.low, seen.low) > _HU_SHIFT
    else:
        odd |= seen.low.low >= 0 and channel.low < _AIR
    other = _other_modality(dicom, seen.name)
    if not odd and not other:
        return []
    expected = (
        f"intensities of channel {index} ({seen.name}) from {_ends(seen.low)} to {_ends(seen.high)}, as in training"
    )
    found = f"{channel.low:.4g} to {channel.high:.4g}"
    if other:
        found += f" in a series of modality {other}"
    action = "check that it is a scan of the same kind and its values are rescaled"
    return [_warning(facts.case, expected, found, action)]


def _log_spreads(seen: ChannelRange) -> Interval:
    """Logarithm of the narrowest (at least, as far as the intervals tell) and the widest range of intensities."""
    surely = seen.high.low - seen.low.high
    likely = (seen.high.low - seen.low.low) / 4
    widest = seen.high.high - seen.low.low
    return Interval(log(max(surely, likely, 1e-12)), log(max(widest, 1e-12)))


def _other_modality(dicom: str, channel: str) -> str:
    """The series' modality where it is known and contradicts the channel's name."""
    expected = machine(channel)
    return dicom if expected and dicom in ("CT", "MR") and dicom != expected else ""


def _strange_modality(facts: CaseFacts, dicom: str, channels: Sequence[str]) -> list[Finding]:
    """A series of another machine than the model's channels, where nothing else is known of what it was trained on."""
    names = [name for name in channels if _other_modality(dicom, name)]
    if not names:
        return []
    expected = f"a scan of the model's modality (channel {names[0]})"
    action = "choose a model that was trained on such scans"
    return [_warning(facts.case, expected, f"a series of modality {dicom}", action)]


def _names_by_normalisation(configuration: Configuration) -> list[str]:
    """CT is the only modality that a plan shows by its normalisation."""
    return ["CT" if scheme == "ct" else "" for scheme in configuration.normalization]


def _outside(value: float, seen: Interval) -> float:
    """How far a value lies outside of an interval."""
    return max(seen.low - value, value - seen.high, 0.0)


def _beyond(values: Sequence[float], seen: Sequence[Interval]) -> np.ndarray:
    """Logarithm of the factor by which each value is smaller (negative) or larger than what was seen; 0 inside."""
    logs = np.log(values)
    low, high = np.log([(interval.low, interval.high) for interval in seen]).T
    return np.minimum(logs - low, 0.0) + np.maximum(logs - high, 0.0)


def _mean_beyond(values: Sequence[float], seen: Sequence[Interval]) -> float:
    """The same for the geometric mean of the axes, without the sign."""
    low = _log_mean([interval.low for interval in seen])
    high = _log_mean([interval.high for interval in seen])
    return _outside(_log_mean(values), Interval(low, high))


def _log_mean(values: Sequence[float]) -> float:
    """Logarithm of the geometric mean."""
    return float(np.mean(np.log(values)))


def _shown(intervals: Sequence[Interval]) -> str:
    return " × ".join(map(_ends, intervals)) + " mm"


def _ends(interval: Interval) -> str:
    low, high = f"{interval.low:.3g}", f"{interval.high:.3g}"
    return low if low == high else f"{low}…{high}"


def _warning(case: str, expected: str, found: str, action: str) -> Finding:
    return Finding(case=case, file="", expected=expected, found=found, action=action, error=False)
