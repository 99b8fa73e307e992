"""What the server takes at most, and what it says when something is too much."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from medkd.core.errors import DataError, RunError
from medkd.core.geometry import Geometry
from medkd.core.plan import Configuration, Plan

MEBI = 2**20


class TooLargeError(DataError):
    """A request is larger than the server takes."""


class BusyError(RunError):
    """As many scans are being worked on as the server takes at a time."""


class TooSlowError(DataError):
    """An upload took longer than the server waits."""


class ForeignPageError(DataError):
    """A page of another server sent the request."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one server.

    Attributes:
        queue: scans at a time: those that arrive, wait and are computed.
        upload: most bytes of a request.
        unpacked: most bytes of a zip's entries together.
        entries: most entries of a zip.
        voxels: most voxels of a scan, in its own grid and in the network's, all channels together.
        seconds: that an upload may take.
    """

    queue: int = 8
    upload: int = 1024 * MEBI
    unpacked: int = 4096 * MEBI
    entries: int = 10_000
    voxels: int = 400_000_000
    seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in ("queue", "upload", "unpacked", "entries", "voxels", "seconds"):
            if not getattr(self, name) > 0:
                raise RunError(f"The server's limit '{name}' must be above 0, found {getattr(self, name)}.")

    def check_upload(self, size: int) -> None:
        """Refuse a request of more bytes.

        Raises:
            TooLargeError: it has more.
        """
        if size > self.upload:
            raise TooLargeError(
                f"The request is larger than the {self.upload / MEBI:.4g} MiB that this server takes; send one scan, "
                "compressed."
            )

    def check_grid(self, geometry: Geometry, channels: int, plan: Plan, configuration: Configuration) -> None:
        """Refuse a scan whose voxels would not fit, from its header alone.

        Raises:
            TooLargeError: it has more voxels, or would have on the network's grid.
        """
        stored = prod(geometry.shape)
        spacing = [geometry.spacing[axis] for axis in plan.transpose]
        kept = len(spacing) - configuration.rank
        resampled = float(stored)
        for native, wanted in zip(spacing[kept:], configuration.spacing, strict=True):
            resampled *= native / wanted
        most = max(stored, resampled) * channels
        if most > self.voxels:
            where = "" if stored >= resampled else ", at the network's voxel size"
            raise TooLargeError(
                f"The scan has {most / 1e6:.4g} million voxels{where}, more than the {self.voxels / 1e6:.4g} million "
                "that this server takes; crop it, or check the voxel size in its header."
            )
