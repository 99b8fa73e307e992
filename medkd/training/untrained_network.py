"""A network for segmentation that is going to be trained as a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medkd.models.segmentation import SegmentationFolder, TrainedModel
from medkd.networks.reference import build_weightless
from medkd.training.untrained import UntrainedRun

if TYPE_CHECKING:
    from medkd.training.segmentation_task import SegmentationJob


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
