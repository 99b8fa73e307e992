"""Warning of teachers that have nothing to teach, and of arithmetic that is wrong or slow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import isfinite
from typing import Any, Protocol

import torch

from medkd.core.arithmetic import slow_arithmetic, wrong_arithmetic
from medkd.core.errors import DataError, RunError
from medkd.core.files import read_json
from medkd.models.guard import Teacher

SUMMARY = "validation/summary.json"
Score = tuple[str, float, float]
"""Name of a score, its value, and up to where it says that nothing is found."""

_log = logging.getLogger(__name__)


class Scores(Protocol):
    """Knows its way about the ``summary.json`` of a fold's validation."""

    def score(self, summary: Mapping[str, Any]) -> Score | None:
        """The score of all structures together."""

    def part_scores(self, summary: Mapping[str, Any]) -> Mapping[str, Score]:
        """The score of each structure."""


def doubt(text: str, *, strict: bool) -> None:
    """Warn of something that makes a training doubtful.

    Args:
        text: what, and what to do.
        strict: refuse it instead.

    Raises:
        RunError: with ``strict``.
    """
    if strict:
        raise RunError(f"--strict: {text.rstrip('.')}, or leave out --strict to train all the same.")
    _log.warning("%s", text)


def check_arithmetic(precision: str, device: torch.device, *, strict: bool = False) -> None:
    """Warn where torch computes wrongly in a precision on this processor, or more slowly than in fp32.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        device: where to train.
        strict: refuse what is wrong instead; what is slow only costs time.
    """
    wrong = wrong_arithmetic(precision, device)
    if wrong:
        doubt(wrong, strict=strict)
    slow = slow_arithmetic(precision, device)
    if slow:
        _log.warning("%s", slow)


def warn_of_a_poor_teacher(teacher: Teacher[Any], task: Scores, *, strict: bool = False) -> None:
    """Warn where a teacher's own validation says that it finds nothing, or nothing of one structure; a teacher without
    one is taken as it is.

    Args:
        teacher: the fold that is going to teach.
        task: finds the scores in the content of a ``summary.json``.
        strict: refuse such a teacher instead.

    Raises:
        RunError: with ``strict``.
    """
    path = teacher.model.path / f"fold_{teacher.fold}" / SUMMARY
    if not path.is_file():
        return
    try:
        summary = read_json(path)
    except DataError:
        return  # whoever reads scores says what is wrong with the file
    if not isinstance(summary, Mapping):
        return
    found = task.score(summary)
    who = f"the teacher {teacher.model.name} (fold {teacher.fold})"
    if found is not None and found[1] <= found[2]:
        name, value, _ = found
        doubt(
            f"{who} has {name} {value:.4f} on its own validation, no better than finding nothing, so that a student "
            "can hardly learn from it; train it longer, or choose another one",
            strict=strict,
        )
        return
    poor = [part for part, (_, value, nothing) in task.part_scores(summary).items() if value <= nothing]
    if poor:
        doubt(
            f"{who} finds nothing of {', '.join(poor)} on its own validation, so that a student can hardly learn it "
            "from it; train it longer, or choose another one",
            strict=strict,
        )


def table_at(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under a key; an empty one where there is none."""
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


def number_at(content: Mapping[str, Any], *keys: str) -> float | None:
    """The finite number that stands under these keys, one within the other; None where there is none.

    >>> number_at({"mean": {"AP": {"mean": 0.5}}}, "mean", "AP", "mean")
    0.5
    >>> number_at({"mean": None}, "mean", "AP") is None
    True
    """
    value: Any = content
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    return float(value) if known else None


def share_of_voxels(means: Mapping[str, Any], key: str) -> float:
    """Of a structure in the validation cases; 0 where it is unknown."""
    counts = [number_at(means, key, count) for count in ("TP", "FP", "FN", "TN")]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts) or not sum(known):
        return 0.0
    hits, _, missed, _ = known
    return (hits + missed) / sum(known)


def own_name(summary: Mapping[str, Any], key: str) -> str:
    """What medkd calls a structure in a ``summary.json``; nnU-Net's files have the key only."""
    value: Any = summary
    for part in ("medkd", "structures", key, "name"):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else f"label {key}"
