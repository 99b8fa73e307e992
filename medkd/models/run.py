"""Runs of medkd as models: segmentation networks that ``medkd_train`` or ``medkd_train_distill`` made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medkd.core.checkpoint import load_checkpoint, stored_checkpoint
from medkd.core.errors import RunError
from medkd.core.run import BEST, FINAL, RUN_FILE, RunFolder, is_detection
from medkd.models.base import Checkpoint
from medkd.models.guard import seen_by, short_name
from medkd.models.segmentation import SegmentationFolder, TrainedModel
from medkd.models.weights import load_weights
from medkd.networks.base import NETWORKS, SegmentationNetwork

CHECKPOINTS: dict[Checkpoint, str] = {"final": FINAL, "best": BEST}


class SegmentationRun(SegmentationFolder):
    """A run folder ``<root>/results/DATASET/RUN`` of a segmentation network."""

    kind = "run"
    title = "a run folder of medkd"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.run = RunFolder.load(path)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether there is a ``run.json`` of a segmentation network."""
        return (path / RUN_FILE).exists() and not is_detection(path)

    @property
    def name(self) -> str:
        """The network, and how it was distilled if it was."""
        return short_name(self.path)

    @property
    def recorded(self) -> str:
        """Students name a run of their own data set by its short name."""
        return self.name

    def folds(self, checkpoint: Checkpoint = "final") -> tuple[str, ...]:
        """The folds that have the checkpoint."""
        found = []
        for folder in sorted(self.path.glob("fold_*")):
            if stored_checkpoint(folder / CHECKPOINTS[checkpoint]).exists():
                found.append(folder.name.removeprefix("fold_"))
        return tuple(found)

    def seen(self, fold: str, cases: Sequence[str], raw: Path) -> frozenset[str]:
        """What the fold's ``split.json`` says, whatever the data set."""
        return seen_by(self.run.fold(fold))

    def weights_file(self, fold: str) -> Path:
        """The fold's final checkpoint."""
        return stored_checkpoint(self.run.fold(fold) / FINAL)

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
        names = self._wanted(folds, checkpoint)
        network = self.run.run.network.name
        NETWORKS.require(network, self.run.run.modules.get(network), str(self.path))
        networks = [self._network(fold, checkpoint) for fold in names]
        return replace(self.describe(), networks=networks, folds=names)

    def _wanted(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> tuple[str, ...]:
        trained = self.folds(checkpoint)
        wanted = trained if folds is None else tuple(str(fold) for fold in folds)
        if not wanted:
            raise RunError(
                f"{self.path}: no fold has a {CHECKPOINTS[checkpoint]}; finish the training of at least one fold first."
            )
        for fold in wanted:
            if fold not in trained:
                known = ", ".join(trained) or "none"
                raise RunError(
                    f"{self.path}: fold {fold} has no {CHECKPOINTS[checkpoint]}; the folds that have one: {known}."
                )
        return wanted

    def _network(self, fold: str, checkpoint: Checkpoint) -> SegmentationNetwork:
        file = self.run.fold(fold) / CHECKPOINTS[checkpoint]
        return load_weights(self.run.run.network, load_checkpoint(file).get("network", {}), str(file))
