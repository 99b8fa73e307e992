"""What the scores of a fold were computed from, for all tasks: weights, predictions and references, by content."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from medkd.core.checkpoint import load_checkpoint, stored_checkpoint, weights_digest
from medkd.core.errors import RunError
from medkd.core.made_with import known_digest, state_of
from medkd.core.run import FINAL
from medkd.core.run_files import SCORED_TEACHER, ScoredTeacher
from medkd.core.serial import from_data, load

_log = logging.getLogger(__name__)

KEY = "scored_from"
"""In ``summary.json``; of label maps in its ``"medkd"`` block."""


@dataclass(frozen=True, kw_only=True)
class ScoredFrom:
    """What scores belong to.

    Attributes:
        weights: a hash of each network that predicted.
        predictions: name of a file of predictions → hash of its content.
        references: name of a reference → hash of its content.
        settings: what else the predictions depend on, by name.
    """

    weights: tuple[str, ...]
    predictions: Mapping[str, str]
    references: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)


def sources_in(extra: Mapping[str, Any], where: str) -> ScoredFrom | None:
    """What a summary with this further content was computed from; None where it does not say.

    Raises:
        DataError: it says it in a way that is damaged.
    """
    stated = extra.get(KEY)
    return None if stated is None else from_data(ScoredFrom, stated, f"{where}: {KEY}")


@cache
def tell_unsaid(scores: Path, run: Path) -> None:
    """Warn of scores that do not say what they belong to, once, however many parts of a command read them."""
    _log.warning(
        "%s does not say what it was scored from, as earlier versions' did not, and is taken as it is; to be sure, %s",
        scores,
        remedy(run),
    )


def check_maker(found: ScoredFrom, folder: Path, scores: Path, settings: Mapping[str, str]) -> None:
    """See that a fold's weights, and what else its predictions depend on, are those that were scored.

    Args:
        found: what was scored.
        folder: of the fold.
        scores: their file.
        settings: as they are now, as far as the folder says them.

    Raises:
        RunError: they are not.
    """
    run, weights = folder.parent, weights_now(folder)
    if weights is not None and found.weights != weights:
        raise RunError(f"{scores} holds the scores of other weights than those in {folder} now; {remedy(run)}.")
    for name, value in settings.items():
        if found.settings.get(name, value) != value:
            raise RunError(f"{scores} holds scores with another {name} than {run} says now; {remedy(run)}.")


def weights_now(fold: Path) -> tuple[str, ...] | None:
    """A hash of the weights that a fold folder, or the record of a model trained elsewhere, names now; None where
    neither is there.
    """
    checkpoint = stored_checkpoint(fold / FINAL)
    if checkpoint.exists():
        return (_digest_of_weights(checkpoint, state_of(checkpoint)),)
    if (fold / SCORED_TEACHER).exists():
        return (load(ScoredTeacher, fold / SCORED_TEACHER).weights,)
    return None


@cache
def _digest_of_weights(checkpoint: Path, state: tuple[int, ...]) -> str:
    return weights_digest(load_checkpoint(checkpoint).get("network", {}))


def check_content(file: Path, digests: Mapping[str, str], scores: Path, run: Path) -> None:
    """See that a file is there and has the content that was scored.

    Raises:
        RunError: it has not.
    """
    if not file.is_file():
        raise RunError(f"{file}, from which {scores} was scored, is not there any more; restore it, or {remedy(run)}.")
    if digests.get(file.name) != known_digest(file):
        raise changed(file, scores, run)


def changed(file: Path, scores: Path, run: Path) -> RunError:
    """A file is another than when it was scored."""
    return RunError(f"{file} has changed since {scores} was scored from it; {remedy(run)}.")


def remedy(run: Path) -> str:
    """What to do about scores that do not belong to what is there."""
    return f"score this fold of {run.name} anew, by its training command with --continue (or medkd_score_teacher)"
