"""The formats in which a model leaves the house: how each is written, and how it is opened again to be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medkd.core.postprocessing import POSTPROCESSING_FILE, LargestComponent, Postprocessing
from medkd.core.protocol import InferenceRule
from medkd.core.serial import save
from medkd.exporting import bundle, triton
from medkd.exporting.nnunet import write_nnunet
from medkd.exporting.openvino import export_openvino
from medkd.inference.export import logits_to_labels
from medkd.inference.predictor import Predictor, Settings
from medkd.models.base import open_model
from medkd.models.onnx import export_onnx
from medkd.models.segmentation import TrainedModel
from medkd.preprocessing.pipeline import Preprocessed
from medkd.runtime.decoding import decode_labels
from medkd.runtime.engines import open_engine
from medkd.runtime.package import Exported, check_network, digest_of, read_exported, write_exported
from medkd.runtime.predictor import RuntimePredictor


@dataclass(frozen=True)
class Parcel:
    """A model that is exported.

    Attributes:
        trained: its networks and preprocessing.
        rule: how it predicts by default.
        origin: where it comes from, for the description.
        postprocessing: what its label maps go through at last; the comparison leaves it out.
    """

    trained: TrainedModel
    rule: InferenceRule
    origin: Mapping[str, Any]
    postprocessing: Postprocessing | None = None

    @property
    def steps(self) -> tuple[LargestComponent, ...]:
        """What is applied."""
        return () if self.postprocessing is None else self.postprocessing.steps


class Reopened(Protocol):
    """An exported model that was opened again."""

    def answer(self, prepared: Preprocessed) -> tuple[np.ndarray, np.ndarray]:
        """Label map ``(z, y, x)`` in the native grid, and the logits ``(K, z, y, x)`` that it was made from."""


@dataclass(frozen=True)
class ExportFormat:
    """One format.

    Attributes:
        write: fills a folder.
        reopen: opens that folder again, with the step size and mirroring of the parcel.
        tolerance: share of the foreground's voxels that may differ by rounding.
        spread: by how much the logits may differ, root mean square, as a share of their standard deviation.
    """

    write: Callable[[Parcel, Path], None]
    reopen: Callable[[Parcel, Path], Reopened]
    tolerance: float = 1e-4
    spread: float = 1e-3


class InRuntime:
    """Reopened with an engine, without torch."""

    def __init__(self, parcel: Parcel, folder: Path) -> None:
        self._predictor = RuntimePredictor.open(folder)

    def answer(self, prepared: Preprocessed) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Reopened`."""
        opened, logits = self._predictor, self._predictor.logits(prepared.image)
        return decode_labels(logits, prepared.properties, opened.plan, opened.configuration, opened.labels), logits


class InRepository(InRuntime):
    """Reopened as Triton's two models without a server: the chain's description, the network in its engine."""

    def __init__(self, parcel: Parcel, folder: Path) -> None:
        exported = read_exported(triton.version_folder(folder, triton.CHAIN))
        network = check_network(triton.version_folder(folder, triton.NETWORK), exported)
        self._predictor = RuntimePredictor(exported, open_engine(network))


class InTorch:
    """Reopened as whatever kind of model the folder is."""

    def __init__(self, parcel: Parcel, folder: Path) -> None:
        self._predictor = predictor_of(open_model(folder, "segmentation").load(), parcel.rule)

    def answer(self, prepared: Preprocessed) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Reopened`."""
        opened, logits = self._predictor, self._predictor.predict_preprocessed(prepared.image)
        labels = logits_to_labels(logits, prepared.properties, opened.plan, opened.configuration, opened.labels)
        return labels, logits.numpy()


def predictor_of(trained: TrainedModel, rule: InferenceRule) -> Predictor:
    """The torch predictor of a model, on the CPU and in float32."""
    settings = Settings(step_size=rule.step_size, mirror=rule.mirror, blending=rule.blending)
    return Predictor.of_loaded(trained, "cpu", settings)


def _write_onnx(parcel: Parcel, folder: Path) -> None:
    trained = parcel.trained
    export_onnx(trained.networks, len(trained.channels), trained.patch_size, folder / "model.onnx")
    _describe(parcel, folder, "model.onnx")


def _write_openvino(parcel: Parcel, folder: Path) -> None:
    trained = parcel.trained
    export_openvino(trained.networks, len(trained.channels), trained.patch_size, folder / "model.xml")
    _describe(parcel, folder, "model.xml")


def _write_bundle(parcel: Parcel, folder: Path) -> None:
    _write_onnx(parcel, folder)
    bundle.write_module(parcel.trained, folder)
    bundle.write_configurations(parcel.trained, str(parcel.origin["name"]), folder)


def _write_triton(parcel: Parcel, folder: Path) -> None:
    trained = parcel.trained
    network, chain = (triton.version_folder(folder, model) for model in (triton.NETWORK, triton.CHAIN))
    network.mkdir(parents=True)
    chain.mkdir(parents=True)
    export_onnx(trained.networks, len(trained.channels), trained.patch_size, network / "model.onnx")
    _describe(parcel, chain, "model.onnx", digest_of(network / "model.onnx"))
    triton.write_configurations(trained, folder)


def _write_nnunet(parcel: Parcel, folder: Path) -> None:
    write_nnunet(parcel.trained, folder)
    if parcel.postprocessing is not None:
        save(folder / POSTPROCESSING_FILE, parcel.postprocessing)


def _describe(parcel: Parcel, folder: Path, network: str, digest: str | None = None) -> None:
    trained, rule = parcel.trained, parcel.rule
    stated = trained.labels.to_json()
    described = Exported(
        network=network,
        digest=digest or digest_of(folder / network),
        channel_names=trained.channels,
        labels=stated["labels"],
        regions_class_order=tuple(stated.get("regions_class_order", ())),
        plan=replace(trained.plan, configurations={trained.configuration.name: trained.configuration}),
        configuration=trained.configuration.name,
        patch_size=tuple(trained.patch_size),
        mirror_axes=tuple(trained.mirror_axes),
        mirror=rule.mirror,
        step_size=rule.step_size,
        blending=rule.blending,
        postprocessing=parcel.steps,
        made_from=parcel.origin,
    )
    write_exported(folder, described)


FORMATS: dict[str, ExportFormat] = {
    "onnx": ExportFormat(_write_onnx, InRuntime),
    "openvino": ExportFormat(_write_openvino, InRuntime, tolerance=5e-3, spread=1e-2),
    "nnunet": ExportFormat(_write_nnunet, InTorch),
    "bundle": ExportFormat(_write_bundle, InRuntime),
    "triton": ExportFormat(_write_triton, InRepository),
}
"""Every format by its name on the command line; OpenVINO's weights are stored in half precision."""
