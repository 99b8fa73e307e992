"""The families of detectors, which enter theirs into :data:`~medkd.detection.base.DETECTORS` when they are imported."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from medkd.core.errors import RunError
from medkd.detection.base import DETECTORS

_FAMILIES = {"medkd.detection.yolo": "ultralytics", "medkd.detection.tv": "torchvision"}


def register_detectors(name: str = "") -> None:
    """Import the families of detectors, which enter theirs into :data:`~medkd.detection.base.DETECTORS`.

    Args:
        name: nothing is imported where this detector is registered already.

    Raises:
        RunError: the named detector is unknown, and a family's library is not installed.
    """
    if name and name in DETECTORS:
        return
    absent = []
    for module, library in _FAMILIES.items():
        if find_spec(library) is None or find_spec("torchvision") is None:
            absent.append(library)
            continue
        import_module(module)
    if name and name not in DETECTORS and absent:
        raise RunError(
            f"The detector '{name}' is not known; {' and '.join(absent)} may be missing: pip install "
            "'medkd[detection]'."
        )
