"""All folds of a run one after another, and their scores together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from medkd.core.agreements import agreement_text
from medkd.core.errors import MedkdError, RunError, SomeFailedError, first_line
from medkd.core.limits import option_name
from medkd.core.paths import Root
from medkd.core.run import CROSS_VALIDATION
from medkd.core.splits import SPLITS_FILE, load_splits

FOLDS = "folds"
"""In the place of a fold: all of them, one after another."""

_log = logging.getLogger(__name__)


def listed_folds(folds: Any) -> tuple[int | str, ...] | None:
    """The folds that somebody lists; None stays None, which leaves the choice to medkd.

    Raises:
        RunError: it is no list of folds, or an empty one.
    """
    if folds is None:
        return None
    listed = () if isinstance(folds, (str, Mapping)) or not isinstance(folds, Iterable) else tuple(folds)
    if not listed or any(isinstance(fold, bool) or not isinstance(fold, (Integral, str)) for fold in listed):
        raise RunError(
            f"{option_name('folds')}: expected a list of folds, for example [0, 1], found {folds!r:.80}; leave it out "
            "for all."
        )
    return listed


def train_folds(
    train_fold: Callable[[str], list[Path]], dataset: str | int, root: str | Path | None, validate: bool
) -> list[Path]:
    """Train every fold of the data set's splits and put their scores together.

    Folds that are finished are left as they are where the training is told to continue. Where some of several runs fail
    in a fold, the others go on, and all are tried in the folds after it. Of several processes that train together the
    first one puts the scores together.

    Args:
        train_fold: trains a fold of one run, or of several; returns their folders.
        dataset: number or full name.
        root: medkd's folder.
        validate: whether folds are scored; without scores there is nothing to put together.

    Returns:
        Of each run the folder with the scores of all folds, or the run folder where there are none.

    Raises:
        SomeFailedError: some of several runs failed in some folds, or could not be put together; the others are
            finished, and put together. Or some had failed before whatever ended all of them.
    """
    from medkd.training.ranks import current

    failed: dict[str, list[str]] = {}  # run → where and why
    try:
        whole, count = _all_folds(train_fold, dataset, root, failed)
    except MedkdError as error:
        if not failed:
            raise
        raise _ended(error, failed) from error
    if validate and current().first:
        whole = _all_together(whole, count, failed)
    if failed:
        raise _failure(failed, whole)
    return whole


def _all_folds(
    train_fold: Callable[[str], list[Path]], dataset: str | int, root: str | Path | None, failed: dict[str, list[str]]
) -> tuple[list[Path], int]:
    """The runs of which all folds are finished, and how many folds there are."""
    runs = [folder.parent for folder in _tried(train_fold, "0", failed)]  # the first fold makes the splits
    place = Root.resolve(root)
    count = len(load_splits(place.preprocessed / place.dataset_name(dataset) / SPLITS_FILE))
    for fold in range(1, count):
        _log.info("fold %d of %d", fold + 1, count)
        runs += [folder.parent for folder in _tried(train_fold, str(fold), failed)]
    return [run for run in dict.fromkeys(runs) if run.name not in failed], count


def _all_together(whole: Sequence[Path], count: int, failed: dict[str, list[str]]) -> list[Path]:
    """The folders with the scores of all folds; of several runs, which ones have none is noted."""
    folders = []
    for run in whole:
        try:
            folders.append(_together(run, count))
        except MedkdError as error:
            if len(whole) == 1 and not failed:
                raise
            _log.error("%s could not be put together, the others go on: %s", run.name, error)
            failed.setdefault(run.name, []).append(f"its folds together: {first_line(error)}")
    return folders


def _failure(failed: Mapping[str, Sequence[str]], whole: Sequence[Path]) -> SomeFailedError:
    return SomeFailedError(
        f"{len(failed)} of {len(failed) + len(whole)} runs have folds that failed, the others are finished "
        f"({_listed(failed)}); give --continue to train what is missing.",
        _reasons(failed),
        whole,
    )


def _ended(error: MedkdError, failed: Mapping[str, Sequence[str]]) -> SomeFailedError:
    """What ended all runs, with those that had failed before."""
    return SomeFailedError(
        f"{first_line(error)}; before that, runs failed ({_listed(failed)}): mend both, and give --continue to train "
        "what is missing.",
        _reasons(failed),
        [],
    )


def _reasons(failed: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {run: ", ".join(where) for run, where in failed.items()}


def _listed(failed: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{run}: {reason}" for run, reason in _reasons(failed).items())


def _tried(train_fold: Callable[[str], list[Path]], fold: str, failed: dict[str, list[str]]) -> list[Path]:
    """The folders of a fold's runs that are finished; which ones failed is noted."""
    try:
        return train_fold(fold)
    except SomeFailedError as error:
        _log.error("fold %s: %s", fold, error)
        for run, reason in error.failed.items():
            failed.setdefault(run, []).append(f"fold {fold}: {reason}")
        return error.folders


def _together(run: Path, count: int) -> Path:
    """The folder with the scores of all folds of a run; the run folder where no fold has a label to be judged by."""
    from medkd.evaluation.cross_validation import cross_validate, scored_folds

    agreement = "" if scored_folds(run) else agreement_text(run)
    if agreement:
        _log.info("%s: no labels, so no scores, but %s", run.name, agreement)
        return run
    cross_validate(run, expected=count, postprocessing=None)
    return run / CROSS_VALIDATION
