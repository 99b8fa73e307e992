"""Merged targets of several teachers, on the student's grid.

The rule, at every voxel: a structure's probability is that of its teacher (the mean over teachers of equal labels and
their folds). A teacher's background means "not mine", so the student's background is the product over teachers of the
probability that the voxel belongs to none of a teacher's structures. All are divided by their sum, which also settles
conflicts. Regions are independent of each other and taken as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medkd.core.dataset import CaseFiles, DatasetDescription, every_case
from medkd.core.errors import RunError
from medkd.core.plan import Plan
from medkd.core.plugins import resolve
from medkd.core.precision import Precision
from medkd.core.run import DATASET_FILE
from medkd.core.serial import to_data
from medkd.distillation.averaging import logits_of
from medkd.inference.whole_cases import WholeCases
from medkd.io.orientation import axis_code, turn
from medkd.io.volumes import read_image
from medkd.models.axes import PatchAxes
from medkd.models.base import ModelFolder
from medkd.models.segmentation import SegmentationFolder, TrainedModel
from medkd.models.several import Group, SeveralTeachers, counted, groups_of, refuse_twice
from medkd.preprocessing.current import check_scan
from medkd.preprocessing.properties import CaseProperties
from medkd.preprocessing.resampling import axis_matrix, multiply
from medkd.preprocessing.store import CaseRecord


@dataclass(frozen=True, kw_only=True)
class MergedDescription:
    """``targets.json`` of merged targets; the fields mean what those of
    :class:`~medkd.training.cached.TargetDescription` mean, per teacher where they are plural.

    Attributes:
        settings: what else each network's probabilities depend on, by name.
        rule: how they were merged.
    """

    teacher: str
    weights: tuple[str, ...]
    groups: tuple[tuple[tuple[int, ...], tuple[tuple[int, int], ...]], ...]
    mirror_axes: tuple[tuple[int, ...], ...]
    precision: Precision
    outputs: int
    regions: bool
    settings: tuple[Mapping[str, str], ...]
    rule: str = "own probabilities, background = product of what is not theirs, normalised"
    schema: int = 1

    @property
    def key(self) -> str:
        """Name of the folder: a hash of all that the values depend on."""
        parts = to_data(replace(self, teacher=""))
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def merge(probabilities: Sequence[Tensor], groups: Sequence[Group], outputs: int, regions: bool) -> Tensor:
    """Probabilities ``(K, *size)`` of the student's outputs by the module's rule.

    Args:
        probabilities: of each teacher ``(K_t, *size)``, on one grid.
        groups: which teachers answer for which outputs.
        outputs: K.
        regions: sigmoid regions instead of softmax classes.
    """
    size = probabilities[0].shape[1:]
    result = torch.zeros((outputs, *size))
    nothing = torch.ones(size)
    for group in groups:
        mean = torch.stack([probabilities[position].float() for position in group.members]).mean(0)
        for output, channel in group.outputs.items():
            result[output] = mean[channel]
        if not regions:
            own = torch.stack([mean[channel] for channel in group.outputs.values()]).sum(0)
            nothing = nothing * (1 - own).clamp(min=0)
    if regions:
        return result
    result[0] = nothing
    return result / result.sum(0, keepdim=True).clamp(min=1e-12)


@dataclass(frozen=True)
class StudentGrid:
    """How a student sees a scan.

    Attributes:
        plan: its plan.
        rank: of its patch, whose axes are the last ones of the plan's.
        mirrored: axes of the patch that it may mirror.
    """

    plan: Plan
    rank: int
    mirrored: tuple[int, ...]

    def shared_axes(self, plan: Plan, rank: int, axes: Sequence[int]) -> tuple[int, ...]:
        """Those axes of a teacher's patch that the student may mirror, too.

        Where only one of both plans turns scans, nobody knows which axis is which: none is shared then, unless the
        student may mirror every axis.

        Args:
            plan: the teacher's.
            rank: of its patch.
            axes: of its patch.
        """
        if len(self.mirrored) == len(self.plan.transpose):
            return tuple(axes)
        return PatchAxes(plan, rank).common(axes, PatchAxes(self.plan, self.rank), self.mirrored)


class MergedPredictor:
    """Several teachers, and how they see the cases of a student's data set.

    Args:
        model: the teachers.
        fold: of the student's teacher.
        grid: the student's.
        raw: raw data set, since every teacher preprocesses for itself.
        device: where to predict.
        tta: average over those mirrorings that each teacher was trained with and the student may have.
    """

    def __init__(
        self, model: SeveralTeachers, fold: str, grid: StudentGrid, raw: Path, device: torch.device, *, tta: bool
    ) -> None:
        self._plan = grid.plan
        description = DatasetDescription.load(raw / DATASET_FILE)
        self.labels = description.labels
        self.groups = groups_of(model.members, self.labels)
        self._files = _files(raw, description)
        self._teachers = _each_once(model, fold, device, tta)
        for teacher in self._teachers:
            teacher.keep_axes(grid.shared_axes)
        self.described = self._description(model.recorded)

    def _description(self, recorded: str) -> MergedDescription:
        return MergedDescription(
            teacher=recorded,
            weights=tuple(digest for teacher in self._teachers for digest in teacher.digests()),
            groups=tuple((group.members, tuple(group.outputs.items())) for group in self.groups),
            mirror_axes=tuple(teacher.used_axes for teacher in self._teachers),
            precision=self._teachers[0].precision,
            outputs=self.labels.num_outputs,
            regions=self.labels.regions,
            settings=tuple(settings for teacher in self._teachers for settings in teacher.circumstances()),
        )

    def check(self, case: str, record: CaseRecord) -> None:
        """See that the raw scan of a case, which the teachers look at, is the one that the student's case shows.

        Raises:
            DataError: it is another one by now.
            RunError: it is not there any more.
        """
        if case not in self._files:
            raise RunError(
                f"The raw scan of {case} is not there any more; several teachers preprocess for themselves and need it."
            )
        check_scan(record, self._files[case].images, self._plan.dataset)

    def logits(self, case: str, record: CaseRecord) -> Tensor:
        """Logits ``(K, z, y, x)`` of a case on the student's grid.

        Args:
            case: of the data set.
            record: of the student's preprocessed case.

        Raises:
            MedkdError: see :meth:`check`, which is asked again after the scan was read, as it may change at any time.
        """
        self.check(case, record)
        image, geometry = read_image(self._files[case].images, case)
        self.check(case, record)
        found = []
        for teacher in self._teachers:
            native = teacher.probabilities(case, image, geometry)
            found.append(to_student(native, record.properties, self._plan))
        merged = merge(found, self.groups, self.labels.num_outputs, self.labels.regions)
        return logits_of(merged[None], self.labels.regions)[0]


def _each_once(model: SeveralTeachers, fold: str, device: torch.device, tta: bool) -> list[WholeCases]:
    """What predicts as each of several teachers, of which no two have equal weights."""
    found = [whole_cases(member.model, member.folds_for(fold), device, tta) for member in model.members]
    digests = [counted(member, own.digests()) for member, own in zip(model.members, found, strict=True)]
    refuse_twice([str(member.model.path) for member in model.members], digests)
    return found


def whole_cases(model: ModelFolder[TrainedModel], folds: Sequence[str], device: torch.device, tta: bool) -> WholeCases:
    """What predicts raw scans as a teacher sees them; see :attr:`SegmentationFolder.whole_cases`."""
    kind = model.whole_cases if isinstance(model, SegmentationFolder) else SegmentationFolder.whole_cases
    made: WholeCases = resolve(kind).of(model, folds, device, mirror=tta)
    return made


def to_student(probabilities: np.ndarray, properties: CaseProperties, plan: Plan) -> Tensor:
    """Probabilities ``(K, z, y, x)`` on the native grid to the student's: turned, transposed, cropped, resampled
    linearly.
    """
    if properties.turned is not None:
        probabilities = turn(probabilities, axis_code(properties.geometry), axis_code(properties.turned))
    moved = probabilities.transpose(0, *(axis + 1 for axis in plan.transpose))
    box = tuple(slice(*bounds) for bounds in properties.crop)
    result = np.ascontiguousarray(moved[(slice(None), *box)], dtype=np.float32)
    for axis, size in enumerate(properties.shape, start=1):
        if result.shape[axis] != size:
            result = multiply(axis_matrix(result.shape[axis], size, 1), result, axis)
    return torch.from_numpy(result)


def _files(raw: Path, description: DatasetDescription) -> dict[str, CaseFiles]:
    return {files.case: files for files in every_case(raw, description)}
