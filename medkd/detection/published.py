"""Following a protocol when a detector is trained: its rows are checked when it is read, and set what they say before
anything is built.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from medkd.core.arithmetic import chosen_precision
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import PlanError, RunError
from medkd.core.precision import Precision, PrecisionChoice
from medkd.core.protocol import DetectionProtocol
from medkd.core.protocol_files import find_detection_protocol
from medkd.core.protocol_rows import NO_PROTOCOL, Published, check_rows, published_for, with_settings
from medkd.core.speed import USUAL, Speed
from medkd.detection.base import DETECTORS
from medkd.detection.families import register_detectors
from medkd.detection.methods import DETECTION_METHODS
from medkd.detection.plan import DRAWN, DetectionPlan
from medkd.detection.planner import SAID, follow_training
from medkd.distillation import METHODS, parameters_of

_log = logging.getLogger(__name__)


def check_protocol(name: str, protocol: DetectionProtocol) -> None:
    """See that every row of a protocol is about methods, parameters, detectors and settings that exist.

    Raises:
        MedkdError: the first one that is not.
    """
    register_detectors()
    methods: dict[str, Any] = {}
    for method in METHODS:
        if METHODS[method].detection:
            methods[method] = parameters_of(METHODS[method])
    for method in DETECTION_METHODS:
        methods[method] = parameters_of(DETECTION_METHODS[method])
    check_rows(protocol.rows, name, protocol, methods, DETECTORS)


def followed(
    plan: DetectionPlan, text: str | None, description: DatasetDescription, row: tuple[str | None, str, str | None]
) -> tuple[DetectionPlan, Published]:
    """The plan as a protocol and its rows for this training say, and what is taken from the rows.

    Args:
        plan: of the data set.
        text: value of ``--protocol``; None keeps the plan's, ``none`` takes out its rows and drawn short sides.
        description: of the data set.
        row: method, network and the teacher's network.

    Raises:
        MedkdError: there is no such protocol for this data set, or a setting has the wrong form.
    """
    if text == NO_PROTOCOL:
        return replace(plan, protocol="", rows=(), short_sides=(), short_range=()), Published()
    if text is not None:
        name, protocol = find_detection_protocol(text, description.extra)
        if plan.protocol != name:
            _log.warning("the data were planned by %s, not by %s", plan.protocol or "medkd's own rules", name)
        plan = follow_training(replace(plan, short_sides=(), short_range=()), name, protocol)
    found = published_for(plan.rows, *row)
    if not found.training:
        return plan, found
    rule = DetectionProtocol(image_size=plan.image_size, batch_size=plan.batch_size)
    rule = with_settings(rule, found.training, f"Protocol {plan.protocol}")
    plan = follow_training(plan, plan.protocol, replace(rule, rows=plan.rows))
    left_out = {name for name in SAID if getattr(plan, name) != getattr(rule, name)}
    taken = {name: value for name, value in found.training.items() if name not in left_out}
    return plan, replace(found, training=taken)


def ultralytics_precision(network: str, asked: PrecisionChoice | None, device: torch.device) -> Precision:
    """The precision in which ultralytics trains: it knows half precision on CUDA alone.

    Args:
        network: of the family ``yolo``.
        asked: see :func:`medkd.core.arithmetic.chosen_precision`.
        device: where to train.

    Raises:
        RunError: half precision is asked for elsewhere.
    """
    if device.type == "cuda":
        return chosen_precision(asked, device)
    if asked in ("bf16", "fp16"):
        raise RunError(
            f"{network} is trained by ultralytics, which computes in fp32 on {device.type}, found --precision {asked}; "
            "leave it out."
        )
    return "fp32"


def check_ultralytics(network: str, plan: DetectionPlan, speed: Speed = USUAL) -> None:
    """Refuse what ultralytics' own training cannot do."""
    if speed.channels_last or speed.compile:
        option = "--channels-last" if speed.channels_last else "--compile"
        raise RunError(f"{network} is trained by ultralytics, which has no {option}; leave it out.")
    what = ""
    if plan.milestones:
        what = f"whose learning rate has no steps, but the plan has milestones {plan.milestones}; take them out of"
    drawn = [name for name in DRAWN if getattr(plan, name)]
    if drawn:
        what = (
            f"whose images fill the square, but the plan has {drawn[0]}; give --protocol {NO_PROTOCOL}, take it out of"
        )
    if plan.sides is not None:
        what = (
            f"whose images fill the square, but the plan has {', '.join(['long_side', 'short_side', *drawn])}; give "
            f"--image-size with another size than {plan.image_size}, take them out of"
        )
    if what:
        raise PlanError(f"{network} is trained by ultralytics, {what} plans.json, or choose another detector.")
