"""Prediction of one case: preprocess, slide the window, bring the logits back to the native grid."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medkd.core.arithmetic import chosen_precision, slow_arithmetic, wrong_arithmetic
from medkd.core.checkpoint import weights_digest
from medkd.core.device import pick_device
from medkd.core.errors import RunError
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.plan import Configuration, Plan
from medkd.core.postprocessing import LargestComponent, keep_largest
from medkd.core.precision import PrecisionChoice
from medkd.core.protocol import InferenceRule
from medkd.inference.converted import ConvertedNetworks, EngineChoice, EnginePlace, in_engine
from medkd.inference.export import GrowingLogits, logits_to_labels, logits_to_probabilities
from medkd.inference.late_head import LateHead
from medkd.inference.sliding_window import predict_logits, predict_rows
from medkd.inference.tuning import tune
from medkd.models.base import Checkpoint, ModelFolder, open_model
from medkd.models.segmentation import TrainedModel
from medkd.models.weights import mean_logits
from medkd.preprocessing.pipeline import Preprocessed, preprocess_case
from medkd.preprocessing.properties import CaseProperties
from medkd.runtime.decoding import logits_orders
from medkd.runtime.prediction import Prediction, circumstances_of

_log = logging.getLogger(__name__)
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
WHOLE_BYTES = 2**28
"""Of logits or features; of more, label maps are made while the window slides."""

_GPU_SHARE = 0.5  # of the free GPU memory may hold image and accumulator, the rest belongs to the forwards


@dataclass(frozen=True)
class Settings:
    """How to predict.

    Attributes:
        step_size: distance of neighbouring tiles as a share of the patch.
        mirror: average over the mirrored copies along the axes that training mirrored.
        precision: arithmetic of the forwards, see :func:`medkd.core.arithmetic.chosen_precision`.
        tile_batch: tiles per forward; None chooses by patch and device.
        blending: ``gaussian`` or ``constant`` weights of a tile's voxels.

    Raises:
        RunError: the step size is not above 0 and at most 1.
    """

    step_size: float = 0.5
    mirror: bool = True
    precision: PrecisionChoice | None = None
    tile_batch: int | None = None
    blending: str = "gaussian"

    def __post_init__(self) -> None:
        if not 0 < self.step_size <= 1:
            raise RunError(f"--step-size expects a share of the patch above 0 and at most 1, found {self.step_size}.")


class Predictor:
    """Networks (one per fold) with all that is needed to predict raw cases; a
    :class:`~medkd.runtime.prediction.CasePredictor`.

    Args:
        networks: networks in evaluation mode; their logits are averaged.
        plan: preprocessing and axis order.
        configuration: the configuration of the plan that the networks were trained on.
        labels: what the networks' outputs mean.
        patch_size: voxels per axis, two values for a 2D network.
        mirror_axes: axes of the patch that may be mirrored.
        device: where the networks run; None picks CUDA where present, else the CPU.
        settings: step size, mirroring, precision.
        folds: names of the folds that the networks belong to.
        channels: names of the input channels, as far as they are known.
        converted: the networks in another engine, which then computes them; None is torch.

    Attributes:
        postprocessing: what every label map goes through at last; at first nothing.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        plan: Plan,
        configuration: Configuration,
        labels: LabelSpec,
        patch_size: Sequence[int],
        *,
        mirror_axes: Sequence[int] = (),
        device: torch.device | str | None = None,
        settings: Settings | None = None,
        folds: Sequence[int | str] = (),
        channels: Sequence[str] = (),
        converted: ConvertedNetworks | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.device = pick_device(device)
        self.networks = [network.to(self.device) for network in networks]
        self.plan = plan
        self.configuration = configuration
        self.labels = labels
        self.patch_size = tuple(patch_size)
        self.mirror_axes = tuple(mirror_axes)
        self.folds = tuple(str(fold) for fold in folds)
        self.channels = tuple(channels)
        self.converted = converted
        self.postprocessing: tuple[LargestComponent, ...] = ()
        self.precision = chosen_precision(self.settings.precision, self.device)

    @classmethod
    def from_run(
        cls,
        path: Path,
        folds: Sequence[int | str] | None = None,
        device: torch.device | str | None = None,
        **more: Any,
    ) -> Predictor:
        """The predictor of the model in a folder; ``more`` as for :meth:`of`.

        Raises:
            RunError: there is no model for segmentation.
            MedkdError: see :meth:`of`.
        """
        return cls.of(open_model(path, "segmentation"), folds, device, **more)

    @classmethod
    def of(
        cls,
        model: ModelFolder[TrainedModel],
        folds: Sequence[int | str] | None = None,
        device: torch.device | str | None = None,
        *,
        step_size: float | None = None,
        mirror: bool | None = None,
        precision: PrecisionChoice | None = None,
        checkpoint: Checkpoint = "final",
        engine: EngineChoice | None = None,
        threads: int | None = None,
    ) -> Predictor:
        """The predictor of a model.

        Args:
            model: for segmentation.
            folds: 0-4 or ``"all"``; None takes every trained fold, of nnU-Net models every numbered one.
            device: see the class.
            step_size: see :class:`Settings`; None is what the plan's protocol says, else 0.5.
            mirror: see :class:`Settings`; None is what the plan's protocol says, else True.
            precision: see :class:`Settings`.
            checkpoint: ``"final"`` or ``"best"``.
            engine: what computes the networks on a CPU, see
                :func:`~medkd.inference.converted.in_engine`; None is torch.
            threads: of another engine than torch; None leaves them to it.

        Raises:
            RunError: a fold is not trained, the step size is not a share of the patch, or the engine cannot compute
                this model here.
        """
        device = pick_device(device)
        place = EnginePlace(device, chosen_precision(precision, device), threads)
        place.check(engine)
        loaded = model.load(folds, checkpoint=checkpoint)
        rule = loaded.plan.protocol.inference if loaded.plan.protocol else InferenceRule()
        step_size = rule.step_size if step_size is None else step_size
        mirror = rule.mirror if mirror is None else mirror
        settings = Settings(step_size, mirror, precision, blending=rule.blending)
        for doubt in (
            wrong_arithmetic(place.precision, device, training=False),
            slow_arithmetic(place.precision, device),
        ):
            if doubt:
                _log.warning("%s.", doubt)
        converted = in_engine(
            loaded.networks, len(loaded.configuration.normalization), loaded.patch_size, engine, place
        )
        tuned = replace(loaded, networks=[tune(network, device) for network in loaded.networks])
        return cls.of_loaded(tuned, device, settings, converted)

    @classmethod
    def of_loaded(
        cls,
        loaded: TrainedModel,
        device: torch.device | str,
        settings: Settings,
        converted: ConvertedNetworks | None = None,
    ) -> Predictor:
        """The predictor of networks that are loaded, as they are.

        Args:
            loaded: the networks and what is needed to predict with them.
            device: see the class.
            settings: see :class:`Settings`.
            converted: see the class.
        """
        return cls(
            loaded.networks,
            loaded.plan,
            loaded.configuration,
            loaded.labels,
            loaded.patch_size,
            mirror_axes=loaded.mirror_axes,
            device=device,
            settings=settings,
            folds=loaded.folds,
            channels=loaded.channels,
            converted=converted,
        )

    @property
    def engine_name(self) -> str:
        """What computes the networks: ``torch``, ``openvino`` or ``onnxruntime``."""
        return "torch" if self.converted is None else self.converted.engine

    @property
    def step_size(self) -> float:
        """Distance of neighbouring tiles as a share of the patch."""
        return self.settings.step_size

    @property
    def used_axes(self) -> tuple[int, ...]:
        """Axes of the patch that are mirrored; empty without test-time augmentation."""
        return self.mirror_axes if self.settings.mirror else ()

    @property
    def blending(self) -> str:
        """``gaussian`` or ``constant`` weights of a tile's voxels."""
        return self.settings.blending

    @property
    def arithmetic(self) -> str:
        """Arithmetic of the forwards."""
        return self.precision

    def digests(self) -> tuple[str, ...]:
        """A hash of each network's weights."""
        return self._digests

    def circumstances(self) -> dict[str, str]:
        """All that a label map depends on besides weights and scan, by name."""
        return circumstances_of(self, self.patch_size)

    @cached_property
    def _digests(self) -> tuple[str, ...]:
        return tuple(weights_digest(network.state_dict()) for network in self.networks)

    def predict_preprocessed(self, image: np.ndarray | Tensor) -> Tensor:
        """Logits ``(K, z, y, x)`` float32 of a preprocessed image ``(C, z, y, x)``.

        Raises:
            RunError: they are not finite.
        """
        tensor = _tensor(image)
        if self._fits_on_device(tensor):
            tensor = tensor.to(self.device)
        return self._finite(
            predict_logits(self._forward, tensor, self.patch_size, self.labels.num_outputs, **self._window)
        )

    def _finite(self, logits: Tensor) -> Tensor:
        """The logits, of which label maps can be made."""
        if bool(torch.isfinite(logits.sum())) or bool(torch.isfinite(logits).all()):  # one pass over them is enough
            return logits
        remedy = "use weights that were trained to an end"
        if self.precision != "fp32":
            remedy = f"predict with --precision fp32 instead of {self.precision}, or {remedy}"
        raise RunError(f"The model gives values that are not finite, of which no label map can be made; {remedy}.")

    @property
    def _window(self) -> dict[str, Any]:
        """The settings of the sliding window."""
        return {
            "step_size": self.settings.step_size,
            "tile_batch": self.settings.tile_batch,
            "mirror_axes": self.used_axes,
            "device": self.device,
            "blending": self.settings.blending,
        }

    def prepare(self, case: str, image: np.ndarray, geometry: Geometry, *, overwrite: bool = False) -> Preprocessed:
        """A raw image ``(C, z, y, x)`` as the network wants it; ``overwrite`` allows to use it as scratch space."""
        return preprocess_case(case, image, geometry, self.plan, self.configuration, overwrite=overwrite)

    def predict_case(self, image: np.ndarray, geometry: Geometry, case: str) -> np.ndarray:
        """Label map ``(z, y, x)`` of a raw image ``(C, z, y, x)`` in its own grid."""
        return self.predict(self.prepare(case, image, geometry)).labels

    def predict(self, prepared: Preprocessed, *, probabilities: bool = False) -> Prediction:
        """Label map and, where asked for, probabilities of a preprocessed case, in its native grid."""
        if not probabilities:
            label_map = self.label_map(prepared.image, prepared.properties)
            return Prediction(keep_largest(label_map, self.postprocessing, self.labels))
        arguments = (prepared.properties, self.plan, self.configuration, self.labels)
        logits = self.predict_preprocessed(prepared.image)
        label_map = keep_largest(logits_to_labels(logits, *arguments), self.postprocessing, self.labels)
        return Prediction(label_map, logits_to_probabilities(logits, *arguments))

    def label_map(self, image: np.ndarray, properties: CaseProperties) -> np.ndarray:
        """Label map of a preprocessed image ``(C, z, y, x)`` in its scan's grid, without postprocessing; made while the
        window slides where the networks' outputs are large.

        Raises:
            RunError: the outputs are not finite.
        """
        tensor = _tensor(image)
        on_device = self._fits_on_device(tensor)
        head = None if on_device else self._late_head(image, properties)
        forward, channels = self._forward, self.labels.num_outputs
        if head is not None:
            self._finite(head.weight.sum() + head.bias.sum())
            forward, channels = partial(self._features, head), head.channels
        window = (forward, tensor.to(self.device) if on_device else tensor, self.patch_size, channels)
        arguments = (properties, self.plan, self.configuration, self.labels, head)
        if on_device or not self._is_large(image, channels, properties):
            return logits_to_labels(self._finite(predict_logits(*window, **self._window)), *arguments)
        rows = map(self._finite, predict_rows(*window, **self._window))
        return logits_to_labels(GrowingLogits(rows, (channels, *image.shape[1:])), *arguments)

    def _late_head(self, image: np.ndarray, properties: CaseProperties) -> LateHead | None:
        """The networks' last layers, where leaving them for later spares time, or memory of a large case; looked at for
        each case, since networks may become others.
        """
        head = None if self.converted is not None else LateHead.of(self.networks)
        if head is None or head.is_faster or self._is_large(image, self.labels.num_outputs, properties):
            return head
        return None

    def _is_large(self, image: np.ndarray, channels: int, properties: CaseProperties) -> bool:
        """Whether so many maps of a whole case would take too much memory, and can be had piece by piece: of an
        interpolation that is not linear every slice needs all others.
        """
        if 4 * channels * prod(image.shape[1:]) <= WHOLE_BYTES:
            return False
        return logits_orders(properties, self.plan, self.configuration)[0] <= 1

    def _forward(self, x: Tensor) -> Tensor:
        with self._autocast():
            return mean_logits(self.networks, x) if self.converted is None else self.converted(x)

    def _features(self, head: LateHead, x: Tensor) -> Tensor:
        with self._autocast():
            return head.features(x)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_TYPES[self.precision])

    def _fits_on_device(self, image: Tensor | np.ndarray) -> bool:
        if self.device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self.device)
        return 4 * (image.shape[0] + self.labels.num_outputs) * prod(image.shape[1:]) < _GPU_SHARE * free


def _tensor(image: np.ndarray | Tensor) -> Tensor:
    """A preprocessed image that torch may write to; it is not copied where that can be spared."""
    return image if isinstance(image, Tensor) else torch.from_numpy(np.require(image, np.float32, ["C", "W"]))
