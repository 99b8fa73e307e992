"""Finds terms that cannot teach: of random outputs, those whose gradient never reaches the student.

A term may be a constant without anyone's doing: the correlation of two numbers, the relative distance of two places, a
loss behind a layer that is cut off. Training then runs for days and learns nothing from it. The check takes one step of
the method alone, on random logits and features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Outputs, Progress, Tap, Target
from medkd.distillation.base import Context, Method

FAINT = 1e-5  # of a term: what moving the student's outputs by their own size changes less than that is rounding
_HALFWAY = Progress(50, 100, 0)  # where no schedule has a weight of 0
_SEED = 20


def silent_terms(method: Method, batch: int = 2) -> tuple[str, ...]:
    """The terms of a segmentation method that have no gradient to the student's logits or features.

    Args:
        method: as built for training; it is not changed.
        batch: samples per step.

    Returns:
        Their names, in the order of the terms; empty where every term teaches.

    Raises:
        MethodError: the method refuses such outputs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        student, teacher, target = random_outputs(method, batch)
        return silent_among(method, student, teacher, target)


def silent_among(method: Method, student: Outputs, teacher: Outputs, target: Target) -> tuple[str, ...]:
    """As :func:`silent_terms`, for given outputs of any task; what is in them is not changed.

    Args:
        method: as built for training; it is not changed.
        student: logits and features, of any values that vary.
        teacher: likewise.
        target: labels, and where training stands.
    """
    tried = _prepared(method)
    changes: dict[str, Any] = {}
    inputs = []
    for field in fields(student):
        value = getattr(student, field.name)
        if isinstance(value, Tensor) and value.is_floating_point():
            changes[field.name] = _watched(value)
            inputs.append(changes[field.name])
    features = {name: _watched(value) for name, value in student.features.items()}
    inputs += features.values()
    with torch.enable_grad():
        terms = tried(replace(student, **{**changes, "features": features}), teacher, target)
    return tuple(name for name, term in terms.items() if _is_silent(term, inputs))


def sentence(names: tuple[str, ...]) -> str:
    """What to say of silent terms, one sentence; empty without any."""
    if not names:
        return ""
    which = "term" if len(names) == 1 else "terms"
    have = "has" if len(names) == 1 else "have"
    return (
        f"The {which} {', '.join(names)} {have} no gradient to the student, so that nothing is learnt from it: choose "
        "other taps, or leave the method out."
    )


def random_outputs(method: Method, batch: int) -> tuple[Outputs, Outputs, Target]:
    """Random outputs of student and teacher for a method's context, and labels; the maps have the size of the patch."""
    context, needs = method.context, method.needs()
    labels = _labels(context, batch)
    student = Outputs(
        logits=_logits(context, batch), features=_features(context, context.student_taps, needs.student, batch)
    )
    taught = _features(context, context.teacher_taps, needs.teacher, batch)
    corrections = _features(context, context.teacher_taps, needs.teacher_corrections, batch)
    logits = _logits(context, batch)
    rest = _rest_of_a_teacher(context, taught) if method.continues_teacher else None
    teacher = Outputs(logits=logits, features=taught, corrections=corrections, average=logits, forward_from=rest)
    return student, teacher, Target(labels, None, _HALFWAY)


def _prepared(method: Method) -> Method:
    """A copy whose first stages count as done."""
    tried = copy.deepcopy(method)
    for name, buffer in tried.named_buffers():
        if name.rpartition(".")[2] == "prepared":
            buffer.fill_(True)
    return tried


def _watched(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def _is_silent(term: Tensor, inputs: list[Tensor]) -> bool:
    if not term.requires_grad:
        return True
    gradients = torch.autograd.grad(term, inputs, retain_graph=True, allow_unused=True)
    change = 0.0
    for value, gradient in zip(inputs, gradients, strict=True):
        if gradient is not None:
            change += float((value.detach() * gradient).abs().sum())
    return not change > FAINT * abs(float(term.detach()))


def _logits(context: Context, batch: int) -> Tensor:
    return 2 * torch.randn(batch, context.num_outputs, *context.patch_size)


def _labels(context: Context, batch: int) -> Tensor:
    """Blobs of every class, or of every region."""
    coarse = torch.randn(batch, context.num_outputs, *(max(size // 4, 1) for size in context.patch_size))
    maps = F.interpolate(coarse, size=context.patch_size, mode="nearest")
    return (maps > 0).float() if context.regions else maps.argmax(1, keepdim=True)


def _features(context: Context, taps: tuple[Tap, ...], names: tuple[str, ...], batch: int) -> dict[str, Tensor]:
    known = {tap.name: tap for tap in taps}
    found = {}
    for name in names:
        tap = known[name]
        size = [max(-(-side // stride), 1) for side, stride in zip(context.patch_size, tap.stride, strict=True)]
        found[name] = torch.randn(batch, tap.channels, *size)
    return found


def _rest_of_a_teacher(context: Context, features: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """A random linear layer from every map to logits, in place of a teacher's remaining layers."""
    weights = {name: torch.randn(context.num_outputs, value.shape[1]) for name, value in features.items()}

    def run(tap: str, feature: Tensor) -> Tensor:
        logits = torch.einsum("kc,bc...->bk...", weights[tap], feature)
        return F.interpolate(logits, size=context.patch_size, mode="nearest")

    return run
