"""What runs of medkd have in common as models, whatever their task: names, folds, and what each fold has seen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from medkd.core.checkpoint import stored_checkpoint
from medkd.core.errors import RunError
from medkd.core.run import BEST, FINAL, RunDescription
from medkd.core.teachers import short_name
from medkd.models.base import Checkpoint, ModelFolder
from medkd.models.guard import seen_by
from medkd.models.seen import how_cleared, kept_contents, stated_or_same

CHECKPOINTS: dict[Checkpoint, str] = {"final": FINAL, "best": BEST}


class RunOnDisk(Protocol):
    """A run folder that was read, of any task."""

    @property
    def run(self) -> RunDescription:
        """What was trained."""
        ...

    def fold(self, fold: int | str) -> Path:
        """Folder of one fold."""
        ...


class OwnRun(ModelFolder[Any]):
    """A run folder ``<root>/results/DATASET/RUN``; the kind of each task reads it as :attr:`run` and loads networks."""

    run: RunOnDisk

    @property
    def name(self) -> str:
        """The network, and how it was distilled if it was."""
        return short_name(self.path)

    @property
    def network_name(self) -> str:
        """What ``run.json`` says."""
        return self.run.run.network.name

    @property
    def recorded(self) -> str:
        """Students name a run of their own data set by its short name."""
        return self.name

    def taught_as(self, results: Path) -> tuple[str, ...]:
        """A run beside the student's is known by its folder's name, wherever both are copied to."""
        return (self.path.name if self.path.parent.resolve() == results.resolve() else str(self.path),)

    def folds(self, checkpoint: Checkpoint = "final") -> tuple[str, ...]:
        """The folds that have the checkpoint."""
        found = []
        for folder in sorted(self.path.glob("fold_*")):
            if stored_checkpoint(folder / CHECKPOINTS[checkpoint]).exists():
                found.append(folder.name.removeprefix("fold_"))
        return tuple(found)

    def seen(self, fold: str, cases: Sequence[str], raw: Path) -> frozenset[str]:
        """What the fold's ``split.json`` says; of the cases of another data set see
        :func:`~medkd.models.seen.stated_or_same`.
        """
        roots = (self.path.parents[2], raw.parents[1])
        contents = kept_contents([root / "preprocessed" for root in roots], self.contents)
        return stated_or_same(self.path, seen_by(self.run.fold(fold)), self.run.run.dataset, cases, raw, contents)

    def cleared(self, raw: Path) -> str:
        """See :func:`~medkd.models.seen.how_cleared`."""
        return how_cleared(self.path, self.run.run.dataset, raw)

    @abstractmethod
    def contents(self, prepared: Path) -> Mapping[str, str]:
        """The hashes that a preprocessed data set keeps of its cases; none where it is not there."""

    def weights_file(self, fold: str) -> Path:
        """The fold's final checkpoint."""
        return stored_checkpoint(self.run.fold(fold) / FINAL)

    def wanted_folds(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> tuple[str, ...]:
        """The folds to load: those that were asked for, else all that have the checkpoint.

        Raises:
            RunError: there is none, or one of them has no such checkpoint.
        """
        trained = self.folds(checkpoint)
        wanted = tuple(str(fold) for fold in folds) if folds else trained
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
