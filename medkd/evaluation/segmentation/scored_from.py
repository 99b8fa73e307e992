"""What the scores of a fold were computed from: its weights, label maps and references, by their content."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from medkd.core.checkpoint import load_checkpoint, stored_checkpoint, weights_digest
from medkd.core.errors import RunError
from medkd.core.made_from import changed_weights
from medkd.core.made_with import content_digest, known_digest, label_map_settings, state_of
from medkd.core.protocol import InferenceRule
from medkd.core.run import FINAL, VALIDATION_SUMMARY, RunFolder
from medkd.core.run_files import SCORED_TEACHER, ScoredTeacher
from medkd.core.serial import from_data, load, to_data
from medkd.evaluation.segmentation.results import Summary

_log = logging.getLogger(__name__)

KEY = "scored_from"
"""In the ``"medkd"`` block of ``summary.json``."""


@dataclass(frozen=True, kw_only=True)
class ScoredFrom:
    """What scores belong to.

    Attributes:
        weights: a hash of each network that predicted.
        predictions: name of a label map → hash of its content.
        references: name of a reference → hash of its content.
        settings: what else the label maps depend on, by name.
    """

    weights: tuple[str, ...]
    predictions: Mapping[str, str]
    references: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)


def with_sources(summary: Summary, weights: Sequence[str], settings: Mapping[str, str]) -> Summary:
    """The summary of label maps that are there, with what it was computed from."""
    predictions, references = {}, {}
    for case in summary.cases:
        prediction, reference = Path(case.prediction_file), Path(case.reference_file)
        predictions[prediction.name] = content_digest(prediction)
        references[reference.name] = known_digest(reference)
    sources = ScoredFrom(
        weights=tuple(weights), predictions=predictions, references=references, settings=dict(settings)
    )
    return replace(summary, extra={**summary.extra, KEY: to_data(sources)})


def sources_of(summary: Summary, where: str) -> ScoredFrom | None:
    """What a summary was computed from; None where it does not say.

    Raises:
        DataError: it says it in a way that is damaged.
    """
    stated: Any = summary.extra.get(KEY)
    return None if stated is None else from_data(ScoredFrom, stated, f"{where}: {KEY}")


def check_sources(run: Path, fold: int, *, complete: bool = True) -> Mapping[str, str]:
    """See that the scores of a fold belong to its weights, label maps and references as they are now; those that do not
    say what they belong to are warned of.

    Args:
        run: folder of a run, or of the scores of a model trained elsewhere.
        fold: that was scored.
        complete: label maps and references must still be there.

    Returns:
        The hash of every reference by its name; none where the scores do not say it.

    Raises:
        RunError: they do not.
        DataError: a file is damaged.
    """
    folder = run / f"fold_{fold}"
    file = folder / VALIDATION_SUMMARY
    if (folder / SCORED_TEACHER).exists() and (why := changed_weights(folder)) is not None:
        raise RunError(f"{why}; {_remedy(run)}.")
    summary = Summary.load(file)
    found = sources_of(summary, str(file))
    if found is None:
        _tell_unsaid(file, run)
        return {}
    _check_maker(found, folder, file)
    for case in summary.cases:
        prediction = file.parent / Path(case.prediction_file).name  # the run may have been moved
        for path, digests in ((prediction, found.predictions), (Path(case.reference_file), found.references)):
            if complete or path.is_file():
                _check_content(path, digests, file, run)
    return found.references


@cache
def _tell_unsaid(scores: Path, run: Path) -> None:
    """Once, however many parts of a command read the scores."""
    _log.warning(
        "%s does not say what it was scored from, as earlier versions' did not, and is taken as it is; to be sure, %s",
        scores,
        _remedy(run),
    )


def _check_maker(found: ScoredFrom, folder: Path, scores: Path) -> None:
    """The weights, and what else the label maps depend on."""
    run, weights = folder.parent, weights_now(folder)
    if weights is not None and found.weights != weights:
        raise RunError(f"{scores} holds the scores of other weights than those in {folder} now; {_remedy(run)}.")
    for name, value in (_settings_now(folder) if found.settings else {}).items():
        if found.settings.get(name, value) != value:
            raise RunError(f"{scores} holds scores with another {name} than {run} says now; {_remedy(run)}.")


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


def _settings_now(fold: Path) -> Mapping[str, str]:
    """What the label maps of a fold that medkd trained depend on, as far as its folder says it; of others nothing."""
    if not stored_checkpoint(fold / FINAL).exists():
        return {}
    run = RunFolder.load(fold.parent)
    rule = run.plan.protocol.inference if run.plan.protocol else InferenceRule()
    return label_map_settings(
        run.plan,
        run.plan.configuration(run.run.configuration),
        run.dataset.labels,
        patch_size=run.run.network.patch_size,
        mirror_axes=run.run.mirror_axes if rule.mirror else (),
        step_size=rule.step_size,
        blending=rule.blending,
    )


def _check_content(file: Path, digests: Mapping[str, str], scores: Path, run: Path) -> None:
    if not file.is_file():
        raise RunError(f"{file}, from which {scores} was scored, is not there any more; restore it, or {_remedy(run)}.")
    if digests.get(file.name) != known_digest(file):
        raise RunError(f"{file} has changed since {scores} was scored from it; {_remedy(run)}.")


def _remedy(run: Path) -> str:
    return f"score this fold of {run.name} anew, by its training command with --continue (or medkd_score_teacher)"
