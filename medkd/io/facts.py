"""What one case looks like in a few numbers, so that cases can be compared with each other and with a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medkd.core.geometry import Geometry
from medkd.io.orientation import axis_code, patient_axes, turn

_SAMPLE = 8_000  # voxels of a channel that its percentiles are taken from, evenly spread


@dataclass(frozen=True)
class ChannelFacts:
    """Intensities of one channel of one case: percentiles 0.5, 50 and 99.5 of all voxels.

    Attributes:
        constant: whether all voxels are equal, so that the channel says nothing.
    """

    low: float
    median: float
    high: float
    constant: bool = False

    @property
    def spread(self) -> float:
        """From the low to the high percentile."""
        return self.high - self.low


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """What one case looks like.

    Attributes:
        case: case id.
        orientation: axis code of the first channel's file, ``"RAS"`` for example.
        spacing: voxel size in mm along the patient's axes: head-foot, front-back, left-right.
        size_mm: extent in mm along these axes.
        channels: intensities of each channel.
        volumes: label value (as text) → mm³; only labels that occur.
        digest: hash of the voxels of all channels (:func:`add_voxels`); equal for scans that were copied.
    """

    case: str
    orientation: str
    spacing: tuple[float, ...]
    size_mm: tuple[float, ...]
    channels: tuple[ChannelFacts, ...]
    volumes: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""


def describe_case(
    case: str,
    geometry: Geometry,
    channels: Sequence[ChannelFacts],
    counts: Mapping[int, int] | None = None,
    digest: str = "",
) -> CaseFacts:
    """Put together what one case looks like.

    Args:
        case: case id.
        geometry: grid of the first channel.
        channels: see :func:`describe_channel`.
        counts: voxels per label value.
        digest: hash of the voxels.
    """
    voxel = abs(float(np.linalg.det(geometry.matrix[:3, :3])))
    volumes = {}
    for value, count in (counts or {}).items():
        if value:
            volumes[str(value)] = count * voxel
    axes = list(patient_axes(geometry))
    spacing = np.array(geometry.spacing)[axes]
    size = spacing * np.array(geometry.shape)[axes]
    return CaseFacts(
        case=case,
        orientation=axis_code(geometry),
        spacing=tuple(spacing.tolist()),
        size_mm=tuple(size.tolist()),
        channels=tuple(channels),
        volumes=volumes,
        digest=digest,
    )


def add_voxels(digest: hashlib.blake2b, array: np.ndarray, geometry: Geometry) -> None:
    """Hash the voxels of a channel as they lie in the patient: equal for copies whose axes are stored in another order
    or direction, such as DICOM's LPS beside NIfTI's RAS.

    Args:
        digest: what they are added to.
        array: ``(z, y, x)``.
        geometry: their grid.
    """
    for plane in turn(array, axis_code(geometry), "RAS"):
        digest.update(np.ascontiguousarray(plane).data)


def describe_channel(channel: np.ndarray) -> ChannelFacts:
    """Percentiles of about 8 000 voxels, evenly spread over the channel ``(z, y, x)``; exact for smaller ones."""
    flat = channel.reshape(-1)
    ends_alike = flat[0] == flat[-1] == flat[flat.size // 2]
    constant = bool(ends_alike and flat.min() == flat.max())
    step = max(flat.size // _SAMPLE, 1)
    if step > 1:
        step += step % 2 == 0  # an odd step does not fall into step with even rows
    sample = flat[::step]
    places = [round(level * (sample.size - 1)) for level in (0.005, 0.5, 0.995)]
    low, median, high = np.partition(sample, places)[places].tolist()
    return ChannelFacts(float(low), float(median), float(high), constant)
