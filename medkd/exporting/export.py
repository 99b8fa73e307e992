"""Export of any trained model, compared with the original before anything is left on the disk."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medkd import __version__
from medkd.core.checkpoint import weights_digest
from medkd.core.dataset import CaseFiles, DatasetDescription, every_case, labelled_cases
from medkd.core.errors import MedkdError, RunError
from medkd.core.files import scratch_folder, write_json, write_text
from medkd.core.paths import Root
from medkd.core.protocol import InferenceRule
from medkd.core.run import DATASET_FILE
from medkd.core.serial import nearest
from medkd.exporting.card import model_card
from medkd.exporting.formats import FORMATS, ExportFormat, Parcel, predictor_of
from medkd.exporting.output import check_output, made_of, make_room, put_in_place
from medkd.exporting.parity import Parity, compare, scan_for
from medkd.exporting.quantising import INT8_FORMATS, TOLERANCE, quantise
from medkd.inference.inputs import find_cases
from medkd.inference.postprocessing import Choice, choose_postprocessing
from medkd.models.base import Checkpoint, ModelFolder, open_model
from medkd.models.exported import ExportedFolder
from medkd.models.segmentation import TrainedModel
from medkd.runtime.package import RECORD

CARD = "README.md"
_log = logging.getLogger(__name__)


def export_model(
    model: Path | str,
    output: Path,
    *,
    format: str = "onnx",
    folds: Sequence[int | str] | None = None,
    checkpoint: Checkpoint = "final",
    scan: Sequence[Path] | None = None,
    root: Path | None = None,
    int8: bool = False,
    scans: Path | None = None,
    tolerance: float = TOLERANCE,
    postprocessing: Choice = None,
    overwrite: bool = False,
) -> Parity:
    """Export a model for segmentation, and prove that it predicts the same.

    Args:
        model: whatever :func:`~medkd.models.base.open_model` opens: a run, an nnU-Net v2 folder, a bundle, …
        output: folder to be made, with a model card.
        format: ``onnx`` or ``openvino`` (weights in fp16): a network and ``preprocessing.json`` for
            :mod:`medkd.runtime`; ``nnunet``: a model folder for stock nnU-Net v2; ``bundle``: a MONAI bundle;
            ``triton``: a model repository for Triton.
        folds: 0-4 or ``"all"``; of the first two formats the network is the mean of theirs. None takes every fold that
            has the checkpoint.
        checkpoint: ``"final"`` or ``"best"``.
        scan: channel files of a scan on which both are compared; None compares on a synthetic one.
        root: medkd's folder; where it holds the raw data set of a model from elsewhere, the record can say which cases
            the model has seen.
        int8: quantise the network of the formats ``onnx`` and ``openvino``, see
            :func:`~medkd.exporting.quantising.quantise`.
        scans: folder of scans, of which every second one calibrates the quantised network and the others compare it;
            None takes the training and the validation cases of the model's data set below ``root``.
        tolerance: largest loss of Dice that quantising may cost.
        postprocessing: what label maps go through at last: a ``postprocessing.json``, or False for nothing; None takes
            what was found on the validation cases of these folds.
        overwrite: replace an exported model that is there.

    Returns:
        How the exported model compares with the original.

    Raises:
        RunError: the folder is no such model or cannot be expressed, the output is in use, or the exported network
            predicts otherwise.
    """
    _check_options(format, int8, tolerance)
    output = Path(output)
    check_output(output, overwrite)
    source = open_model(model, "segmentation")
    if source.kind == ExportedFolder.kind:
        raise RunError(f"{model} is an exported model already; export the model that it was made from.")
    trained: TrainedModel = source.load(folds, checkpoint=checkpoint)
    rule = trained.plan.protocol.inference if trained.plan.protocol else InferenceRule()
    origin = {**made_of(source), **_origin(trained)}
    found = choose_postprocessing(source, trained.folds, lambda: origin["weights"], trained.labels, postprocessing)
    parcel = Parcel(trained, rule, origin, found)
    seen = seen_cases(source, trained, root)
    calibration, judged = _scans_for_int8(trained, seen, scans, root) if int8 else ([], [])
    make_room(output)
    with scratch_folder(output.parent) as scratch:
        folder = scratch / "exported"
        folder.mkdir()
        parity = _fill(folder, parcel, FORMATS[format], scan)
        record = {"format": format, "made_from": parcel.origin, "seen": seen, "parity": asdict(parity)}
        quantised = None
        if int8:
            quantised = quantise(folder, calibration, judged, tolerance=tolerance)
            _log.info("%s.", quantised.text())
            record["int8"] = asdict(quantised)
        write_json(folder / RECORD, record)
        write_text(folder / CARD, model_card(parcel, format, parity, quantised))
        put_in_place(folder, output)
    return parity


def _check_options(format: str, int8: bool, tolerance: float) -> None:
    """Refuse what no export can be asked for, before anything is loaded."""
    if format not in FORMATS:
        raise RunError(f"Unknown format '{format}'.{nearest(format, FORMATS)} Known: {', '.join(FORMATS)}.")
    if int8 and format not in INT8_FORMATS:
        raise RunError(
            f"--int8 quantises --format {' or '.join(INT8_FORMATS)}, not {format}; leave out one of the two."
        )
    if not 0 <= tolerance <= 1:
        raise RunError(f"--tolerance expects a loss of Dice from 0 to 1, found {tolerance:g}.")


def _scans_for_int8(
    trained: TrainedModel, seen: Sequence[str] | None, scans: Path | None, root: Path | None
) -> tuple[list[CaseFiles], list[CaseFiles]]:
    """Scans to calibrate on, and to compare on: of the data set those that training has and has not seen, in turns
    where that is not known, or where the folds together have seen all.
    """
    if scans is not None:
        return _in_turns(find_cases(scans, len(trained.channels)))
    raw = Root.resolve(root).raw / trained.plan.dataset
    if not (raw / DATASET_FILE).is_file():
        raise RunError(f"--int8 needs scans, but there is no data set {raw}; give a folder of scans with --scans.")
    description = DatasetDescription.load(raw / DATASET_FILE)
    trained_on, held_out = _apart(labelled_cases(raw, description), set(seen or ()))
    if trained_on and held_out:  # nothing is needed of imagesUn, whatever lies there
        return trained_on, held_out
    cases = every_case(raw, description)
    trained_on, held_out = _apart(cases, set(seen or ()))
    return (trained_on, held_out) if trained_on and held_out else _in_turns(cases)


def _in_turns(cases: Sequence[CaseFiles]) -> tuple[list[CaseFiles], list[CaseFiles]]:
    """Every second case, and the others; a single one has to do for both."""
    return list(cases[::2]), list(cases[1::2] or cases)


def _apart(cases: Sequence[CaseFiles], known: set[str]) -> tuple[list[CaseFiles], list[CaseFiles]]:
    """Cases that are known, and the others."""
    return [case for case in cases if case.case in known], [case for case in cases if case.case not in known]


def seen_cases(source: ModelFolder[TrainedModel], trained: TrainedModel, root: Path | None) -> list[str] | None:
    """Every case that the exported folds, or teachers of theirs, were trained on; None where nobody can say.

    A run says so itself; a model from elsewhere needs the raw data set of its plan.
    """
    raw = Root.resolve(root).raw / trained.plan.dataset
    described = raw / DATASET_FILE
    cases: list[str] = []
    seen: set[str] = set()
    try:
        if described.is_file():
            cases = [case.case for case in labelled_cases(raw, DatasetDescription.load(described))]
        elif source.kind != "run":
            return None
        for fold in trained.folds or source.folds():
            seen |= source.seen(fold, cases, raw)
    except MedkdError as error:
        _log.warning("The exported model cannot say which cases it has seen, so that it may not teach: %s", error)
        return None
    return sorted(seen)


def _fill(folder: Path, parcel: Parcel, format: ExportFormat, scan: Sequence[Path] | None) -> Parity:
    format.write(parcel, folder)
    image, geometry, case = scan_for(parcel.trained, scan)
    predictor = predictor_of(parcel.trained, parcel.rule)
    limits = {"tolerance": format.tolerance, "spread": format.spread}
    return compare(predictor, format.reopen(parcel, folder), image, geometry, case, **limits)


def _origin(trained: TrainedModel) -> dict[str, Any]:
    return {
        "dataset": trained.plan.dataset,
        "folds": list(trained.folds),
        "weights": [weights_digest(network.state_dict()) for network in trained.networks],
        "parameters": sum(value.numel() for value in trained.networks[0].parameters()),
        "medkd": __version__,
    }
