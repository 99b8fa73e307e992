"""A run that is going to be trained as a teacher: all that is known of it before there are weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medkd.core.run import FINAL
from medkd.core.teachers import short_name
from medkd.models.base import Checkpoint, ModelFolder
from medkd.training.job import Job


class UntrainedRun(ModelFolder[Any]):
    """The run that a job would make, with one fold and no weights; the kind of each task describes and builds it.

    Args:
        job: of the teacher.
    """

    def __init__(self, job: Job[Any, Any, Any]) -> None:
        super().__init__(job.folder.parent)
        self.job = job

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """No folder is one."""
        return False

    @property
    def name(self) -> str:
        """As that of the run."""
        return short_name(self.path)

    @property
    def recorded(self) -> str:
        """As of the run, since folds of a student whose teachers are trained already say so, too."""
        return self.name

    def taught_as(self, results: Path) -> tuple[str, ...]:
        """Likewise; it is going to lie beside the student."""
        return (self.path.name,)

    @property
    def network_name(self) -> str:
        """Its registry name."""
        return self.job.run.network.name

    def folds(self, checkpoint: Checkpoint = "final") -> tuple[str, ...]:
        """That of the job."""
        return (self.job.fold,)

    def seen(self, fold: str, cases: Sequence[str], raw: Path) -> frozenset[str]:
        """The cases on which it, or a teacher of its own, is going to be trained."""
        split = self.job.split
        return self.job.seen.union(split.train, split.unlabelled)

    def weights_file(self, fold: str) -> Path:
        """Where they will lie."""
        return self.job.folder / FINAL

    def _load(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> Any:
        raise NotImplementedError
