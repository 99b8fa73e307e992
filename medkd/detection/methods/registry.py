"""The table of methods whose formula for detectors differs from the one for segmentation."""

from __future__ import annotations

from medkd.core.errors import MethodError
from medkd.core.registry import Registry
from medkd.distillation import Method

DETECTION_METHODS: Registry[type[Method]] = Registry("method", MethodError)
