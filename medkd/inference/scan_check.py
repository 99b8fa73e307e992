"""Scans compared with what a model was trained on, before they are predicted."""

from __future__ import annotations

import logging

import numpy as np

from medkd.core.dataset import CaseFiles
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.preprocessing.ranges import compare_scan
from medkd.runtime.prediction import CasePredictor

_log = logging.getLogger(__name__)


def check_scan(
    predictor: CasePredictor, case: CaseFiles, image: np.ndarray, geometry: Geometry, *, strict: bool = False
) -> None:
    """Warn where a scan does not look like the training cases; see :func:`medkd.preprocessing.ranges.compare_scan`.

    Args:
        predictor: gives the plan.
        case: the scan's id and files; of an array without files.
        image: ``(C, z, y, x)`` as read.
        geometry: its grid.
        strict: refuse the scan instead.

    Raises:
        DataError: it does not, and ``strict``.
    """
    findings = compare_scan(case, image, geometry, predictor.plan, predictor.configuration, predictor.channels)
    if findings and strict:
        raise DataError(f"{findings[0].text()[:-1]}, or leave out --strict.")
    for finding in findings:
        _log.warning("%s", finding.text())
