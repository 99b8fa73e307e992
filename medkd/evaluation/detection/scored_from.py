"""What the scores of a fold's boxes were computed from; see :mod:`medkd.evaluation.scored_from`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medkd.core.boxes import LABEL_ENDING, BoxAnnotation
from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.core.made_with import known_digest
from medkd.core.paths import Root
from medkd.core.run import PLANS_FILE, RUN_FILE, VALIDATION_SUMMARY, RunDescription
from medkd.core.serial import load, to_data
from medkd.evaluation.detection.predictions import PREDICTIONS_FILE, Boxes, truth_of
from medkd.evaluation.detection.results import DetectionSummary
from medkd.evaluation.scored_from import (
    KEY,
    ScoredFrom,
    changed,
    check_content,
    check_maker,
    sources_in,
    tell_unsaid,
    weights_now,
)

_PLANNED = ("categories", "image_size", "anchor_scale", "long_side", "short_side")


def with_sources(summary: DetectionSummary, fold: Path, labels: Path) -> DetectionSummary:
    """The summary of a fold's ``predictions.json`` that is there, with what it was computed from.

    Args:
        summary: the scores.
        fold: folder of the fold, with the weights that predicted.
        labels: folder of the annotations.
    """
    predictions = (fold / VALIDATION_SUMMARY).with_name(PREDICTIONS_FILE)
    references = {}
    for case in summary.truths:
        path = labels / f"{case}{LABEL_ENDING}"
        references[path.name] = known_digest(path)
    sources = ScoredFrom(
        weights=weights_now(fold) or (),
        predictions={predictions.name: known_digest(predictions)},
        references=references,
        settings=_settings_now(fold.parent),
    )
    return replace(summary, extra={**summary.extra, KEY: to_data(sources)})


def check_sources(run: Path, fold: int) -> None:
    """See that the scores of a fold belong to its weights and boxes, and to the annotations in the raw data set, as
    they are now, as far as these are there. Scores that do not say what they belong to are warned of; of these the
    boxes are compared alone.

    Raises:
        RunError: they do not.
        DataError: a file is damaged.
    """
    folder = run / f"fold_{fold}"
    file = folder / VALIDATION_SUMMARY
    summary = DetectionSummary.load(file)
    found = sources_in(summary.extra, str(file))
    if found is None:
        tell_unsaid(file, run)
        found = ScoredFrom(weights=(), predictions={}, references={})
    else:
        check_maker(found, folder, file, _settings_now(run))
        check_content(file.with_name(PREDICTIONS_FILE), found.predictions, file, run)
    labels = _raw_dataset(run) / "labelsTr"
    for case, truth in summary.truths.items():
        path = labels / f"{case}{LABEL_ENDING}"
        if not path.is_file() or found.references.get(path.name) == known_digest(path):
            continue
        if not _is_as_scored(path, truth, summary.categories):
            raise changed(path, file, run)


def _settings_now(run: Path) -> dict[str, str]:
    """What boxes depend on besides weights and images, by name."""
    plan = read_json(run / PLANS_FILE) if (run / PLANS_FILE).is_file() else {}
    described = load(RunDescription, run / RUN_FILE)
    planned = {key: plan.get(key) for key in _PLANNED} if isinstance(plan, Mapping) else {}
    network = [described.network.name, described.network.patch_size]
    return {"plan": json.dumps(planned, sort_keys=True), "network": json.dumps(to_data(network))}


def _raw_dataset(run: Path) -> Path:
    """Where the raw data set of a run lies."""
    base = run.absolute().parents[2]
    return Root(base / "raw", base / "preprocessed", base / "results").raw_dataset(run.absolute().parent.name)


def _is_as_scored(path: Path, truth: Boxes, categories: Sequence[str]) -> bool:
    """Whether an annotation holds the boxes, and those to be ignored, that were scored; a file that was merely written
    anew does.
    """
    annotation = BoxAnnotation.load(path)
    try:
        now = truth_of(annotation, categories)
    except DataError:  # a class that was not scored
        return False
    return now.equals(truth)
