"""Prediction with an exported model, without torch: preprocess, slide the window, decode on the native grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkd.core.errors import RunError
from medkd.core.geometry import Geometry
from medkd.preprocessing.pipeline import Preprocessed, preprocess_case
from medkd.runtime.decoding import decode_labels, decode_probabilities
from medkd.runtime.engines import Engine, EngineName, open_engine
from medkd.runtime.package import Exported, check_network, read_exported
from medkd.runtime.window import sliding_logits


@dataclass(frozen=True)
class RuntimePrediction:
    """Label map ``(z, y, x)`` and, where asked for, probabilities ``(K, z, y, x)`` float16, both in the native grid."""

    labels: np.ndarray
    probabilities: np.ndarray | None = None


class RuntimePredictor:
    """An exported model that is loaded once and used often.

    Args:
        exported: its description.
        engine: runs its network.
        step_size: distance of neighbouring tiles as a share of the patch; None is the description's.
        mirror: average over mirrored copies; None is the description's.
    """

    def __init__(
        self, exported: Exported, engine: Engine, *, step_size: float | None = None, mirror: bool | None = None
    ) -> None:
        self.exported, self.engine = exported, engine
        self.labels, self.plan, self.configuration = exported.label_spec, exported.plan, exported.planned
        self.step_size = exported.step_size if step_size is None else step_size
        self.mirror = exported.mirror if mirror is None else mirror
        if not 0 < self.step_size <= 1:
            raise RunError(f"--step-size expects a share of the patch above 0 and at most 1, found {self.step_size}.")

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        engine: EngineName | None = None,
        threads: int | None = None,
        step_size: float | None = None,
        mirror: bool | None = None,
    ) -> RuntimePredictor:
        """Load an exported folder.

        Raises:
            MedkdError: it is damaged, or its engine is not installed.
        """
        exported = read_exported(folder)
        network = open_engine(check_network(folder, exported), engine, threads)
        return cls(exported, network, step_size=step_size, mirror=mirror)

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Logits ``(K, z, y, x)`` float32 of a preprocessed image ``(C, z, y, x)``."""
        return sliding_logits(
            self.engine,
            image,
            self.exported.patch_size,
            self.labels.num_outputs,
            step_size=self.step_size,
            mirror_axes=self.exported.mirror_axes if self.mirror else (),
            blending=self.exported.blending,
        )

    def predict_case(self, image: np.ndarray, geometry: Geometry, case: str) -> np.ndarray:
        """Label map ``(z, y, x)`` of a raw image ``(C, z, y, x)`` in its own grid."""
        return self.predict(preprocess_case(case, image, geometry, self.plan, self.configuration)).labels

    def predict(self, prepared: Preprocessed, *, probabilities: bool = False) -> RuntimePrediction:
        """Label map and, where asked for, probabilities of a preprocessed case, in its native grid."""
        logits = self.logits(prepared.image)
        way_back = (prepared.properties, self.plan, self.configuration, self.labels)
        found = decode_probabilities(logits, *way_back) if probabilities else None
        return RuntimePrediction(decode_labels(logits, *way_back), found)
