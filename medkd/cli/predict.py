"""``medkd_predict``: label maps for raw scans, boxes for radiographs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medkd import api
from medkd.cli import common
from medkd.core.allocator import reuse_freed_memory
from medkd.core.numbers import whole_number
from medkd.core.precision import PRECISION_CHOICES
from medkd.io.writing.dicom_seg import SEGMENTATION_KINDS
from medkd.io.writing.formats import FORMATS, name_of_format
from medkd.tasks import every_task


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_predict``; status 1 where a case failed."""
    return common.run(_predict, _arguments, argv)


def _arguments() -> argparse.ArgumentParser:
    arguments = common.parser(
        "Predict raw scans with a trained run; the label maps have the scans' own size, spacing, origin and "
        "direction. A run of a detector takes radiographs (PNG, JPEG, DICOM) and writes predictions.json with boxes in "
        "their own pixels.",
        "medkd_predict -i scans -o predictions -m 4/unet_tiny__3d_fullres -f 0",
    )
    _add_inputs(arguments)
    arguments.add_argument(
        "--step-size",
        type=float,
        help="distance of neighbouring tiles as a share of the patch (default: 0.5, or the plan's protocol's)",
    )
    arguments.add_argument(
        "--tta",
        dest="mirror",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="average over mirrored copies: 8 times the work in 3D (default: on, or as the plan's protocol says)",
    )
    arguments.add_argument(
        "--save-probabilities", action="store_true", help="write CASE.npz with the class probabilities too"
    )
    arguments.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cuda where present)")
    arguments.add_argument(
        "--precision",
        choices=PRECISION_CHOICES,
        help="arithmetic (default: fp16 on CUDA, else fp32; auto: bf16 on CPUs that compute in it)",
    )
    common.add_engine_options(arguments)
    arguments.add_argument("--part", type=_part, metavar="I/N", help="predict only part I of N, for several machines")
    arguments.add_argument(
        "--strict", action="store_true", help="refuse scans that do not look like the training cases"
    )
    arguments.add_argument(
        "--continue",
        dest="resume",
        action="store_true",
        help="leave out cases that the same weights and settings have predicted already",
    )
    common.add_postprocessing(arguments)
    _add_format_options(arguments)
    _add_box_options(arguments)
    common.add_options_of_tasks(arguments, "predict")
    return arguments


def _add_inputs(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument(
        "-i",
        dest="inputs",
        nargs="+",
        type=Path,
        required=True,
        help="folder of scans (CASE_0000.nii.gz) or DICOM series, one scan, or one file per channel; detectors: "
        "radiographs or a folder",
    )
    arguments.add_argument(
        "-o",
        dest="outputs",
        type=Path,
        required=True,
        help="folder for the label maps or predictions.json; for one scan also the very file, seg.nii.gz",
    )
    arguments.add_argument(
        "-m", dest="model", required=True, help="run folder, exported model, or DATASET/RUN below the results folder"
    )
    arguments.add_argument(
        "-f",
        dest="folds",
        nargs="+",
        metavar="FOLD",
        help="folds to average, 0-4 or all (default: every trained fold; of nnU-Net models every numbered one); the "
        "name of a format is taken as --format",
    )
    arguments.add_argument(
        "--checkpoint", choices=("final", "best"), default="final", help="which weights (default: final)"
    )


def _add_format_options(arguments: argparse.ArgumentParser) -> None:
    listed = "; ".join(f"{name}: {entry.about}" for name, entry in FORMATS.items())
    formats = arguments.add_argument_group("formats of what is written")
    formats.add_argument(
        "--format",
        nargs="+",
        metavar="NAME",
        type=name_of_format,
        choices=list(FORMATS),
        help="one or several, by name or ending (default: label maps in the scan's own format, of DICOM series NIfTI; "
        f"boxes in predictions.json). {listed}",
    )
    formats.add_argument(
        "--seg-kind",
        choices=SEGMENTATION_KINDS,
        help="of dicom-seg: a bit plane per structure, or one of labels as in DICOM since 2024c (default: binary)",
    )
    formats.add_argument(
        "--source-series",
        type=Path,
        metavar="FOLDER",
        help="DICOM series that dicom-seg and rtstruct refer to, of scans converted from it; of several scans a tree "
        "whose series are called as they are",
    )
    formats.add_argument(
        "--terms", type=Path, metavar="FILE", help="JSON with coded terms and colours of structures, see docs/dicom.md"
    )


def _add_box_options(arguments: argparse.ArgumentParser) -> None:
    boxes = arguments.add_argument_group("for runs of detectors")
    boxes.add_argument("--pictures", action="store_true", help="write pictures/CASE.jpg with the boxes too")
    boxes.add_argument("--picture-score", type=float, metavar="S", help="lowest score that is drawn (default: 0.25)")
    boxes.add_argument(
        "--score", type=float, help="lowest score that is kept (default: 0.001, low enough for medkd_evaluate)"
    )
    boxes.add_argument(
        "--overlap",
        type=float,
        help="IoU above which the weaker of two boxes of a class is dropped (default: the detector's own)",
    )
    boxes.add_argument("--most", type=int, help="most boxes per image (default: 300)")


def _predict(options: argparse.Namespace) -> int:
    reuse_freed_memory()
    _take_formats_from_folds(options)
    inputs = options.inputs[0] if len(options.inputs) == 1 else options.inputs
    report = api.predict(
        inputs,
        options.outputs,
        options.model,
        root=options.root,
        folds=options.folds,
        checkpoint=options.checkpoint,
        device=options.device,
        resume=options.resume,
        **_settings(options),
    )
    there = f", {len(report.skipped)} were there already" if report.skipped else ""
    replaced = f", {len(report.replaced)} of them in the place of earlier ones" if report.replaced else ""
    failed = f", {len(report.failed)} failed: {', '.join(report.failed)}" if report.failed else ""
    kind = api.task_of_model(api.find_model(options.model, options.root)).inputs
    print(f"{len(report.predicted)} {kind} predicted into {options.outputs}{replaced}{there}{failed}")
    return 1 if report.failed else 0


def _take_formats_from_folds(options: argparse.Namespace) -> None:
    """``-f dicom-seg``: no fold is called as a format."""
    given = [name_of_format(text) for text in options.folds or ()]
    named = [name for name in given if name in FORMATS]
    if named:
        options.folds = [text for text in given if text not in FORMATS] or None
        options.format = [*(options.format or ()), *named]


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was given of the settings that belong to one task; ``--no-tta`` and ``--no-postprocessing`` are, too."""
    names = {name for task in every_task() for name in task.options_of("predict")}
    settings = common.given(options, sorted(names))
    for name in ("mirror", "postprocessing"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    return settings


def _part(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    number, parts = whole_number(index), whole_number(count)
    if not slash or number is None or parts is None or not 1 <= number <= parts:
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, for example 1/4, found {text!r}")
    return number - 1, parts


if __name__ == "__main__":
    raise SystemExit(main())
