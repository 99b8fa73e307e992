"""What a model's label maps go through at last: what was found for it, what a file says, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from medkd.core.errors import RunError
from medkd.core.labels import LabelSpec
from medkd.core.limits import option_name
from medkd.core.postprocessing import LargestComponent, Postprocessing, check_steps, steps_text
from medkd.core.serial import load
from medkd.models.base import ModelFolder
from medkd.models.segmentation import SegmentationFolder
from medkd.runtime.prediction import CasePredictor

Choice = Path | str | Literal[False] | None
"""A ``postprocessing.json``, False for no post-processing, None for what belongs to the model."""

_ABOUT = "The post-processing of {}"
_log = logging.getLogger(__name__)


def choose_steps(model: ModelFolder[Any], predictor: CasePredictor, choice: Choice) -> tuple[LargestComponent, ...]:
    """The steps for a loaded model; what is chosen is logged.

    Args:
        model: that was loaded.
        predictor: its networks.
        choice: see :data:`Choice`.

    Raises:
        RunError: the choice is none.
        DataError: the file is damaged, or about other structures.
    """
    found = choose_postprocessing(model, predictor.folds, predictor.digests, predictor.labels, choice)
    steps: tuple[LargestComponent, ...] = () if found is None else found.steps
    if found is None and choice is None:  # what an exported model brings with it
        steps = getattr(predictor, "postprocessing", ())
        check_steps(steps, predictor.labels, _ABOUT.format(model.path))
    if steps:
        _log.info("post-processing: %s (%s)", steps_text(steps), model.path if choice is None else choice)
    return steps


def choose_postprocessing(
    model: ModelFolder[Any],
    folds: Sequence[str],
    digests: Callable[[], Sequence[str]],
    labels: LabelSpec,
    choice: Choice,
) -> Postprocessing | None:
    """What a choice means for the networks of some folds; None for nothing.

    Args:
        model: to which they belong.
        folds: theirs.
        digests: gives a hash of each network's weights.
        labels: of the model.
        choice: see :data:`Choice`.

    Raises:
        RunError: the choice is none.
        DataError: the file is damaged, or about other structures.
    """
    found, where = None, model.path
    if choice is None:
        found = model.postprocessing(folds, digests()) if isinstance(model, SegmentationFolder) else None
    elif choice is not False:
        if not isinstance(choice, (str, Path)):
            raise RunError(
                f"{option_name('postprocessing')}: expected a postprocessing.json, False for none, or None for what "
                f"was found for the model, found {choice!r:.80}."
            )
        where = Path(choice)
        found = load(Postprocessing, where)
    if found is not None:
        check_steps(found.steps, labels, _ABOUT.format(where))
    return found
