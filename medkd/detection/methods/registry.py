"""The table of methods whose formula for detectors differs from the one for segmentation."""

from __future__ import annotations

from medkd.core.errors import MethodError
from medkd.core.registry import Registry
from medkd.core.serial import nearest
from medkd.distillation import METHODS, Method

DETECTION_METHODS: Registry[type[Method]] = Registry("method", MethodError)


def check_known(name: str) -> None:
    """See that every method of a name (several are joined by ``+``) exists, for detectors or at all.

    Raises:
        MethodError: one does not; the nearest that detectors have is named, and all of them.
    """
    known = sorted({*DETECTION_METHODS, *(method for method in METHODS if METHODS[method].detection)})
    for part in (part.strip() for part in name.split("+")):
        if part not in known and part not in METHODS:
            raise MethodError(
                f"Unknown method '{part}'.{nearest(part, known)} Known for detectors: {', '.join(known)}."
            )
