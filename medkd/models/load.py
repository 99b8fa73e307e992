"""Anything that can predict: a run folder of medkd, a model folder of nnU-Net v2, or a described network trained
elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medkd.core.run import RunFolder
from medkd.models.described import is_external_folder, load_external
from medkd.models.nnunet.model import is_nnunet_folder, load_nnunet
from medkd.models.trained import TrainedModel, load_run


def load_trained(path: Path, folds: Sequence[int | str] | None = None, *, checkpoint: str = "final") -> TrainedModel:
    """Load the networks of a folder, on the CPU and in evaluation mode, with all that is needed to predict.

    Args:
        path: run folder, nnU-Net v2 model folder, or folder with a ``teacher.json`` (which has no folds).
        folds: 0-4 or ``"all"``; None takes every fold that has the checkpoint.
        checkpoint: ``"final"`` or ``"best"``.

    Raises:
        RunError: the folder is none of these, or a fold is not trained.
        PlanError: an nnU-Net plan asks for what medkd cannot build.
    """
    path = Path(path)
    if is_external_folder(path):
        return load_external(path)
    if is_nnunet_folder(path):
        return load_nnunet(path, folds, checkpoint=checkpoint)
    return load_run(RunFolder.load(path), folds, checkpoint=checkpoint)
