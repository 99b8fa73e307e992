"""The post-processing that was found on the validation cases of a run's folds, where it belongs to what predicts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from medkd.core.postprocessing import POSTPROCESSING_FILE, Postprocessing
from medkd.core.run import CROSS_VALIDATION
from medkd.core.serial import load

_log = logging.getLogger(__name__)


def postprocessing_files(run: Path) -> list[Path]:
    """What ``medkd_cross_validate`` left, over all folds or some."""
    return sorted(run.glob(f"{CROSS_VALIDATION}*/{POSTPROCESSING_FILE}"))


def stored_postprocessing(run: Path, folds: Sequence[str], weights: Sequence[str]) -> Postprocessing | None:
    """What was found over the validation cases of just these folds, as these weights predicted them.

    Where there is only what belongs to other folds or weights, that is said.

    Args:
        run: its folder.
        folds: whose networks predict together.
        weights: a hash of each of these networks.

    Raises:
        DataError: a file is damaged.
    """
    of_others: list[str] = []
    outdated: list[Path] = []
    for file in postprocessing_files(run):
        found = load(Postprocessing, file)
        if set(found.folds) != set(folds):
            of_others.append(", ".join(found.folds))
        elif found.weights and set(found.weights) != set(weights):
            outdated.append(file)
        else:
            return found
    if outdated:
        _log.warning(
            "%s was found with other weights than those that predict now, so it is left out; find it anew, or name the "
            "file with --postprocessing",
            outdated[0],
        )
    elif of_others:
        _log.info(
            "no post-processing: it was found over the folds %s, but %s predicts; find it for these "
            "(medkd_cross_validate -f), or take that of others with --postprocessing",
            " and ".join(f"({names})" for names in of_others),
            f"fold {', '.join(folds)}",
        )
    return None
