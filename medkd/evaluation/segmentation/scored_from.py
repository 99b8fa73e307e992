"""What the scores of a fold's label maps were computed from; see :mod:`medkd.evaluation.scored_from`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medkd.core.checkpoint import stored_checkpoint
from medkd.core.errors import RunError
from medkd.core.made_from import changed_weights
from medkd.core.made_with import content_digest, known_digest, label_map_settings
from medkd.core.protocol import InferenceRule
from medkd.core.run import FINAL, VALIDATION_SUMMARY, RunFolder
from medkd.core.run_files import SCORED_TEACHER
from medkd.core.serial import to_data
from medkd.evaluation.scored_from import (
    KEY,
    ScoredFrom,
    check_content,
    check_maker,
    remedy,
    sources_in,
    tell_unsaid,
)
from medkd.evaluation.segmentation.results import Summary


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
        raise RunError(f"{why}; {remedy(run)}.")
    summary = Summary.load(file)
    found = sources_in(summary.extra, str(file))
    if found is None:
        tell_unsaid(file, run)
        return {}
    check_maker(found, folder, file, _settings_now(folder) if found.settings else {})
    for case in summary.cases:
        prediction = file.parent / Path(case.prediction_file).name  # the run may have been moved
        for path, digests in ((prediction, found.predictions), (Path(case.reference_file), found.references)):
            if complete or path.is_file():
                check_content(path, digests, file, run)
    return found.references


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
