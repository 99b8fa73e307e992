"""A detector that is loaded once and used often."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medkd.core.device import pick_device
from medkd.core.errors import DataError
from medkd.detection.detecting import Limits, detect_pixels
from medkd.detection.models import TrainedDetector, place_of
from medkd.evaluation.detection.predictions import Boxes
from medkd.io.dicom_radiographs import read_eight_bit
from medkd.models.base import Checkpoint, ModelFolder, open_model


class LoadedDetector:
    """Detectors that wait for radiographs.

    Args:
        model: detectors and their classes, loaded.
        device: None picks CUDA where present, else the CPU.
        limits: lowest score, overlap and number of boxes that are kept.

    Attributes:
        categories: names of the classes, in the order of :attr:`~medkd.evaluation.detection.predictions.Boxes.classes`.
    """

    task = "detection"

    def __init__(
        self, model: TrainedDetector, device: torch.device | str | None = None, limits: Limits | None = None
    ) -> None:
        self.device = pick_device(device)
        self.detectors = [detector.to(self.device) for detector in model.networks]
        self.categories = model.categories
        self._scaling = model.scaling
        self.limits = limits or Limits()

    @classmethod
    def of(
        cls,
        model: ModelFolder[TrainedDetector],
        folds: Sequence[int | str] | None = None,
        *,
        checkpoint: Checkpoint = "final",
        device: torch.device | str | None = None,
        limits: Limits | None = None,
    ) -> LoadedDetector:
        """Load the detectors of a model; the boxes of several folds are fused."""
        return cls(model.load(folds, checkpoint=checkpoint), place_of(model, device), limits)

    def predict(self, image: np.ndarray | Path | str) -> Boxes:
        """Find boxes in one radiograph.

        Args:
            image: pixels ``(H, W)`` or ``(H, W, 3)`` uint8, upright; or a file: PNG, JPEG, … or DICOM.

        Returns:
            The boxes by falling score, in pixels of the upright image.

        Raises:
            DataError: these are no such pixels, or the file is missing, damaged or no radiograph.
        """
        if not isinstance(image, np.ndarray):
            image = read_eight_bit(Path(image), scaling=self._scaling)
        shape = image.shape[:2] if image.ndim == 3 and image.shape[2] == 3 else image.shape
        if len(shape) != 2 or 0 in shape or image.dtype != np.uint8:
            raise DataError(
                f"Expected pixels (H, W) or (H, W, 3) as uint8, found {image.dtype} of shape {image.shape}; scale "
                "them to 0..255 first, or give the file."
            )
        return detect_pixels(self.detectors, image, self.device, self.limits)


def load(path: Path | str, folds: Sequence[int | str] | None = None, **more: Any) -> LoadedDetector:
    """The detector in a folder, loaded once to be used often.

    Args:
        path: run folder, or weights with a ``teacher.json`` beside them.
        folds: folds whose boxes are fused; None takes every trained one.
        more: ``device``, ``checkpoint`` and ``limits``, as for :meth:`LoadedDetector.of`.

    Raises:
        RunError: there is no detector, or it is not trained.
    """
    return LoadedDetector.of(open_model(path, "detection"), folds, **more)
