"""Prediction with an exported model, without torch: preprocess, slide the window, decode on the native grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from medkd.core.errors import MedkdError, RunError
from medkd.core.geometry import Geometry
from medkd.core.limits import option_name
from medkd.core.postprocessing import LargestComponent, keep_largest
from medkd.preprocessing.pipeline import Preprocessed, preprocess_case
from medkd.runtime.decoding import decode_labels, decode_probabilities
from medkd.runtime.engines import ENGINES, Engine, EngineName, choose_engine, open_engine
from medkd.runtime.package import FILE, Exported, check_network, read_exported
from medkd.runtime.prediction import Prediction, circumstances_of
from medkd.runtime.window import sliding_logits


class HasPath(Protocol):
    """A model in a folder."""

    path: Path


class RuntimePredictor:
    """An exported model that is loaded once and used often; a :class:`~medkd.runtime.prediction.CasePredictor`.

    Args:
        exported: its description.
        engine: runs its network.
        engine_name: which engine that is.
        step_size: distance of neighbouring tiles as a share of the patch; None is the description's.
        mirror: average over mirrored copies; None is the description's.

    Attributes:
        postprocessing: what every label map goes through at last; at first the description's.

    Raises:
        RunError: the step size is not above 0 and at most 1.
    """

    arithmetic = "fp32"

    def __init__(
        self,
        exported: Exported,
        engine: Engine,
        engine_name: EngineName = "onnxruntime",
        *,
        step_size: float | None = None,
        mirror: bool | None = None,
    ) -> None:
        self.exported, self.engine, self.engine_name = exported, engine, engine_name
        self.labels, self.plan, self.configuration = exported.label_spec, exported.plan, exported.planned
        self.step_size = exported.step_size if step_size is None else step_size
        self.mirror = exported.mirror if mirror is None else mirror
        self.blending = exported.blending
        self.folds, self.channels = exported.folds, exported.channel_names
        self.postprocessing: tuple[LargestComponent, ...] = exported.postprocessing
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
        network = check_network(folder, exported)
        chosen = choose_engine(network, engine)
        return cls(exported, open_engine(network, chosen, threads), chosen, step_size=step_size, mirror=mirror)

    @classmethod
    def of(
        cls,
        model: HasPath,
        folds: Sequence[int | str] | None = None,
        device: object = None,
        *,
        step_size: float | None = None,
        mirror: bool | None = None,
        precision: str | None = None,
        checkpoint: str = "final",
        engine: EngineName | Literal["torch", "auto"] | None = None,
        threads: int | None = None,
    ) -> RuntimePredictor:
        """The predictor of an exported model, asked for as every model's.

        Raises:
            RunError: ``folds``, ``checkpoint``, ``precision``, another ``device`` than the CPU or torch as the engine
                was chosen, which was settled when the model was exported.
            MedkdError: see :meth:`open`.
        """
        chosen = {
            "folds": folds,
            "checkpoint": None if checkpoint == "final" else checkpoint,
            "precision": precision,
            "device": None if device is None or str(device) == "cpu" else device,
        }
        refuse_settled(model.path, chosen)
        if engine == "torch":
            raise RunError(
                f"--engine torch does not apply to {model.path}, since an exported model holds no network of torch; "
                f"give --engine {' or '.join(ENGINES)}, or predict with the model that it was made from."
            )
        named = None if engine == "auto" else engine
        return cls.open(model.path, engine=named, threads=threads, step_size=step_size, mirror=mirror)

    @property
    def used_axes(self) -> tuple[int, ...]:
        """Axes of the patch that are mirrored; empty without test-time augmentation."""
        return tuple(self.exported.mirror_axes) if self.mirror else ()

    def digests(self) -> tuple[str, ...]:
        """The hash of the network's file."""
        return (self.exported.digest,)

    def circumstances(self) -> dict[str, str]:
        """All that a label map depends on besides weights and scan, by name."""
        return circumstances_of(self, self.exported.patch_size)

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Logits ``(K, z, y, x)`` float32 of a preprocessed image ``(C, z, y, x)``."""
        return sliding_logits(
            self._forward,
            image,
            self.exported.patch_size,
            self.labels.num_outputs,
            step_size=self.step_size,
            mirror_axes=self.used_axes,
            blending=self.blending,
        )

    def _forward(self, batch: np.ndarray) -> np.ndarray:
        """The engine's logits of patches, if they are what the description promises.

        Raises:
            RunError: the network takes or gives other arrays, or values that are not finite.
        """
        wanted = (len(batch), self.labels.num_outputs, *batch.shape[2:])
        try:
            logits = self.engine(batch)
        except (MedkdError, MemoryError):
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"The exported network cannot compute patches {batch.shape[1:]} ({reason:.200}), so it is not the one "
                f"that {FILE} describes; export the model again."
            ) from error
        if logits.shape != wanted or logits.dtype.kind != "f":
            raise RunError(
                f"The exported network gives logits {logits.shape} of the type {logits.dtype} where {FILE} promises "
                f"{wanted} as floats; export the model again."
            )
        if not np.isfinite(logits).all():
            raise RunError("The exported network gives values that are not finite; export the model again.")
        return logits

    def prepare(self, case: str, image: np.ndarray, geometry: Geometry, *, overwrite: bool = False) -> Preprocessed:
        """A raw image ``(C, z, y, x)`` as the network wants it; ``overwrite`` allows to use it as scratch space."""
        return preprocess_case(case, image, geometry, self.plan, self.configuration, overwrite=overwrite)

    def predict_case(self, image: np.ndarray, geometry: Geometry, case: str) -> np.ndarray:
        """Label map ``(z, y, x)`` of a raw image ``(C, z, y, x)`` in its own grid."""
        return self.predict(self.prepare(case, image, geometry)).labels

    def predict(self, prepared: Preprocessed, *, probabilities: bool = False) -> Prediction:
        """Label map and, where asked for, probabilities of a preprocessed case, in its native grid."""
        logits = self.logits(prepared.image)
        way_back = (prepared.properties, self.plan, self.configuration, self.labels)
        found = decode_probabilities(logits, *way_back) if probabilities else None
        label_map = keep_largest(decode_labels(logits, *way_back), self.postprocessing, self.labels)
        return Prediction(label_map, found)


def refuse_settled(model: Path, chosen: Mapping[str, object]) -> None:
    """Refuse options that were settled when a model was exported.

    Args:
        model: its folder.
        chosen: option → what was asked for; None where nothing was.

    Raises:
        RunError: one was given.
    """
    for name, value in chosen.items():
        if value is not None:
            raise RunError(
                f"{option_name(name)} does not apply to {model}, since an exported model is one network in float32 for "
                "the CPU; leave it out, or predict with the model that it was made from."
            )
