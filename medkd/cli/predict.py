"""``medkd_predict``: label maps for raw scans, boxes for radiographs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from medkd.cli.common import parser, run
from medkd.core.allocator import reuse_freed_memory
from medkd.core.errors import RunError
from medkd.core.paths import Root
from medkd.core.run import is_detection
from medkd.core.serial import nearest

_FOR_SCANS = ("step_size", "tta", "save_probabilities", "precision", "part")
_FOR_BOXES = ("pictures", "picture_score", "score", "overlap", "most")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_predict``; status 1 where a case failed."""
    arguments = parser(
        "Predict raw scans with a trained run; the label maps have the scans' own size, spacing, origin and direction. "
        "A run of a detector "
        "takes radiographs (PNG, JPEG, DICOM) and writes predictions.json with boxes in their own pixels.",
        "medkd_predict -i scans -o predictions -m 4/unet_tiny__3d_fullres -f 0",
    )
    arguments.add_argument(
        "-i",
        dest="inputs",
        nargs="+",
        type=Path,
        required=True,
        help="folder of scans (CASE_0000.nii.gz) or DICOM series, one scan, or one file per channel; detectors: radiographs or a folder",
    )
    arguments.add_argument(
        "-o", dest="outputs", type=Path, required=True, help="folder for the label maps or predictions.json"
    )
    arguments.add_argument(
        "-m", dest="model", required=True, help="run folder, or DATASET/RUN below the results folder"
    )
    arguments.add_argument(
        "-f",
        dest="folds",
        nargs="+",
        metavar="FOLD",
        help="folds to average, 0-4 or all (default: every trained fold; of nnU-Net models every numbered one)",
    )
    arguments.add_argument(
        "--checkpoint", choices=("final", "best"), default="final", help="which weights (default: final)"
    )
    arguments.add_argument(
        "--step-size",
        type=float,
        help="distance of neighbouring tiles as a share of the patch (default: 0.5, or the plan's protocol's)",
    )
    arguments.add_argument(
        "--tta",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="average over mirrored copies: 8 times the work in 3D (default: on, or as the plan's protocol says)",
    )
    arguments.add_argument(
        "--save-probabilities", action="store_true", help="write CASE.npz with the class probabilities too"
    )
    arguments.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cuda where present)")
    arguments.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="arithmetic (default: fp16 on CUDA, else fp32)"
    )
    arguments.add_argument(
        "--part", type=_part, default=(0, 1), metavar="I/N", help="predict only part I of N, for several machines"
    )
    arguments.add_argument(
        "--continue", dest="resume", action="store_true", help="leave out cases that are predicted already"
    )
    _add_box_options(arguments)
    return run(_predict, arguments, argv)


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
    folder = find_run(options.model, options.root)
    boxes = is_detection(folder)
    foreign = [
        name for name in (_FOR_SCANS if boxes else _FOR_BOXES) if getattr(options, name) not in (None, False, (0, 1))
    ]
    if foreign:
        kind, other = ("a detector", "scans") if boxes else ("segmentation", "boxes")
        raise RunError(
            f"--{foreign[0].replace('_', '-')} is for {other}, but {folder.name} is a run of {kind}; leave it out."
        )
    if boxes:
        return _detect(options, folder)
    from medkd.inference.folder import predict_folder

    report = predict_folder(
        options.inputs[0] if len(options.inputs) == 1 else options.inputs,
        options.outputs,
        folder,
        folds=options.folds,
        checkpoint=options.checkpoint,
        step_size=options.step_size,
        mirror=options.tta,
        save_probabilities=options.save_probabilities,
        device=options.device,
        precision=options.precision,
        part=options.part,
        resume=options.resume,
    )
    there = f", {len(report.skipped)} were there already" if report.skipped else ""
    failed = f", {len(report.failed)} failed: {', '.join(report.failed)}" if report.failed else ""
    print(f"{len(report.predicted)} cases predicted into {options.outputs}{there}{failed}")
    return 1 if report.failed else 0


def _detect(options: argparse.Namespace, folder: Path) -> int:
    from medkd.detection.predict import predict_detections

    limits = {name: getattr(options, name) for name in _FOR_BOXES if getattr(options, name) is not None}
    report = predict_detections(
        options.inputs[0] if len(options.inputs) == 1 else options.inputs,
        options.outputs,
        folder,
        folds=options.folds,
        checkpoint=options.checkpoint,
        device=options.device,
        resume=options.resume,
        **limits,
    )
    there = f", {len(report.skipped)} were there already" if report.skipped else ""
    failed = f", {len(report.failed)} failed: {', '.join(report.failed)}" if report.failed else ""
    print(f"{len(report.predicted)} radiographs predicted into {options.outputs / 'predictions.json'}{there}{failed}")
    return 1 if report.failed else 0


def find_run(model: str, root: Path | None) -> Path:
    """A run folder, given as a path or as ``DATASET/RUN``.

    Raises:
        RunError: neither exists; the runs of the data set are named.
    """
    path = Path(model)
    if path.is_dir() or len(path.parts) != 2:
        return path
    results = Root.resolve(root)
    folder = results.results / results.dataset_name(path.parts[0])
    if not (folder / path.parts[1]).is_dir():
        runs = sorted(p.name for p in folder.glob("*") if p.is_dir())
        raise RunError(
            f"{folder} has no run '{path.parts[1]}'.{nearest(path.parts[1], runs)} Runs: {', '.join(runs) or 'none'}."
        )
    return folder / path.parts[1]


def _part(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, for example 1/4, found {text!r}")
    return int(index) - 1, int(count)


if __name__ == "__main__":
    raise SystemExit(main())
