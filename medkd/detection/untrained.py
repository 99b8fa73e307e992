"""A detector that is going to be trained as a teacher: all that is known of it before there are weights."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from medkd.detection.base import DETECTORS, Detector, DetectorSpec
from medkd.detection.families import register_detectors
from medkd.detection.models import DetectorFolder, TrainedDetector
from medkd.training.untrained import UntrainedRun

if TYPE_CHECKING:
    from medkd.detection.task import DetectorJob


class UntrainedDetector(UntrainedRun, DetectorFolder):
    """A detector that is not trained yet."""

    kind = "untrained_detector"
    title = "a detector that is not trained yet"
    job: DetectorJob

    def network(self, fold: str) -> Detector:
        """Its layers, without weights."""
        return layers_of(self.describe().spec)

    def _describe(self) -> TrainedDetector:
        network, plan = self.job.run.network, self.job.plan
        spec = DetectorSpec(network.name, plan.categories, network.patch_size[0], plan.anchor_scale, plan.sides)
        return TrainedDetector(folds=self.folds(), spec=spec)


@lru_cache(maxsize=2)
def layers_of(spec: DetectorSpec) -> Detector:
    """A detector without weights, as many rows of a table have it; detectors are built with some, which are dropped."""
    register_detectors(spec.name)
    detector: Detector = DETECTORS[spec.name].build(spec).to("meta").eval()
    return detector
