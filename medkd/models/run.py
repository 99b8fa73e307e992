"""Runs of medkd as models: segmentation networks that ``medkd_train`` or ``medkd_train_distill`` made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medkd.core.checkpoint import load_checkpoint
from medkd.core.postprocessing import Postprocessing
from medkd.core.run import RUN_FILE, RunFolder, is_detection
from medkd.models.base import Checkpoint
from medkd.models.found_postprocessing import stored_postprocessing
from medkd.models.own_run import CHECKPOINTS, OwnRun
from medkd.models.segmentation import SegmentationFolder, TrainedModel
from medkd.models.weights import load_weights
from medkd.networks.base import NETWORKS, SegmentationNetwork
from medkd.preprocessing.fingerprint import known_contents


class SegmentationRun(OwnRun, SegmentationFolder):
    """A run folder ``<root>/results/DATASET/RUN`` of a segmentation network."""

    kind = "run"
    title = "a run folder of medkd"
    run: RunFolder

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.run = RunFolder.load(path)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether there is a ``run.json`` of a segmentation network."""
        return (path / RUN_FILE).exists() and not is_detection(path)

    def contents(self, prepared: Path) -> Mapping[str, str]:
        """Those of the fingerprint."""
        return known_contents(prepared)

    def postprocessing(self, folds: Sequence[str], weights: Sequence[str]) -> Postprocessing | None:
        """What ``medkd_cross_validate`` found on the validation cases of just these folds."""
        return stored_postprocessing(self.path, folds, weights)

    def _describe(self) -> TrainedModel:
        described = self.run.run
        return TrainedModel(
            folds=self.folds(),
            plan=self.run.plan,
            configuration=self.run.plan.configuration(described.configuration),
            labels=self.run.dataset.labels,
            channels=self.run.dataset.channel_names,
            patch_size=described.network.patch_size,
            mirror_axes=described.mirror_axes,
        )

    def _load(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> TrainedModel:
        names = self.wanted_folds(folds, checkpoint)
        network = self.run.run.network.name
        NETWORKS.require(network, self.run.run.modules.get(network), str(self.path))
        networks = [self._network(fold, checkpoint) for fold in names]
        return replace(self.describe(), networks=networks, folds=names)

    def _network(self, fold: str, checkpoint: Checkpoint) -> SegmentationNetwork:
        file = self.run.fold(fold) / CHECKPOINTS[checkpoint]
        return load_weights(self.run.run.network, load_checkpoint(file).get("network", {}), str(file))
