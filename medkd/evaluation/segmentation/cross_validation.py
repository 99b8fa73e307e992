"""The folds of a run put together: every case scored once, by the fold that never saw it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, RunError
from medkd.core.files import read_json
from medkd.core.labels import LabelSpec
from medkd.core.run import DATASET_FILE, RUN_FILE, SPLIT_FILE
from medkd.evaluation.segmentation.results import METRICS, CaseScores, Summary, finite, structure_key

_log = logging.getLogger(__name__)

FOLDS = 5
VALIDATION_SUMMARY = Path("validation") / "summary.json"


def cross_validate(run: Path, *, expected: int = FOLDS, output: Path | None = None) -> Summary:
    """Merge the validation scores of a run's folds and write ``<run>/crossval/summary.json``.

    Args:
        run: a run folder.
        expected: number of folds of the splits; folds that are missing are logged and named in the file.
        output: where to write, if not there.

    Returns:
        The merged summary; its ``extra`` holds ``folds``, ``missing_folds`` and ``fold_means``.

    Raises:
        RunError: not a run folder, or no fold has been validated.
        DataError: a case occurs twice, a fold did not score all of its validation cases, or folds were scored
            differently.
    """
    run = Path(run)
    if not (run / RUN_FILE).exists():
        raise RunError(
            f"{run} is not a medkd run folder (it has no {RUN_FILE}); give a folder <root>/results/DATASET/RUN."
        )
    folds = scored_folds(run)
    if not folds:
        raise RunError(
            f"{run}: no fold_K/{VALIDATION_SUMMARY} found; train at least one fold to its end, which validates it."
        )
    missing = [k for k in range(expected) if k not in folds]
    if missing:
        _log.warning(
            "%s: folds %s are not there; the result covers folds %s only.", run.name, _list(missing), _list(folds)
        )
    merged = merge_folds(run, folds)
    summary = Summary(
        merged.cases,
        merged.nsd_tolerance_mm,
        merged.hd95_definition,
        merged.missing,
        {**merged.extra, "missing_folds": missing},
    )
    summary.save(output or run / "crossval" / "summary.json")
    return summary


def scored_folds(run: Path) -> list[int]:
    """The numbered folds of a run that have a validation summary (``all`` has no validation cases of its own)."""
    names = (p.parents[1].name.removeprefix("fold_") for p in run.glob(f"fold_*/{VALIDATION_SUMMARY}"))
    return sorted(int(n) for n in names if n.isdigit())


def merge_folds(run: Path, folds: Sequence[int]) -> Summary:
    """Read and merge the validation summaries of some folds.

    Raises:
        DataError: see :func:`cross_validate`.
    """
    labels = DatasetDescription.load(run / DATASET_FILE).labels if (run / DATASET_FILE).exists() else None
    parts = {k: _fold(run, k, labels) for k in folds}
    first = next(iter(parts.values()))
    owner: dict[str, int] = {}
    cases: list[CaseScores] = []
    for k, part in parts.items():
        if _definition(part) != _definition(first):
            raise DataError(
                f"{run}: fold {k} was scored with other structures or definitions than fold {folds[0]}; validate them "
                "anew."
            )
        for case in part.cases:
            if case.name in owner:
                raise DataError(
                    f"{run}: {case.name} is a validation case of fold {owner[case.name]} and of fold {k}; use disjoint "
                    "splits."
                )
            owner[case.name] = k
        cases += part.cases
    extra = {"folds": list(folds), "fold_means": {str(k): _means(part) for k, part in parts.items()}}
    missing = tuple(name for part in parts.values() for name in part.missing)
    return Summary(
        tuple(sorted(cases, key=lambda c: c.reference_file)),
        first.nsd_tolerance_mm,
        first.hd95_definition,
        missing,
        extra,
    )


def _fold(run: Path, fold: int, labels: LabelSpec | None) -> Summary:
    folder = run / f"fold_{fold}"
    summary = Summary.load(folder / VALIDATION_SUMMARY, labels)
    split = read_json(folder / SPLIT_FILE) if (folder / SPLIT_FILE).exists() else {}
    names = [case.name for case in summary.cases]
    unscored = [c for c in split.get("val", ()) if not any(n == c or n.startswith(f"{c}.") for n in names)]
    if unscored:
        raise DataError(
            f"{folder / VALIDATION_SUMMARY}: validation cases {', '.join(unscored)} have no score; validate fold "
            f"{fold} anew."
        )
    return summary


def _definition(summary: Summary) -> tuple[object, ...]:
    return summary.structures, summary.nsd_tolerance_mm, summary.hd95_definition


def _means(summary: Summary) -> dict[str, Any]:
    structures = {
        structure_key(values): {"name": name, **{m: finite(summary.interval(m, i).mean) for m in METRICS}}
        for i, (name, values) in enumerate(summary.structures)
    }
    return {
        "cases": len(summary.cases),
        "counts": summary.counts(),
        "foreground": {m: finite(summary.interval(m).mean) for m in METRICS},
        "structures": structures,
    }


def _list(folds: Sequence[int]) -> str:
    return ", ".join(map(str, folds))
