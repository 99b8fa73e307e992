"""``medkd_plan_and_preprocess``: from raw data sets to plans and preprocessed cases."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.cli.common import parser, positive, run
from medkd.core.dataset import dataset_task
from medkd.core.errors import PlanError
from medkd.core.paths import Root
from medkd.core.plan import Plan
from medkd.preprocessing.prepare import plan_and_preprocess

if TYPE_CHECKING:
    from medkd.detection.plan import DetectionPlan

_FOR_SEGMENTATION = {"configuration": "--configuration", "gpu_memory": "--gpu-memory", "like": "--like"}
_FOR_DETECTION = {"image_size": "--image-size", "batch_size": "--batch-size"}


def main(argv: Sequence[str] | None = None) -> int:
    """Plan and preprocess one or more data sets."""
    return run(_main, _arguments(), argv)


def _arguments() -> argparse.ArgumentParser:
    result = parser(
        "Verify, fingerprint, plan and preprocess raw data sets. What did not change is not done again; an edited "
        "plans.json is kept.",
        "medkd_plan_and_preprocess -d 4 -c 3d_fullres",
    )
    result.add_argument("-d", "--dataset", nargs="+", required=True, metavar="DATASET", help="numbers or full names")
    result.add_argument(
        "-c",
        "--configuration",
        nargs="+",
        metavar="NAME",
        help="2d, 3d_lowres, 3d_fullres or one of your own (default: all planned)",
    )
    result.add_argument(
        "-np", "--workers", type=positive, metavar="N", help="cases at a time (default: from cores and free memory)"
    )
    result.add_argument(
        "--gpu-memory",
        type=_above_zero,
        metavar="GB",
        help="plan for this much GPU memory (default: 8, larger presets 24 and 40)",
    )
    result.add_argument(
        "--protocol",
        metavar="NAME",
        help="plan and train as a publication: acf_bckd, mmseg_kd, sfd_kd, or your own file; NAME:VARIANT",
    )
    result.add_argument(
        "--like",
        type=Path,
        metavar="FOLDER",
        help="prepare for the students of this nnU-Net v2 model, or folder with a teacher.json",
    )
    result.add_argument(
        "--image-size",
        type=positive,
        metavar="PIXELS",
        help="detection: side of the input, a multiple of 32 (default: planned)",
    )
    result.add_argument(
        "--batch-size", type=positive, metavar="N", help="detection: images per step (default: planned)"
    )
    result.add_argument(
        "--overwrite-plan", action="store_true", help="make plans.json anew; configurations of your own are kept"
    )
    result.add_argument("--no-verify", action="store_true", help="do not check the raw data first")
    return result


def _main(options: argparse.Namespace) -> None:
    if options.like and (options.protocol or options.gpu_memory):
        raise PlanError("--like takes the teacher's plan as it is; leave out --protocol and --gpu-memory.")
    for dataset in options.dataset:
        if dataset_task(Root.resolve(options.root), dataset) == "detection":
            _refuse(options, _FOR_SEGMENTATION, f"{dataset} is a data set for detection")
            print(_detection(options, dataset))
            continue
        _refuse(options, _FOR_DETECTION, f"{dataset} is a data set for segmentation")
        if options.like:
            print(describe(_like(options, dataset)))
            continue
        plan = plan_and_preprocess(
            dataset,
            root=options.root,
            configurations=options.configuration,
            workers=options.workers,
            gpu_memory_gb=options.gpu_memory,
            overwrite_plan=options.overwrite_plan,
            verify=not options.no_verify,
            protocol=options.protocol,
        )
        print(describe(plan))


def _refuse(options: argparse.Namespace, names: Mapping[str, str], why: str) -> None:
    """Options of the other task are not silently ignored."""
    given = [option for name, option in names.items() if getattr(options, name) is not None]
    if given:
        raise PlanError(f"{why}, which {given[0]} is not for; leave it out.")


def _detection(options: argparse.Namespace, dataset: str) -> str:
    from medkd.detection.prepare import plan_and_preprocess_detection

    plan = plan_and_preprocess_detection(
        dataset,
        root=options.root,
        workers=options.workers,
        image_size=options.image_size,
        batch_size=options.batch_size,
        overwrite_plan=options.overwrite_plan,
        verify=not options.no_verify,
        protocol=options.protocol,
    )
    return describe_detection(plan)


def describe_detection(plan: DetectionPlan) -> str:
    """A table of the plan: what it says, and why."""
    shown = {
        "image_size": f"{plan.image_size} px",
        "batch_size": str(plan.batch_size),
        "epochs": str(plan.epochs),
        "learning_rate": f"{plan.learning_rate:g}",
        "anchor_scale": f"{plan.anchor_scale:g} strides",
        "augmentation": f"mosaic {plan.augmentation.mosaic:g}, scale ±{plan.augmentation.scale:g}",
        "sampling": ", ".join(f"{key} × {weight:g}" for key, weight in plan.sampling.items()) or "all alike",
        "negatives": "all" if plan.negatives is None else f"{plan.negatives:g} per image with boxes",
    }
    follows = f", protocol {plan.protocol}" if plan.protocol else ""
    head = f"{plan.dataset}: {', '.join(plan.categories)}{follows}"
    return "\n".join(
        [head, *(f"  {name:<15}{value:<28}{plan.reasons.get(name, '')}".rstrip() for name, value in shown.items())]
    )


def _like(options: argparse.Namespace, dataset: str) -> Plan:
    from medkd.models.like import plan_like  # loads torch, which planning does without

    return plan_like(
        dataset,
        options.like,
        root=options.root,
        configurations=options.configuration,
        workers=options.workers,
        overwrite_plan=options.overwrite_plan,
        verify=not options.no_verify,
    )


def describe(plan: Plan) -> str:
    """A table of the plan: one line per configuration."""
    follows = f", protocol {plan.protocol.name}" if plan.protocol else ""
    lines = [
        f"{plan.dataset}{follows}",
        f"  {'configuration':<14}{'spacing (mm)':<22}{'median case':<18}{'patch':<18}{'batch':<7}stages",
    ]
    for name, configuration in plan.configurations.items():
        shape = configuration.architecture("plain_unet")
        spacing = " × ".join(f"{value:.3g}" for value in configuration.spacing)
        median, patch = (" × ".join(map(str, sizes)) for sizes in (configuration.median_shape, shape.patch_size))
        lines.append(f"  {name:<14}{spacing:<22}{median:<18}{patch:<18}{shape.batch_size:<7}{len(shape.strides)}")
    return "\n".join(lines)


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, found '{text}'")
    return value
