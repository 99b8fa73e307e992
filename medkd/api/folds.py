"""All folds of a run one after another, and their scores together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from medkd.core.errors import RunError
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

    Folds that are finished are left as they are where the training is told to continue. Of several processes that train
    together the first one puts the scores together.

    Args:
        train_fold: trains a fold of one run, or of several; returns their folders.
        dataset: number or full name.
        root: medkd's folder.
        validate: whether folds are scored; without scores there is nothing to put together.

    Returns:
        Of each run the folder with the scores of all folds, or the run folder where there are none.
    """
    from medkd.evaluation.cross_validation import cross_validate
    from medkd.training.ranks import current

    runs = [folder.parent for folder in train_fold("0")]  # the first fold makes the splits where there are none
    place = Root.resolve(root)
    count = len(load_splits(place.preprocessed / place.dataset_name(dataset) / SPLITS_FILE))
    for fold in range(1, count):
        _log.info("fold %d of %d", fold + 1, count)
        train_fold(str(fold))
    if not validate or not current().first:
        return runs
    for run in runs:
        cross_validate(run, expected=count)
    return [run / CROSS_VALIDATION for run in runs]
