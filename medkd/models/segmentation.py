"""What all kinds of models for segmentation have in common: how they describe themselves, and whom they may teach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from medkd.core.channels import differing_channels
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import RunError
from medkd.core.labels import LabelSpec
from medkd.core.plan import Configuration, Plan
from medkd.core.postprocessing import Postprocessing
from medkd.models.axes import PatchAxes
from medkd.models.base import ModelFolder, Trained

_PREPROCESSING = ("spacing", "normalization", "use_mask_for_norm", "resampling", "crop")
Difference = tuple[str, Any, Any]


@dataclass(frozen=True, kw_only=True)
class TrainedModel(Trained):
    """Networks and all that is needed to predict with them.

    Attributes:
        plan: preprocessing and axis order.
        configuration: the configuration that they were trained on.
        labels: what their outputs mean.
        channels: names of the input channels, as far as they are known.
        patch_size: voxels per axis, two values for a 2D network.
        mirror_axes: axes of the patch that training mirrored, and prediction may mirror.
        mirror_axes_known: False where nobody has said which axes training mirrored.
        members: the models that it is made of, where it is several teachers.
    """

    plan: Plan
    configuration: Configuration
    labels: LabelSpec
    channels: tuple[str, ...]
    patch_size: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    mirror_axes_known: bool = True
    members: tuple[TrainedModel, ...] = ()

    def allowed_axes(self, student: PatchAxes, axes: Sequence[int]) -> tuple[int, ...]:
        """Those of the ``axes`` along which a student may be mirrored: none that a teacher was kept from, since left
        may not be right there. A teacher that sees slices alone was not kept from the axis across them.

        Where nobody knows which axis is which, none is allowed, unless the teacher was kept from none.

        Args:
            student: its patch.
            axes: of its patch.
        """
        for model in self.members or (self,):
            axes = model._allowed(student, axes)
        return tuple(axes)

    def mirrored_axes(self, student: PatchAxes) -> tuple[int, ...]:
        """Axes of a student's patch along which a teacher was mirrored, as far as that is known."""
        found: set[int] = set()
        for model in self.members or (self,):
            if model.mirror_axes_known:
                found.update(student.common(range(student.rank), model._axes, model.mirror_axes))
        return tuple(sorted(found))

    @property
    def _axes(self) -> PatchAxes:
        return PatchAxes(self.plan, self.configuration.rank)

    def _allowed(self, student: PatchAxes, axes: Sequence[int]) -> Sequence[int]:
        kept_from = [axis for axis in range(self.configuration.rank) if axis not in self.mirror_axes]
        if not self.mirror_axes_known or not kept_from:
            return axes
        if not student.comparable(self._axes):
            return ()
        forbidden = student.common(axes, self._axes, kept_from)
        return [axis for axis in axes if axis not in forbidden]


class SegmentationFolder(ModelFolder[TrainedModel]):
    """A model for segmentation.

    Attributes:
        predictor: ``module:Class`` of what predicts with it, a
            :class:`~medkd.runtime.prediction.CasePredictor` with a class method ``of``.
        whole_cases: ``module:Class`` of what gives probabilities of raw scans for targets, see
            :class:`~medkd.inference.whole_cases.WholeCases`.
    """

    task = "segmentation"
    predictor: ClassVar[str] = "medkd.inference.predictor:Predictor"
    whole_cases: ClassVar[str] = "medkd.inference.whole_cases:PredictedCases"

    @property
    def parts(self) -> tuple[Path, ...]:
        """Folders of models that it is made of and that are models of their own, too."""
        return ()

    def postprocessing(self, folds: Sequence[str], weights: Sequence[str]) -> Postprocessing | None:
        """What was found to improve predictions of these folds together; by itself nothing is known.

        Args:
            folds: whose networks are averaged.
            weights: a hash of each of these networks.
        """
        return None

    def check_fits(self, plan: Plan, configuration: str, description: DatasetDescription) -> None:
        """Teacher and student must see the same input and mean the same by their outputs.

        Raises:
            RunError: the first thing that differs (labels, channels, axis order, spacing, normalisation, intensities).
        """
        model = self.describe()
        theirs, ours = model.configuration, plan.configuration(configuration)
        self.check_labels(description.labels)
        self.check_channels(description.channel_names)
        preprocessing: list[Difference] = [("axis order", model.plan.transpose, plan.transpose)]
        preprocessing.append(("orientation", model.plan.orientation, plan.orientation))
        for key in _PREPROCESSING:
            preprocessing.append((f"preprocessing ({key})", getattr(theirs, key), getattr(ours, key)))
        if "ct" in ours.normalization:
            preprocessing.append(("intensity statistics", model.plan.intensities, plan.intensities))
        self._refuse(preprocessing, "the student's", f"; {self.remedy(plan.dataset)}")

    def check_labels(self, labels: LabelSpec) -> None:
        """Outputs must mean what the labels of a data set do.

        Raises:
            RunError: they do not.
        """
        known = self.describe().labels
        if label_meaning(known) != label_meaning(labels):
            raise RunError(
                f"The teacher {self.path.name} does not fit: its labels are {shown_labels(known)}, the data set's are "
                f"{shown_labels(labels)}; name and number the data set's as the teacher's in dataset.json, or convert "
                "it anew with --labels."
            )

    def check_channels(self, names: Sequence[str]) -> None:
        """The images of a data set must have the model's channels.

        Raises:
            RunError: there are more or fewer, or others.
        """
        model = self.describe()
        count: list[Difference] = [("number of input channels", len(model.configuration.normalization), len(names))]
        self._refuse(count, "the data set's", "")
        self._refuse_channels(model, names)

    def check_gives_weights(self, plan: Plan, configuration: str, description: DatasetDescription) -> None:
        """A student that only starts from it may have its own spacing, patch and labels, but its images must be turned
        and normalised as the model's.

        Raises:
            RunError: the first thing that differs.
        """
        model = self.describe()
        theirs, ours = model.configuration, plan.configuration(configuration)
        self._refuse_channels(model, description.channel_names)
        compared: list[Difference] = [("axis order", model.plan.transpose, plan.transpose)]
        compared.append(("orientation", model.plan.orientation, plan.orientation))
        compared.append(("normalization", theirs.normalization, ours.normalization))
        self._refuse(compared, "the student's", f"; {self.remedy(plan.dataset)}")

    def _refuse_channels(self, model: TrainedModel, names: Sequence[str]) -> None:
        differs = differing_channels(model.channels, names)
        if differs:
            raise RunError(
                f"The teacher {self.path.name} does not fit: it has {differs} ({', '.join(model.channels)}) than the "
                f"data set ({', '.join(names)}); order and name the data set's channels as the teacher's."
            )

    def _refuse(self, compared: Sequence[Difference], whose: str, remedy: str) -> None:
        for what, found, expected in compared:
            if found != expected:
                raise RunError(
                    f"The teacher {self.path.name} does not fit: its {what} {found} differs from {whose} {expected}"
                    f"{remedy}."
                )


class ImportedFolder(SegmentationFolder):
    """A model for segmentation that medkd did not train."""

    prepares = True

    def remedy(self, dataset: str) -> str:
        """How to take over the model's preprocessing."""
        return (
            f"run medkd_plan_and_preprocess -d {dataset} --like {self.path} --overwrite-plan, which takes over the "
            "teacher's and preprocesses again"
        )


def label_meaning(labels: LabelSpec) -> Any:
    """What outputs mean, whatever the case of the letters; values, order and painting count."""
    named = []
    for name, values in labels.entries:
        named.append((name.casefold(), values if len(values) > 1 else values[0]))
    return named, labels.regions, labels.order, labels.ignore


def shown_labels(labels: LabelSpec) -> str:
    """Labels for a sentence: ``background 0, tumour 1+2``, with the order of painting and the ignored value."""
    parts = []
    for name, values in labels.entries:
        parts.append(f"{name} {'+'.join(map(str, values))}")
    if labels.regions:
        parts.append(f"painted as {', '.join(map(str, labels.order))}")
    if labels.ignore is not None:
        parts.append(f"ignored {labels.ignore}")
    return ", ".join(parts)
