"""Prediction with nnU-Net's cascade: the second stage sees the scan, and a map of each label that the first found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from medkd.core.device import pick_device
from medkd.core.geometry import Geometry
from medkd.core.precision import Precision
from medkd.inference.export import logits_to_probabilities
from medkd.inference.predictor import Predictor, Settings
from medkd.inference.tuning import tune
from medkd.inference.whole_cases import SharedAxes, keep_axes
from medkd.models.nnunet.cascade import NnunetCascade
from medkd.models.nnunet.checkpoint import foreground_values
from medkd.preprocessing.pipeline import preprocess_case


class CascadeCases:
    """Whole cases of both stages; a :class:`~medkd.inference.whole_cases.WholeCases`.

    The first stage's label map, on the scan's own grid, is preprocessed with the scan as a label map is.

    Args:
        first: predicts label maps.
        second: its networks take the channels of the scan, then one of zeros and ones per label.
    """

    def __init__(self, first: Predictor, second: Predictor) -> None:
        self.first = first
        self.second = second

    @classmethod
    def of(cls, model: NnunetCascade, folds: Sequence[str], device: torch.device, *, mirror: bool) -> CascadeCases:
        """Load the same folds of both stages."""
        stage, loaded = model.first_stage, model.second_stage(folds)
        first = Predictor.of(stage, folds, device, mirror=mirror, checkpoint=stage.checkpoint_of(folds[0]))
        chosen = pick_device(device)
        tuned = replace(loaded, networks=[tune(network, chosen) for network in loaded.networks])
        return cls(first, Predictor.of_loaded(tuned, chosen, Settings(mirror=mirror)))

    @property
    def used_axes(self) -> tuple[int, ...]:
        """Axes that the second stage mirrors."""
        return self.second.used_axes

    def keep_axes(self, shared: SharedAxes) -> None:
        """See :class:`~medkd.inference.whole_cases.WholeCases`; of both stages."""
        keep_axes(self.first, shared)
        keep_axes(self.second, shared)

    @property
    def precision(self) -> Precision:
        """Arithmetic of the forwards."""
        return self.second.precision

    def digests(self) -> tuple[str, ...]:
        """A hash of each network's weights, the first stage's first."""
        return (*self.first.digests(), *self.second.digests())

    def circumstances(self) -> tuple[dict[str, str], ...]:
        """All else that the probabilities of a scan depend on, by name, of each stage."""
        return self.first.circumstances(), self.second.circumstances()

    def probabilities(self, case: str, image: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Probabilities ``(K, z, y, x)`` on the scan's own grid."""
        seen, second = self.first.predict_case(image, geometry, case), self.second
        prepared = preprocess_case(case, image, geometry, second.plan, second.configuration, seen)
        maps = [prepared.label == value for value in foreground_values(second.labels)]
        logits = second.predict_preprocessed(np.concatenate([prepared.image, np.stack(maps).astype(np.float32)]))
        return logits_to_probabilities(logits, prepared.properties, second.plan, second.configuration, second.labels)
