"""One of several processes that train together: ``python -m tests.training.ranks_worker TRAININGS.json``.

The file holds a list of trainings: the arguments of :func:`medkd.train`, or with a teacher of
:func:`medkd.train_distill`, one after another.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from medkd.core.errors import RunError
from medkd.core.files import read_json
from medkd.training.logs import RunLog
from medkd.training.options import TrainOptions
from medkd.training.ranks import current
from medkd.training.segmentation_task import train, train_distill


def run_all(trainings: list[dict[str, Any]]) -> None:
    """Train what the list says; nobody looks at the curves, whose drawing takes longer than the steps."""
    with patch.object(RunLog, "draw"):
        for training in trainings:
            _run(training)


def _run(training: dict[str, Any]) -> None:
    options = TrainOptions(**{**training["options"], "root": Path(training["options"]["root"])})
    if "teacher" in training:
        train_distill(900, training["teacher"], training["network"], training["method"], 0, options)
    else:
        train(900, training["network"], 0, options)


def disagree() -> None:
    """Say what is said where the processes stand at different places."""
    ranks = current()
    try:
        ranks.agree(str(ranks.number), torch.device("cpu"), "The processes differ.")
    except RunError as error:
        sys.stdout.write(f"{error}\n")


if __name__ == "__main__":
    run_all(read_json(Path(sys.argv[1]))["trainings"])
    disagree()
