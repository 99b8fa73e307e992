"""What the server has done, as Prometheus reads it (text format 0.0.4)."""

from __future__ import annotations

import threading
from collections import Counter

_STAGES = ("upload", "read", "wait", "network", "write")


class Metrics:
    """Counters that only grow, and the gauges that are asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: Counter[int] = Counter()
        self._seconds: Counter[str] = Counter()
        self._voxels = 0
        self._scans = 0

    def answered(self, status: int) -> None:
        """A request for a segmentation was answered."""
        with self._lock:
            self._answers[status] += 1

    def took(self, stage: str, seconds: float) -> None:
        """A stage of a scan took so long."""
        with self._lock:
            self._seconds[stage] += seconds  # type: ignore[assignment]

    def segmented(self, voxels: int) -> None:
        """A scan was segmented."""
        with self._lock:
            self._scans += 1
            self._voxels += voxels

    def text(self, inside: int, most: int) -> str:
        """The page for Prometheus.

        Args:
            inside: scans that are being worked on.
            most: scans that the server takes at a time.
        """
        with self._lock:
            lines = ["# TYPE medkd_requests_total counter"]
            for status, count in sorted(self._answers.items()):
                lines.append(f'medkd_requests_total{{status="{status}"}} {count}')
            lines.append("# TYPE medkd_stage_seconds_total counter")
            for stage in _STAGES:
                lines.append(f'medkd_stage_seconds_total{{stage="{stage}"}} {self._seconds[stage]:.6f}')
            lines += ["# TYPE medkd_scans_total counter", f"medkd_scans_total {self._scans}"]
            lines += ["# TYPE medkd_voxels_total counter", f"medkd_voxels_total {self._voxels}"]
        lines += ["# TYPE medkd_scans_inside gauge", f"medkd_scans_inside {inside}"]
        lines += ["# TYPE medkd_queue_limit gauge", f"medkd_queue_limit {most}", ""]
        return "\n".join(lines)
