"""Packages that tests can do without."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def needs_ultralytics() -> None:
    """Skip a test where ultralytics is not installed.

    ``pytest.importorskip`` would import it past :mod:`medkd.detection.yolo.offline`: it then stays in front of Pillow's
    reader for all tests that follow in this process.
    """
    if find_spec("ultralytics") is None:
        pytest.skip("detectors of ultralytics need the extra detection")
