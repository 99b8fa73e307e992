"""The predictor of any model for segmentation, in torch or in the engine of an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medkd.core.plugins import resolve
from medkd.inference.postprocessing import Choice, choose_steps
from medkd.models.base import ModelFolder, open_model
from medkd.models.segmentation import SegmentationFolder
from medkd.runtime.prediction import CasePredictor


def open_predictor(
    model: ModelFolder[Any] | Path | str,
    folds: Sequence[int | str] | None = None,
    *,
    postprocessing: Choice = None,
    **more: Any,
) -> CasePredictor:
    """Load a model for segmentation; its kind says what predicts with it.

    Args:
        model: the model or its folder.
        folds: folds to average; None takes every trained one.
        postprocessing: a ``postprocessing.json``, or False for none; None takes what was found for these folds.
        more: ``device``, ``step_size``, ``mirror``, ``precision``, ``checkpoint``, ``engine`` and ``threads``, as for
            :meth:`medkd.inference.predictor.Predictor.of` and :meth:`medkd.runtime.predictor.RuntimePredictor.of`.

    Raises:
        RunError: there is no model for segmentation, or an option does not apply to this kind of model.
        MedkdError: the model cannot be loaded, or the post-processing is damaged or about other structures.
    """
    opened = model if isinstance(model, ModelFolder) else open_model(model, "segmentation")
    kind = opened.predictor if isinstance(opened, SegmentationFolder) else SegmentationFolder.predictor
    predictor: CasePredictor = resolve(kind).of(opened, folds, **more)
    predictor.postprocessing = choose_steps(opened, predictor, postprocessing)
    return predictor
