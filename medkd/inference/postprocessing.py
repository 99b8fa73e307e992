"""What a model's label maps go through at last: what was found for it, what a file says, or nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from medkd.core.errors import RunError
from medkd.core.limits import option_name
from medkd.core.postprocessing import LargestComponent, Postprocessing, check_steps, steps_text
from medkd.core.serial import load
from medkd.models.base import ModelFolder
from medkd.models.segmentation import SegmentationFolder
from medkd.runtime.prediction import CasePredictor

Choice = Path | str | Literal[False] | None
"""A ``postprocessing.json``, False for no post-processing, None for what belongs to the model."""

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
    known: tuple[LargestComponent, ...] = getattr(predictor, "postprocessing", ())
    found: Postprocessing | None
    if choice is False:
        return ()
    if choice is not None:
        if not isinstance(choice, (str, Path)):
            raise RunError(
                f"{option_name('postprocessing')}: expected a postprocessing.json, False for none, or None for what "
                f"was found for the model, found {choice!r:.80}."
            )
        file = Path(choice)
        found, where = load(Postprocessing, file), str(file)
    else:
        found, where = None, str(model.path)
        if isinstance(model, SegmentationFolder):
            found = model.postprocessing(predictor.folds, predictor.digests())
    steps = known if found is None else found.steps
    check_steps(steps, predictor.labels, f"The post-processing of {where}")
    if steps:
        _log.info("post-processing: %s (%s)", steps_text(steps), where)
    return steps
