"""nnU-Net's cascade as a teacher: a second stage that looks at the scan and at the first stage's prediction of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import MedkdError, RunError
from medkd.core.files import read_json
from medkd.core.plan import Plan
from medkd.core.run import PLANS_FILE
from medkd.models.base import Checkpoint
from medkd.models.nnunet.checkpoint import NnunetCheckpoint, configuration_in
from medkd.models.nnunet.folder import NnunetFolder, has_checkpoints
from medkd.models.nnunet.plans import load_plans, previous_stage_of
from medkd.models.segmentation import TrainedModel
from medkd.models.several import SeveralTeachers

_FULL = "3d_fullres"  # what the second stage's preprocessing is called in its students' plan


class NnunetCascade(NnunetFolder):
    """The model folder of a cascade's second stage (``3d_cascade_fullres``); its first one lies beside it or in it.

    It teaches by predictions of whole cases: its input is not the student's. What its folds have seen is what their
    own training cases are; nnU-Net made the first stage's predictions for these by cross-validation.
    """

    kind = "nnunet_cascade"
    title = "a cascade of nnU-Net v2"
    merges = True
    whole_cases: ClassVar[str] = "medkd.inference.cascade:CascadeCases"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it is a model folder of nnU-Net whose configuration has a stage before it."""
        return has_checkpoints(path) and _previous_stage(path) is not None

    @property
    def first_stage(self) -> NnunetFolder:
        """The model of the first stage: inside of this folder, else beside it, by the same trainer before others.

        Raises:
            RunError: there is none, or several of other trainers.
        """
        wanted = _previous_stage(self.path)
        trainer, _, _ = self.path.name.partition("__")
        inside, beside = _models(self.path, wanted), _models(self.path.parent, wanted)
        same = [folder for folder in beside if folder.name.partition("__")[0] == trainer]
        chosen = inside or same or beside
        if len(chosen) == 1:
            return NnunetFolder(chosen[0])
        listed = ", ".join(folder.name for folder in chosen) or "none"
        raise RunError(
            f"{self.path} is the second stage of a cascade: expected one model folder of its first stage ({wanted}) "
            f"beside it, found {listed}; put nnU-Net's folder of {wanted} there."
        )

    @property
    def parts(self) -> tuple[Path, ...]:
        """The folder of the first stage."""
        return (self.first_stage.path,)

    @property
    def teaching_folds(self) -> tuple[str, ...]:
        """The folds that both stages have."""
        first = self.first_stage.teaching_folds
        return tuple(fold for fold in super().teaching_folds if fold in first)

    def weights_files(self, fold: str) -> tuple[Path, ...]:
        """Those of both stages."""
        return (self.weights_file(fold), *self.first_stage.weights_files(fold))

    def seen(self, fold: str, cases: Sequence[str], raw: Path) -> frozenset[str]:
        """What the fold was trained on, in either stage; a ``teacher.json`` of the second one speaks for both."""
        stated = self._stated(cases)
        if stated is not None:
            return stated
        return super().seen(fold, cases, raw) | self.first_stage.seen(fold, cases, raw)

    def check_fits(self, plan: Plan, configuration: str, description: DatasetDescription) -> None:
        """Structures and channels must be the student's; grid, patch and preprocessing are the student's own choice."""
        SeveralTeachers.of([self]).check_fits(plan, configuration, description)
        self._check_files(description)

    def second_stage(self, folds: Sequence[str]) -> TrainedModel:
        """The second stage's networks of some folds, whose input is the scan and a map of each label."""
        read = [self._read(self.weights_file(fold)) for fold in folds]
        return replace(read[0].describe(), networks=[one.network() for one in read], folds=tuple(folds))

    def _describe(self) -> TrainedModel:
        """As a student's plan sees it: full and low resolution, without the first stage's prediction."""
        folds = self.teaching_folds
        if not folds:
            raise RunError(
                f"{self.path}: the cascade's stages have no trained fold in common (second stage: "
                f"{', '.join(super().teaching_folds) or 'none'}, first: "
                f"{', '.join(self.first_stage.teaching_folds) or 'none'}); train the missing ones with nnU-Net."
            )
        second = self._read(self.weights_file(folds[0])).describe()
        first = self.first_stage.describe()
        full = replace(second.configuration, name=_FULL)
        plan: Plan = replace(second.plan, configurations={_FULL: full, first.configuration.name: first.configuration})
        return replace(second, plan=plan, configuration=full, folds=folds, patch_size=())

    def _read(self, file: Path) -> NnunetCheckpoint:
        return NnunetCheckpoint.read(file, cascade=True)

    def _load(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> TrainedModel:
        raise RunError(
            f"{self.path} is a cascade, of which no single network can be had; it teaches by --targets cached, with "
            "methods that need outputs only and without --init teacher."
        )


def _models(place: Path, configuration: str | None) -> list[Path]:
    """The model folders in a folder that were trained with a configuration."""
    found = []
    for folder in sorted(place.glob("*/")):
        if has_checkpoints(folder) and _configuration(folder) == configuration:
            found.append(folder)
    return found


def _configuration(path: Path) -> str | None:
    """The configuration of a model folder: in its name, else as its first checkpoint says; None where neither helps."""
    plans = read_json(path / PLANS_FILE)
    named = path.name.rpartition("__")[2]
    if "__" in path.name and named in plans.get("configurations", {}):
        return named
    return configuration_in(path)


def _previous_stage(path: Path) -> str | None:
    """The stage before a model's configuration; None where there is none, and for what another kind will refuse."""
    try:
        plans = load_plans(path / PLANS_FILE)
        configurations = plans.get("configurations", {})
        if not any("previous_stage" in str(values) for values in configurations.values()):
            return None  # nothing has to be read
        configuration = _configuration(path)
        return configuration and previous_stage_of(plans, configuration, str(path / PLANS_FILE))
    except (MedkdError, AttributeError):
        return None
