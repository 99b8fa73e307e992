"""Intensity normalisation, in place, in float32, with nnU-Net's schemes."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from medkd.core.errors import DataError, PlanError
from medkd.core.plan import IntensityStatistics
from medkd.core.serial import nearest

_SMALLEST = 1e-8  # nnU-Net's floor for a standard deviation or range
_WINDOW = re.compile(r"window\(\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*\)")

_BY_CHANNEL_NAME = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_0_1",
    "rgb_to_0_1": "rgb_0_1",
}


def scheme_of(channel_name: str) -> str:
    """The scheme for a channel of this name: ``CT``, ``noNorm``, ``rescale_to_0_1``, ``rgb_to_0_1``; all others
    z-score.
    """
    return _BY_CHANNEL_NAME.get(channel_name.strip().casefold(), "zscore")


def normalise(
    channel: np.ndarray, scheme: str, statistics: IntensityStatistics | None = None, mask: np.ndarray | None = None
) -> np.ndarray:
    """Normalise one channel in place.

    ================ =====================================================================
    ``ct``           clip to the data set's foreground percentiles 0.5 and 99.5, then (x − mean)/std of the data set
    ``zscore``       (x − mean)/std of the image, or, with a mask, of the voxels inside it (the others stay as they are)
    ``none``         unchanged
    ``rescale_0_1``  (x − min)/(max − min) of the image
    ``rgb_0_1``      x/255
    ``window(a, b)`` clip to a..b, then (x − a)/(b − a); for example HU from -175 to 250
    ================ =====================================================================

    Args:
        channel: ``(z, y, x)`` float32; changed.
        scheme: name of the scheme.
        statistics: foreground statistics of the data set; needed by ``ct``.
        mask: ``(z, y, x)`` bool; used by ``zscore`` only.

    Returns:
        ``channel``.

    Raises:
        PlanError: the scheme is unknown or lacks its statistics.
        DataError: ``rgb_0_1`` found values outside 0..255.
    """
    window = _WINDOW.fullmatch(scheme)
    if window and float(window[1]) < float(window[2]):
        return _window(channel, float(window[1]), float(window[2]))
    if scheme not in _SCHEMES:
        known = ", ".join((*_SCHEMES, "window(low, high)"))
        raise PlanError(f"Unknown normalisation '{scheme}'.{nearest(scheme, _SCHEMES)} Known: {known}.")
    _SCHEMES[scheme](channel, statistics, mask)
    return channel


def _ct(channel: np.ndarray, statistics: IntensityStatistics | None, mask: np.ndarray | None) -> None:
    if statistics is None:
        raise PlanError(
            "The normalisation 'ct' needs the foreground intensities of the data set, which the plan does not hold."
        )
    np.clip(channel, statistics.percentile_00_5, statistics.percentile_99_5, out=channel)
    channel -= np.float32(statistics.mean)
    channel /= np.float32(max(statistics.std, _SMALLEST))


def _zscore(channel: np.ndarray, statistics: IntensityStatistics | None, mask: np.ndarray | None) -> None:
    if mask is None or mask.all():
        channel -= channel.mean()
        channel /= max(channel.std(), np.float32(_SMALLEST))
    elif mask.any():
        inside = channel[mask]
        inside -= inside.mean()
        inside /= max(inside.std(), np.float32(_SMALLEST))
        channel[mask] = inside


def _rescale(channel: np.ndarray, statistics: IntensityStatistics | None, mask: np.ndarray | None) -> None:
    channel -= channel.min()
    channel /= max(channel.max(), np.float32(_SMALLEST))


def _rgb(channel: np.ndarray, statistics: IntensityStatistics | None, mask: np.ndarray | None) -> None:
    low, high = channel.min(), channel.max()
    if low < 0 or high > 255:
        raise DataError(
            f"A channel named 'rgb_to_0_1' must hold values from 0 to 255, found {low:g} to {high:g}; rename it in "
            "dataset.json."
        )
    channel /= np.float32(255)


def _window(channel: np.ndarray, low: float, high: float) -> np.ndarray:
    np.clip(channel, low, high, out=channel)
    channel -= np.float32(low)
    channel /= np.float32(high - low)
    return channel


def _none(channel: np.ndarray, statistics: IntensityStatistics | None, mask: np.ndarray | None) -> None:
    return None


_SCHEMES: dict[str, Callable[[np.ndarray, IntensityStatistics | None, np.ndarray | None], None]] = {
    "ct": _ct,
    "zscore": _zscore,
    "none": _none,
    "rescale_0_1": _rescale,
    "rgb_0_1": _rgb,
}
