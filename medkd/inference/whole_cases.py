"""A teacher's probabilities of raw scans, on the scans' own grid, as merged targets are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from medkd.core.geometry import Geometry
from medkd.core.plan import Plan
from medkd.core.precision import Precision
from medkd.inference.export import logits_to_probabilities
from medkd.inference.predictor import Predictor
from medkd.models.base import ModelFolder
from medkd.models.segmentation import TrainedModel
from medkd.preprocessing.pipeline import preprocess_case

SharedAxes = Callable[[Plan, int, Sequence[int]], tuple[int, ...]]
"""Plan, rank of the patch and mirrored axes of a model → those of the axes that are left."""


class WholeCases(Protocol):
    """What a kind of model gives in the place of its networks (``SegmentationFolder.whole_cases``)."""

    @classmethod
    def of(
        cls, model: ModelFolder[TrainedModel], folds: Sequence[str], device: torch.device, *, mirror: bool
    ) -> WholeCases:
        """Load the folds, which are averaged; ``mirror`` averages over the mirrorings of their training as well."""

    @property
    def used_axes(self) -> tuple[int, ...]:
        """Axes that are mirrored."""

    def keep_axes(self, shared: SharedAxes) -> None:
        """Mirror along those axes only that ``shared`` leaves of the mirrored ones."""

    @property
    def precision(self) -> Precision:
        """Arithmetic of the forwards."""

    def digests(self) -> tuple[str, ...]:
        """A hash of each network's weights."""

    def circumstances(self) -> tuple[dict[str, str], ...]:
        """All else that the probabilities of a scan depend on, by name, of each stage."""

    def probabilities(self, case: str, image: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Probabilities ``(K, z, y, x)`` of a raw scan ``(C, z, y, x)``, on its own grid."""


class PredictedCases:
    """Whole cases of networks that see the scan alone.

    Args:
        predictor: theirs.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @classmethod
    def of(
        cls, model: ModelFolder[TrainedModel], folds: Sequence[str], device: torch.device, *, mirror: bool
    ) -> PredictedCases:
        """See :class:`WholeCases`."""
        checkpoint = model.checkpoint_of(folds[0])
        return cls(Predictor.of(model, folds, device, mirror=mirror, checkpoint=checkpoint))

    @property
    def used_axes(self) -> tuple[int, ...]:
        """Axes that are mirrored."""
        return self.predictor.used_axes

    def keep_axes(self, shared: SharedAxes) -> None:
        """See :class:`WholeCases`."""
        keep_axes(self.predictor, shared)

    @property
    def precision(self) -> Precision:
        """Arithmetic of the forwards."""
        return self.predictor.precision

    def digests(self) -> tuple[str, ...]:
        """A hash of each network's weights."""
        return self.predictor.digests()

    def circumstances(self) -> tuple[dict[str, str], ...]:
        """All else that the probabilities of a scan depend on, by name."""
        return (self.predictor.circumstances(),)

    def probabilities(self, case: str, image: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Probabilities ``(K, z, y, x)`` on the scan's own grid."""
        predictor = self.predictor
        prepared = preprocess_case(case, image, geometry, predictor.plan, predictor.configuration)
        logits = predictor.predict_preprocessed(prepared.image)
        return logits_to_probabilities(
            logits, prepared.properties, predictor.plan, predictor.configuration, predictor.labels
        )


def keep_axes(predictor: Predictor, shared: SharedAxes) -> None:
    """Let a predictor mirror along those axes only that ``shared`` leaves of its own."""
    predictor.mirror_axes = shared(predictor.plan, len(predictor.patch_size), predictor.mirror_axes)
