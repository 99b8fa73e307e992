"""Export of any trained model: a network for an engine, and everything from a scan to the network and back."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from torch import nn

from medkd.core.checkpoint import weights_digest
from medkd.core.errors import RunError
from medkd.core.files import write_text
from medkd.core.protocol import InferenceRule
from medkd.exporting.card import model_card
from medkd.exporting.onnx import export_onnx
from medkd.exporting.openvino import export_openvino
from medkd.exporting.parity import Parity, check_parity, scan_for
from medkd.inference.predictor import Predictor, Settings
from medkd.models.base import Checkpoint, open_model
from medkd.models.segmentation import TrainedModel
from medkd.runtime.package import Exported, digest_of, is_exported, write_exported
from medkd.runtime.predictor import RuntimePredictor

Format = Literal["onnx", "openvino"]
Writer = Callable[[Sequence[nn.Module], int, Sequence[int], Path], None]

WRITERS: dict[Format, tuple[str, Writer]] = {
    "onnx": ("model.onnx", export_onnx),
    "openvino": ("model.xml", export_openvino),
}
"""Format → name of the network's file, and what writes it."""

CARD = "README.md"


def export_model(
    model: Path | str,
    output: Path,
    *,
    format: Format = "onnx",
    folds: Sequence[int | str] | None = None,
    checkpoint: Checkpoint = "final",
    scan: Sequence[Path] | None = None,
    overwrite: bool = False,
) -> Parity:
    """Export a model for segmentation, and prove that it predicts the same before anything is left on the disk.

    Args:
        model: whatever :func:`~medkd.models.base.open_model` opens: a run, an nnU-Net v2 folder, a bundle, …
        output: folder to be made; with the network, ``preprocessing.json`` and a model card.
        format: ``onnx`` or ``openvino`` (weights in fp16).
        folds: 0-4 or ``"all"``; the network is the mean of theirs. None takes every fold that has the checkpoint.
        checkpoint: ``"final"`` or ``"best"``.
        scan: channel files of a scan on which both are compared; None compares on a synthetic one.
        overwrite: replace an exported model that is there.

    Returns:
        How the exported model compares with the original.

    Raises:
        RunError: the folder is no such model or cannot be expressed, the output is in use, or the exported network
            predicts otherwise.
    """
    output = Path(output)
    _check_output(output, overwrite)
    source = open_model(model, "segmentation")
    trained: TrainedModel = source.load(folds, checkpoint=checkpoint)
    rule = trained.plan.protocol.inference if trained.plan.protocol else InferenceRule()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-export-", dir=output.parent) as name:
        folder = Path(name) / "exported"
        folder.mkdir()
        file, write = WRITERS[format]
        write(trained.networks, len(trained.channels), trained.patch_size, folder / file)
        described = _description(trained, rule, file, digest_of(folder / file), _origin(source.name, trained))
        write_exported(folder, described)
        parity = _compare(trained, rule, folder, scan)
        said = (
            f"{parity.differing} of {parity.voxels} voxels of {parity.case} differ; logits differ by up to "
            f"{parity.logits:.2g}"
        )
        write_text(folder / CARD, model_card(described, said, {}))
        if output.exists():
            shutil.rmtree(output)
        folder.rename(output)
    return parity


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not is_exported(output):
        raise RunError(f"{output} is in use and holds no exported model; choose a new folder.")
    if not overwrite:
        raise RunError(f"{output} holds an exported model already; give --overwrite to replace it.")


def _origin(name: str, trained: TrainedModel) -> dict[str, Any]:
    try:
        medkd_version = version("medkd")
    except PackageNotFoundError:
        medkd_version = "unknown"
    parameters = sum(value.numel() for value in trained.networks[0].parameters())
    return {
        "name": name,
        "dataset": trained.plan.dataset,
        "folds": list(trained.folds),
        "weights": [weights_digest(network.state_dict()) for network in trained.networks],
        "parameters": parameters,
        "medkd": medkd_version,
    }


def _description(
    trained: TrainedModel, rule: InferenceRule, file: str, digest: str, origin: Mapping[str, Any]
) -> Exported:
    plan = replace(trained.plan, configurations={trained.configuration.name: trained.configuration})
    stated = trained.labels.to_json()
    return Exported(
        network=file,
        digest=digest,
        channel_names=trained.channels,
        labels=stated["labels"],
        regions_class_order=tuple(stated.get("regions_class_order", ())),
        plan=plan,
        configuration=trained.configuration.name,
        patch_size=tuple(trained.patch_size),
        mirror_axes=tuple(trained.mirror_axes),
        mirror=rule.mirror,
        step_size=rule.step_size,
        blending=rule.blending,
        made_from=origin,
    )


def _compare(trained: TrainedModel, rule: InferenceRule, folder: Path, scan: Sequence[Path] | None) -> Parity:
    predictor = Predictor(
        trained.networks,
        trained.plan,
        trained.configuration,
        trained.labels,
        trained.patch_size,
        mirror_axes=trained.mirror_axes,
        device="cpu",
        settings=Settings(step_size=rule.step_size, mirror=rule.mirror, blending=rule.blending),
        folds=trained.folds,
    )
    exported = RuntimePredictor.open(folder)
    image, geometry, case = scan_for(exported, scan)
    return check_parity(predictor, exported, image, geometry, case)
