"""What every predictor of scans offers, whatever computes the network: the contract between commands and engines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.made_with import label_map_settings
from medkd.core.plan import Configuration, Plan
from medkd.core.postprocessing import LargestComponent
from medkd.core.serial import to_data
from medkd.preprocessing.pipeline import Preprocessed


@dataclass(frozen=True)
class Prediction:
    """Label map ``(z, y, x)`` and, where asked for, probabilities ``(K, z, y, x)`` float16, both in the native grid."""

    labels: np.ndarray
    probabilities: np.ndarray | None = None


class CasePredictor(Protocol):
    """A model that is loaded once and predicts one case after the other.

    Attributes:
        plan: gives orientation, axis order and intensities.
        configuration: the plan's configuration that the model was trained on.
        labels: what its outputs mean.
        folds: names of the folds that are averaged.
        channels: names of the input channels, as far as they are known.
        postprocessing: what every label map goes through at last; may be set.
    """

    plan: Plan
    configuration: Configuration
    labels: LabelSpec
    folds: tuple[str, ...]
    channels: tuple[str, ...]
    postprocessing: tuple[LargestComponent, ...]

    @property
    def step_size(self) -> float:
        """Distance of neighbouring tiles as a share of the patch."""

    @property
    def used_axes(self) -> tuple[int, ...]:
        """Axes of the patch that are mirrored; empty without test-time augmentation."""

    @property
    def blending(self) -> str:
        """``gaussian`` or ``constant`` weights of a tile's voxels."""

    @property
    def arithmetic(self) -> str:
        """Arithmetic of the network: ``fp32``, ``bf16`` or ``fp16``."""

    @property
    def engine_name(self) -> str:
        """What computes the network: ``torch``, ``onnxruntime`` or ``openvino``."""

    def digests(self) -> tuple[str, ...]:
        """A hash of each network's weights."""

    def circumstances(self) -> dict[str, str]:
        """All that a label map depends on besides weights and scan, by name."""

    def prepare(self, case: str, image: np.ndarray, geometry: Geometry, *, overwrite: bool = False) -> Preprocessed:
        """A raw image ``(C, z, y, x)`` as the network wants it; ``overwrite`` allows to use it as scratch space."""

    def predict(self, prepared: Preprocessed, *, probabilities: bool = False) -> Prediction:
        """Label map and, where asked for, probabilities (as they are, not post-processed) of a preprocessed case, in
        its native grid.
        """

    def predict_case(self, image: np.ndarray, geometry: Geometry, case: str) -> np.ndarray:
        """Label map ``(z, y, x)`` of a raw image ``(C, z, y, x)`` in its own grid."""


def circumstances_of(predictor: CasePredictor, patch_size: Sequence[int]) -> dict[str, str]:
    """:meth:`CasePredictor.circumstances` of networks that see scans through one window of ``patch_size``."""
    found = label_map_settings(
        predictor.plan,
        predictor.configuration,
        predictor.labels,
        patch_size=patch_size,
        mirror_axes=predictor.used_axes,
        step_size=predictor.step_size,
        blending=predictor.blending,
    )
    steps = json.dumps(to_data(predictor.postprocessing))
    return {**found, "arithmetic": predictor.arithmetic, "engine": predictor.engine_name, "postprocessing": steps}
