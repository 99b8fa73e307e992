"""A network that is going to be trained as a teacher: all that is known of it before there are weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkd.core.run import FINAL
from medkd.core.teachers import short_name
from medkd.models.base import Checkpoint, ModelFolder
from medkd.models.segmentation import SegmentationFolder, TrainedModel
from medkd.networks.reference import build_weightless
from medkd.training.job import Job

if TYPE_CHECKING:
    from medkd.training.segmentation_task import SegmentationJob


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


class UntrainedNetwork(UntrainedRun, SegmentationFolder):
    """A network for segmentation that is not trained yet."""

    kind = "untrained"
    title = "a network that is not trained yet"
    job: SegmentationJob

    def network(self, fold: str) -> Any:
        """Its layers, without weights."""
        return build_weightless(self.job.run.network).eval()

    def _describe(self) -> TrainedModel:
        job = self.job
        return TrainedModel(
            folds=self.folds(),
            plan=job.plan,
            configuration=job.plan.configuration(job.configuration),
            labels=job.description.labels,
            channels=job.description.channel_names,
            patch_size=job.run.network.patch_size,
            mirror_axes=job.run.mirror_axes,
        )
