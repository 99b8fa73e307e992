from medkd.detection.methods.registry import DETECTION_METHODS

__all__ = ["DETECTION_METHODS"]
