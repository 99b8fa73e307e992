"""Export of any trained model, compared with the original before anything is left on the disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medkd import __version__
from medkd.core.checkpoint import weights_digest
from medkd.core.errors import RunError
from medkd.core.files import write_json, write_text
from medkd.core.protocol import InferenceRule
from medkd.core.serial import nearest
from medkd.exporting.card import model_card
from medkd.exporting.formats import FORMATS, ExportFormat, Parcel, predictor_of
from medkd.exporting.parity import Parity, compare, scan_for
from medkd.models.base import Checkpoint, open_model
from medkd.models.segmentation import TrainedModel

RECORD = "export.json"
"""In every exported folder: its format, what it was made from, and how it compared."""

CARD = "README.md"


def export_model(
    model: Path | str,
    output: Path,
    *,
    format: str = "onnx",
    folds: Sequence[int | str] | None = None,
    checkpoint: Checkpoint = "final",
    scan: Sequence[Path] | None = None,
    overwrite: bool = False,
) -> Parity:
    """Export a model for segmentation, and prove that it predicts the same.

    Args:
        model: whatever :func:`~medkd.models.base.open_model` opens: a run, an nnU-Net v2 folder, a bundle, …
        output: folder to be made, with a model card.
        format: ``onnx`` or ``openvino`` (weights in fp16): a network and ``preprocessing.json`` for
            :mod:`medkd.runtime`; ``nnunet``: a model folder for stock nnU-Net v2.
        folds: 0-4 or ``"all"``; of the first two formats the network is the mean of theirs. None takes every fold that
            has the checkpoint.
        checkpoint: ``"final"`` or ``"best"``.
        scan: channel files of a scan on which both are compared; None compares on a synthetic one.
        overwrite: replace an exported model that is there.

    Returns:
        How the exported model compares with the original.

    Raises:
        RunError: the folder is no such model or cannot be expressed, the output is in use, or the exported network
            predicts otherwise.
    """
    if format not in FORMATS:
        raise RunError(f"Unknown format '{format}'.{nearest(format, FORMATS)} Known: {', '.join(FORMATS)}.")
    output = Path(output)
    _check_output(output, overwrite)
    source = open_model(model, "segmentation")
    trained: TrainedModel = source.load(folds, checkpoint=checkpoint)
    rule = trained.plan.protocol.inference if trained.plan.protocol else InferenceRule()
    parcel = Parcel(trained, rule, _origin(source.name, trained))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-export-", dir=output.parent) as name:
        folder = Path(name) / "exported"
        folder.mkdir()
        parity = _fill(folder, parcel, FORMATS[format], scan)
        write_json(folder / RECORD, {"format": format, "made_from": parcel.origin, "parity": asdict(parity)})
        write_text(folder / CARD, model_card(parcel, format, parity))
        if output.exists():
            shutil.rmtree(output)
        folder.rename(output)
    return parity


def _fill(folder: Path, parcel: Parcel, format: ExportFormat, scan: Sequence[Path] | None) -> Parity:
    format.write(parcel, folder)
    image, geometry, case = scan_for(parcel.trained, scan)
    predictor = predictor_of(parcel.trained, parcel.rule)
    return compare(predictor, format.reopen(parcel, folder), image, geometry, case, tolerance=format.tolerance)


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / RECORD).is_file():
        raise RunError(f"{output} is in use and holds no exported model; choose a new folder.")
    if not overwrite:
        raise RunError(f"{output} holds an exported model already; give --overwrite to replace it.")


def _origin(name: str, trained: TrainedModel) -> dict[str, Any]:
    return {
        "name": name,
        "dataset": trained.plan.dataset,
        "folds": list(trained.folds),
        "weights": [weights_digest(network.state_dict()) for network in trained.networks],
        "parameters": sum(value.numel() for value in trained.networks[0].parameters()),
        "medkd": __version__,
    }
