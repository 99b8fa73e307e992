"""``medkd_export``: a trained model as a folder that runs without torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from medkd import api
from medkd.cli import common
from medkd.core.errors import RunError

FORMATS = ("onnx", "openvino", "nnunet", "bundle", "triton", "folder")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_export``."""
    arguments = common.parser(
        "Export a trained model (a run, an nnU-Net v2 folder, a MONAI bundle, …) as a network for ONNX Runtime or "
        "OpenVINO with everything from a scan to the network and back, as a model folder for stock nnU-Net v2, a MONAI "
        "bundle, a repository for Triton, or (folder) a run as one .zip, of a distilled one the student alone. The "
        "exported network is compared with the model first; nothing is left where they differ.",
        "medkd_export 4/unet_tiny__3d_fullres -o exported --format onnx",
    )
    arguments.add_argument("model", metavar="MODEL", help="model folder, or DATASET/RUN below the results folder")
    arguments.add_argument(
        "-o", dest="output", type=Path, required=True, help="folder to be made; of --format folder the file, run.zip"
    )
    arguments.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    arguments.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="folds to average (default: all)")
    arguments.add_argument(
        "--checkpoint", choices=("final", "best"), default="final", help="which weights (default: final)"
    )
    arguments.add_argument(
        "--scan",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="compare on this scan, a file per channel (default: a synthetic one)",
    )
    arguments.add_argument(
        "--int8", action="store_true", help="quantise the network (onnx, openvino) and compare it with itself"
    )
    arguments.add_argument(
        "--scans",
        type=Path,
        metavar="FOLDER",
        help="for --int8: scans to calibrate and compare on (default: the data set's)",
    )
    arguments.add_argument("--tolerance", type=float, help="for --int8: largest loss of Dice (default: 0.005)")
    common.add_postprocessing(arguments)
    arguments.add_argument("--overwrite", action="store_true", help="replace an exported model that is there")
    return common.run(_export, arguments, argv)


def _export(options: argparse.Namespace) -> None:
    if not options.int8:
        _refuse(options, ("scans", "tolerance"), "quantising; give it with --int8, or leave it out")
    if options.format == "folder":
        _refuse(options, ("int8", "scan"), "exported networks, and --format folder packs a run as it is; leave it out")
        _pack(options)
        return
    model = api.find_model(options.model, options.root)
    if api.task_of_model(model).name == "detection":
        _detector(model, options)
        return
    from medkd.exporting.export import export_model
    from medkd.exporting.quantising import TOLERANCE

    parity = export_model(
        model,
        options.output,
        format=options.format,
        folds=options.folds,
        checkpoint=options.checkpoint,
        scan=options.scan,
        root=options.root,
        int8=options.int8,
        scans=options.scans,
        tolerance=TOLERANCE if options.tolerance is None else options.tolerance,
        postprocessing=options.postprocessing,
        overwrite=options.overwrite,
    )
    differing = f"{parity.differing} of {parity.voxels} voxels of {parity.case} differ from the model"
    print(f"{options.output}: {differing}, logits by up to {parity.logits:.2g}")


def _refuse(options: argparse.Namespace, names: Sequence[str], what: str) -> None:
    """Refuse options that would change nothing."""
    for name in names:
        value = getattr(options, name)
        if value or (name == "postprocessing" and value is False):
            raise RunError(f"--{'no-' if value is False else ''}{name} is for {what}.")


def _pack(options: argparse.Namespace) -> None:
    from medkd.exporting.packing import pack_run

    packed = pack_run(
        api.find_model(options.model, options.root),
        options.output,
        folds=options.folds,
        checkpoint=options.checkpoint,
        postprocessing=options.postprocessing,
        overwrite=options.overwrite,
    )
    folds = ", ".join(packed.folds)
    print(f"{options.output}: folds {folds}, {packed.parameters:,} parameters each, {packed.size / 1e6:.1f} MB")


def _detector(model: Path, options: argparse.Namespace) -> None:
    from medkd.exporting.detectors import export_detector

    if options.format != "onnx":
        raise RunError(
            f"--format {options.format} is for segmentation, and {model} is a detector; give --format onnx (boxes come "
            "out) or folder."
        )
    _refuse(options, ("int8", "scan", "postprocessing"), "segmentation; leave it out for a detector")
    parity = export_detector(
        model, options.output, folds=options.folds, checkpoint=options.checkpoint, overwrite=options.overwrite
    )
    same = f"{parity.boxes - parity.alone} of {parity.boxes} boxes are the model's"
    print(f"{options.output}: {same}, up to {parity.pixels:.2g} pixels and {parity.score:.2g} of the score")
