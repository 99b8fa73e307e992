# Importing a module enters its method into DETECTION_METHODS.
from medkd.detection.methods import builtin, crosskd, cwd, dkd, iou_aware, rkd  # noqa: F401
from medkd.detection.methods.registry import DETECTION_METHODS, check_known

__all__ = ["DETECTION_METHODS", "check_known"]
