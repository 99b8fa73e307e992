"""A model folder of nnU-Net v2 as a model, without nnU-Net and without running anything that the folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medkd.core.boxes import COLOURED
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import RunError
from medkd.core.numbers import whole_number
from medkd.core.plan import Plan
from medkd.core.run import DATASET_FILE, PLANS_FILE, RUN_FILE
from medkd.core.splits import ALL, Split
from medkd.models.base import Checkpoint
from medkd.models.description import FILE
from medkd.models.nnunet.checkpoint import CHECKPOINTS, NnunetCheckpoint, trained_folds
from medkd.models.nnunet.splits import nnunet_splits, recorded_cases
from medkd.models.segmentation import ImportedFolder, TrainedModel
from medkd.models.stated import stated_cases


class NnunetFolder(ImportedFolder):
    """``<results>/DatasetNNN_Name/<trainer>__<plans>__<configuration>`` with ``plans.json``, ``dataset.json`` and
    folds.
    """

    kind = "nnunet"
    title = "a model folder of nnU-Net v2"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See :func:`has_checkpoints`."""
        return has_checkpoints(path)

    @property
    def name(self) -> str:
        """One word for all of them, since their folders are called after the trainer."""
        return self.kind

    @property
    def teaching_folds(self) -> tuple[str, ...]:
        """The folds that have any checkpoint."""
        return tuple(trained_folds(self.path))

    def checkpoint_of(self, fold: str) -> Checkpoint:
        """``"final"``, or ``"best"`` where there is no final one."""
        return trained_folds(self.path)[fold][0]

    def folds(self, checkpoint: Checkpoint = "final") -> tuple[str, ...]:
        """The folds that have the checkpoint, ``"all"`` last."""
        found = trained_folds(self.path)
        return tuple(fold for fold in found if checkpoint in found[fold])

    def seen(self, fold: str, cases: Sequence[str], raw: Path) -> frozenset[str]:
        """What a ``teacher.json`` states; else the fold's training cases by
        :func:`~medkd.models.nnunet.splits.nnunet_splits`, provided that the weights say of themselves that they were
        trained as this fold.
        """
        stated = self._stated(cases)
        if stated is not None:
            return stated
        file = self.weights_file(fold)
        if self._read(file).fold is None:
            raise RunError(
                f"{file} does not say as which fold it was trained, so nobody can say which cases it has seen; take "
                "nnU-Net's own file."
            )
        splits = nnunet_splits(self.path, cases, raw)
        if fold == ALL:
            listed = set(cases)
            for split in splits:
                listed.update(split.train, split.val)
            return frozenset(listed)
        number = whole_number(fold)
        if number is None or number >= len(splits):
            raise RunError(
                f"{self.path}: nobody can say which cases fold_{fold} has seen, since there are splits for folds 0 to "
                f"{len(splits) - 1} only."
            )
        return frozenset(splits[int(fold)].train)

    def _stated(self, cases: Sequence[str]) -> frozenset[str] | None:
        """What a ``teacher.json`` states, which nnU-Net's own files must not contradict.

        Raises:
            RunError: they do.
        """
        stated = stated_cases(self.path, cases)
        if stated is None:
            return None
        for model in (self.path, *self.parts):
            missing = recorded_cases(model, self.teaching_folds, cases) - stated
            if missing:
                raise RunError(
                    f"{self.path / FILE} does not name {len(missing)} cases of the data set under 'train' on which "
                    f"{model} was trained by nnU-Net's own splits_final.json or summary.json, for example "
                    f"{min(missing)}; remove it to go by those, or name your cases otherwise if they are other scans."
                )
        return stated

    def check_fits(self, plan: Plan, configuration: str, description: DatasetDescription) -> None:
        """See the base class; a model of pictures knows no millimetres, and teaches on pictures only."""
        super().check_fits(plan, configuration, description)
        self._check_files(description)

    def _check_files(self, description: DatasetDescription) -> None:
        theirs = DatasetDescription.load(self.path / DATASET_FILE).file_ending
        if (theirs.lower() in COLOURED) != (description.file_ending.lower() in COLOURED):
            raise RunError(
                f"The teacher {self.path.name} does not fit: it was trained on files ending in {theirs}, the data set "
                f"has {description.file_ending}, so that their voxel sizes mean different things; take a data set of "
                "the same kind of files."
            )

    def splits(self, cases: Sequence[str], raw: Path) -> list[Split] | None:
        """nnU-Net's folds, for students to share; none where a ``teacher.json`` states what the weights have seen."""
        return nnunet_splits(self.path, cases, raw) if self._stated(cases) is None else None

    def weights_file(self, fold: str) -> Path:
        """The fold's final checkpoint, or its best one where there is no final one."""
        return self._file(fold, self.checkpoint_of(fold))

    def _read(self, file: Path) -> NnunetCheckpoint:
        return NnunetCheckpoint.read(file)

    def _file(self, fold: str, checkpoint: Checkpoint) -> Path:
        return self.path / f"fold_{fold}" / CHECKPOINTS[checkpoint]

    def _describe(self) -> TrainedModel:
        folds = self.teaching_folds
        if not folds:
            raise RunError(
                f"{self.path}: no fold has a {' or '.join(CHECKPOINTS.values())}; let nnU-Net finish the training of "
                "one first."
            )
        first = self._read(self.weights_file(folds[0]))
        return replace(first.describe(), folds=folds)

    def _load(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> TrainedModel:
        wanted = self._wanted(folds, checkpoint)
        networks = []
        described = None
        for fold in wanted:
            read = self._read(self._file(fold, checkpoint))
            described = described or read.describe()
            networks.append(read.network())
        assert described is not None  # narrowed for the type checker: at least one fold is wanted
        return replace(described, networks=networks, folds=wanted)

    def _wanted(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> tuple[str, ...]:
        """The folds to load: those that were asked for; else every numbered one as nnU-Net does, ``"all"`` where there
        is none.
        """
        trained = self.folds(checkpoint)
        if folds is None:
            numbered = tuple(fold for fold in trained if fold != ALL)
            wanted = numbered or trained
        else:
            wanted = tuple(map(str, folds))
        missing = [fold for fold in wanted if fold not in trained]
        if missing or not wanted:
            self._refuse_folds(missing, trained, checkpoint)
        return wanted

    def _refuse_folds(self, missing: Sequence[str], trained: Sequence[str], checkpoint: Checkpoint) -> None:
        lacking = ", ".join(missing) or "of any number"
        known = ", ".join(trained) or "none"
        raise RunError(
            f"{self.path}: fold {lacking} has no {CHECKPOINTS[checkpoint]}; there are: {known}{self._hint(missing)}."
        )

    def _hint(self, missing: Sequence[str]) -> str:
        """Which other checkpoints the missing folds have."""
        found = trained_folds(self.path)
        hint = ""
        for kind, file in CHECKPOINTS.items():
            has = [fold for fold in missing or found if kind in found.get(fold, ())]
            if has:
                hint += f"; give --checkpoint {kind} for {file} of fold {', '.join(has)}"
        return hint


def has_checkpoints(path: Path) -> bool:
    """Whether there are ``plans.json``, ``dataset.json`` and folds with ``.pth`` checkpoints, but no run."""
    needed = [path / PLANS_FILE, path / DATASET_FILE]
    return (
        all(file.exists() for file in needed)
        and not (path / RUN_FILE).exists()
        and any(path.glob("fold_*/checkpoint_*.pth"))
    )
